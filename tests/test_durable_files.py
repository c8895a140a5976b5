import errno
import os
import subprocess
import sys

import pytest

from txtgen import files
from txtgen.errors import ResourceError
from txtgen.files import TransientError, flush, replace_file, require_space, retried


def write(path, content: bytes = b"new", needs: int = 0) -> None:
    with replace_file(path, needs) as handle:
        handle.write(content)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A file that holds b"old"; attempts follow each other at once."""
    monkeypatch.setattr(files, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def fail(monkeypatch, name: str, number: int, times: int, wanted=lambda *_: True) -> list[int]:
    """Make the first calls of a function of the operating system fail. Returns a list that counts all calls."""
    original, calls = getattr(os, name), []

    def failing(*arguments, **more):
        if not wanted(*arguments):
            return original(*arguments, **more)
        calls.append(number)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return original(*arguments, **more)

    monkeypatch.setattr(os, name, failing)
    return calls


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_an_error_that_passes_is_tried_again(path, monkeypatch, caplog, number) -> None:
    calls = fail(monkeypatch, "replace", number, times=3)
    retried(lambda: write(path))
    assert path.read_bytes() == b"new"
    assert len(calls) == 4
    assert len(caplog.records) == 3
    assert str(path) in caplog.text
    assert list(path.parent.iterdir()) == [path]


def test_an_error_that_stays_is_told_after_four_attempts(path, monkeypatch) -> None:
    calls = fail(monkeypatch, "replace", errno.EIO, times=9)
    with pytest.raises(TransientError, match="Input/output error"):
        retried(lambda: write(path))
    assert len(calls) == 4
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_flush_is_never_tried_again(path, monkeypatch) -> None:
    """What could not be flushed the system may have dropped: a second flush would succeed and prove nothing."""
    calls = fail(monkeypatch, "fsync", errno.EIO, times=1)
    with pytest.raises(ResourceError, match="flushing to disk failed") as caught:
        retried(lambda: write(path))
    assert not isinstance(caught.value, TransientError)
    assert len(calls) == 1
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_flushed_need_not_be_but_a_fault_counts(path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        fail(patch, "fsync", errno.EINVAL, times=1)
        flush(path.parent)
    fail(monkeypatch, "fsync", errno.EIO, times=1)
    with pytest.raises(ResourceError, match="flushing"):
        flush(path.parent)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EFBIG, "the file may not be as large as that .*; raise the limit: ulimit -f"),
    ],
)
def test_a_full_disk_is_told_as_such_and_not_tried_again(path, monkeypatch, number, told) -> None:
    calls = fail(monkeypatch, "fsync", number, times=1)
    with pytest.raises(ResourceError, match=told) as caught:
        retried(lambda: write(path))
    assert caught.value.exit_code == 6
    assert len(calls) == 1
    assert path.read_bytes() == b"old"


def test_what_has_no_room_is_not_begun(path) -> None:
    with pytest.raises(ResourceError, match=r"[\d,.]+ MB needed, [\d,.]+ MB free") as caught:
        write(path, needs=1 << 60)
    assert caught.value.where == str(path)
    assert path.read_bytes() == b"old"
    require_space(path, 1)
    require_space(path.parent, 1)


def test_no_permission_names_the_user(tmp_path) -> None:
    """In a process of its own, which gives up the powers of root first if it has them."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    code = (
        "import os, sys; from pathlib import Path; from txtgen.files import replace_file\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "with replace_file(Path(sys.argv[1])) as handle: pass"
    )
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(folder / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "ResourceError" in done.stderr
    assert "user " in done.stderr
    assert "cannot write: Permission denied" in done.stderr


def test_a_read_only_disk_is_told_before_any_work(path, monkeypatch) -> None:
    monkeypatch.setattr(files, "open", _refused, raising=False)
    with pytest.raises(ResourceError, match="cannot write: Read-only file system"):
        write(path)


def _refused(*_arguments, **_more):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
