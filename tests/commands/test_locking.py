"""One run a folder: also after a crash, and on a file system that knows no locks."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from txtgen.commands.running import locking
from txtgen.commands.running.locking import hold, is_held
from txtgen.errors import BusyError

fcntl = pytest.importorskip("fcntl")

HOLD = """
import errno, fcntl, os, sys
from pathlib import Path
from txtgen.commands.running.locking import hold
if sys.argv[2] != "flock":
    def unsupported(*_): raise OSError(getattr(errno, sys.argv[2]), "not here")
    fcntl.flock = unsupported
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(folder: Path, kind: str) -> subprocess.Popen:
    """A process that holds the folder until a line is written to it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(folder), kind]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def refuse_locks(monkeypatch, kind: str) -> None:
    if kind == "flock":
        return

    def unsupported(*_):
        raise OSError(getattr(errno, kind), "not here")

    monkeypatch.setattr(fcntl, "flock", unsupported)


@pytest.mark.parametrize("kind", ["flock", "ENOLCK", "ENOSYS"])
def test_a_folder_is_held_by_one_process_and_free_after_its_death(tmp_path, monkeypatch, caplog, kind) -> None:
    refuse_locks(monkeypatch, kind)
    monkeypatch.setattr("txtgen.commands.running.locking.SOFT_SECONDS", 0.5)
    with holder(tmp_path, kind) as process:
        busy = rf"in use by process {process.pid} on .* since 20\d\d-"
        with pytest.raises(BusyError, match=busy) as caught, hold(tmp_path):
            pass
        assert caught.value.exit_code == 9
        assert is_held(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with hold(tmp_path):
            assert json.loads((tmp_path / ".owner").read_text())["pid"] == os.getpid()
    assert not is_held(tmp_path)
    assert ("knows no locks" in caplog.text) == (kind != "flock")
    assert not (tmp_path / ".owner").exists()
    assert not (tmp_path / ".lock.pid").exists()


def test_a_lock_from_before_a_reboot_is_no_lock(tmp_path, monkeypatch) -> None:
    """The number of the process that held it may be another's by now: here it is our own."""
    refuse_locks(monkeypatch, "ENOSYS")
    with hold(tmp_path):
        pid, host, start = (tmp_path / ".lock.pid").read_text().splitlines()
    (tmp_path / ".lock.pid").write_text(f"{pid}\n{host}\n{int(start) ^ (1 << 70)}\n")  # of another boot
    (tmp_path / ".owner").write_text('{"pid": 1')
    with hold(tmp_path):
        assert (tmp_path / ".lock.pid").read_text().splitlines()[2] == start


def test_a_folder_that_was_copied_with_its_lock_file_is_free(tmp_path, monkeypatch) -> None:
    with hold(tmp_path):
        pass
    assert (tmp_path / ".lock").exists()
    refuse_locks(monkeypatch, "ENOSYS")
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["flock", "ENOSYS"])
def test_a_temporary_folder_goes_when_it_is_empty_and_not_from_under_another_holder(
    tmp_path, monkeypatch, kind
) -> None:
    refuse_locks(monkeypatch, kind)
    folder, others = tmp_path / "held", ExitStack()
    folder.mkdir()
    with hold(folder, temporary=True):
        (folder / "other").touch()
    (folder / "other").unlink()
    lock = locking.FileLock if kind == "flock" else locking.SoftFileLock
    release = lock.release

    def taken_at_once(self, *arguments, **options) -> None:
        release(self, *arguments, **options)
        monkeypatch.setattr(lock, "release", release)
        others.enter_context(hold(folder, temporary=True))

    with others:
        with hold(folder, temporary=True):
            monkeypatch.setattr(lock, "release", taken_at_once)
        assert is_held(folder)
    assert not folder.exists()
