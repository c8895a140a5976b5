import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from txtgen.checkpoint import Checkpoint, load_checkpoint
from txtgen.commands.models import resolve_model
from txtgen.commands.running.run_folder import RunFolder, existing_names, next_name
from txtgen.commands.running.status import Status
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.model import DecoderConfig
from txtgen.errors import BusyError, CheckpointError, ResourceError


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "story-1")


def test_names_count_up(tmp_path) -> None:
    assert next_name(tmp_path, "story") == "story-1"
    assert existing_names(tmp_path, "story") == []
    for name in ("story-1", "story-9", "story-10", "story-x", "history-40", "story-2.old-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pth").touch()
    (tmp_path / "story-99").mkdir()  # a start that failed left no checkpoint
    assert next_name(tmp_path, "story") == "story-11"
    assert existing_names(tmp_path, "story")[0] == "story-10"
    assert next_name(tmp_path / "missing", "story") == "story-1"


def test_a_second_process_finds_the_folder_busy(folder) -> None:
    code = (
        "import sys; from pathlib import Path; from txtgen.commands.running.run_folder import RunFolder\n"
        "for _ in sys.stdin:\n"
        "    try:\n"
        "        with RunFolder(Path(sys.argv[1])).lock(): print('free', flush=True)\n"
        "    except Exception as error: print(type(error).__name__, flush=True)"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def found() -> str:
            process.stdin.write("now\n")
            process.stdin.flush()
            return process.stdout.readline()

        with folder.lock():
            Status(folder.status).set("running")
            assert found() == "BusyError\n"
            with pytest.raises(BusyError, match="in use by process"), RunFolder(folder.path).lock():
                pass
        assert found() == "free\n"
        process.stdin.close()


def test_what_a_killed_run_left_half_written_goes(folder) -> None:
    folder.checkpoints.mkdir(parents=True)
    leftovers = [folder.path / "best.pth.tmp.123", folder.checkpoints / "step-00000001.pth.tmp.123"]
    for path in leftovers:
        path.write_bytes(b"half")
    with folder.lock():
        assert not any(path.exists() for path in leftovers)


def test_a_place_that_cannot_be_made_is_a_resource_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResourceError, match="cannot write: Not a directory"),
        RunFolder(tmp_path / "file" / "run").lock(),
    ):
        pass


def test_moving_aside_overwrites_nothing(folder) -> None:
    for expected in ("story-1.old-1", "story-1.old-2"):
        with folder.lock():
            folder.last.write_text(expected)
            folder.step_path(1).write_text(expected)
            folder.metrics.write_text(expected)
            assert folder.occupied
            assert folder.move_aside().name == expected
            assert not folder.occupied
            assert not folder.metrics.exists()
            with pytest.raises(BusyError), RunFolder(folder.path).lock():
                pass
        aside = RunFolder(folder.path.with_name(expected))
        assert aside.occupied
        assert aside.metrics.read_text() == expected
        assert len(aside.steps()) == 1


def test_metrics_of_steps_done_again_are_dropped(folder) -> None:
    folder.path.mkdir()
    for step in range(1, 6):
        folder.append(folder.metrics, {"step": step})
        folder.append(folder.samples, {"step": step, "text": "a"})
    with open(folder.metrics, "ab") as handle:
        handle.write(b"\xff\xfe\n")  # damaged
        handle.write(b'{"step": 6, "lo')  # killed while writing
    folder.forget_after(3)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2, 3]


def test_status_is_always_whole(folder) -> None:
    folder.path.mkdir()
    Status(folder.status).set("running", step=3)
    status = json.loads(folder.status.read_text())
    assert (status["state"], status["step"]) == ("running", 3)
    assert {"pid", "host", "time"} <= set(status)


# -- checkpoints


@pytest.fixture
def checkpoint(tokenizer) -> Checkpoint:
    """A small one that can be resumed from, so to speak."""
    config = DecoderConfig(d_model=16, num_heads=2, num_layers=1, max_length=16, vocab_size=len(tokenizer))
    return Checkpoint(
        config=CheckpointConfig(model=config),
        model={"weight": torch.zeros(4)},
        tokenizer=tokenizer,
        source_tokenizer=None,
        lineage={},
        training={"step": 0},
    )


def save(folder: RunFolder, checkpoint: Checkpoint, *steps: int, keep_last: int = 2, keep_every: int = 0) -> None:
    for step in steps:
        folder.save(step, replace(checkpoint, training={"step": step}), keep_last=keep_last, keep_every=keep_every)


def kept(folder: RunFolder) -> list[int]:
    return [step for step, _ in folder.steps()]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "expected"),
    [(1, 0, [9]), (2, 0, [8, 9]), (2, 3, [3, 6, 8, 9]), (9, 0, list(range(1, 10))), (1, 9, [9]), (1, 20, [9])],
)
def test_the_last_ones_and_every_so_many_steps_are_kept(folder, checkpoint, keep_last, keep_every, expected) -> None:
    save(folder, checkpoint, *range(1, 10), keep_last=keep_last, keep_every=keep_every)
    assert kept(folder) == expected
    assert folder.last.samefile(folder.step_path(9))


def test_checkpoints_are_ordered_by_step_whatever_the_clock_says(folder, checkpoint) -> None:
    save(folder, checkpoint, 1, 2, keep_last=2)
    for path, day in ((folder.step_path(1), 20_000), (folder.step_path(2), 1)):
        os.utime(path, (day * 86_400,) * 2)  # the older one is from the future, the newer one from 1970
    assert folder.newest()[0] == folder.step_path(2)
    save(folder, checkpoint, 3, keep_last=2)
    assert kept(folder) == [2, 3]
    save(folder, checkpoint, 99_999_998, 123_456_789, keep_last=2)
    assert kept(folder) == [99_999_998, 123_456_789]
    assert folder.newest()[2] == []


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(byte ^ 1 for byte in content[middle : middle + 300])  # padding and more
    path.write_bytes(content)


def test_damaged_ones_are_named_skipped_and_push_out_no_good_ones(folder, checkpoint, caplog) -> None:
    save(folder, checkpoint, 1, 2, 3, 4, keep_last=4)
    damage(folder.step_path(3))
    damage(folder.step_path(4))
    path, newest, warnings = folder.newest()
    assert (path, newest.training) == (folder.step_path(2), {"step": 2})
    assert [str(folder.step_path(step)) in warning for step, warning in zip((4, 3), warnings, strict=True)] == [
        True
    ] * 2
    folder.go_on_from(2, keep_last=4)
    assert kept(folder) == [1, 2]
    assert folder.last.samefile(folder.step_path(2))
    assert "step-00000004.pth.damaged" in caplog.text
    save(folder, checkpoint, 3, keep_last=3)
    assert kept(folder) == [1, 2, 3]
    assert folder.newest()[2] == []


def test_the_only_good_one_is_never_removed(folder, checkpoint, monkeypatch) -> None:
    """A save that fails comes before the removal of what it was to replace."""
    save(folder, checkpoint, 1, keep_last=1)

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(ResourceError, match="disk is full"):
            save(folder, checkpoint, 2, keep_last=1)
    assert kept(folder) == [1]
    assert folder.newest()[0] == folder.step_path(1)


def test_a_checkpoint_that_goes_between_listing_and_loading_is_skipped(folder, checkpoint, monkeypatch) -> None:
    save(folder, checkpoint, 1, 2)
    listed = folder.steps()
    monkeypatch.setattr(RunFolder, "steps", lambda _: listed)
    folder.step_path(2).unlink()
    folder.last.unlink()
    path, _, warnings = folder.newest()
    assert path == folder.step_path(1)
    assert "no such checkpoint file" in warnings[0]


def test_a_last_pth_that_leads_nowhere_does_not_matter(folder, checkpoint) -> None:
    save(folder, checkpoint, 1, 2)
    folder.last.unlink()
    folder.last.symlink_to(folder.path / "gone")
    assert folder.newest()[0] == folder.step_path(2)
    assert resolve_model(folder.path) == folder.step_path(2)
    folder.go_on_from(2, keep_last=4)
    assert resolve_model(folder.path) == folder.last


def test_nothing_good_is_told_with_what_was_wrong(folder, checkpoint) -> None:
    save(folder, checkpoint, 1)
    folder.step_path(1).write_bytes(b"")
    with pytest.raises(CheckpointError, match="the file is empty"):
        folder.newest()


def test_an_old_one_that_cannot_be_removed_is_a_warning(folder, checkpoint, monkeypatch, caplog) -> None:
    save(folder, checkpoint, 1)
    original = Path.unlink

    def refuse(path, *arguments, **more):
        if path.name.startswith("step-"):
            raise PermissionError(13, "Permission denied")
        return original(path, *arguments, **more)

    monkeypatch.setattr(Path, "unlink", refuse)
    save(folder, checkpoint, 2, keep_last=1)
    assert "cannot remove the old checkpoint" in caplog.text
    assert kept(folder) == [1, 2]


def test_without_hard_links_last_pth_is_a_copy(folder, checkpoint, monkeypatch) -> None:
    def unsupported(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    save(folder, checkpoint, 1, 2)
    assert load_checkpoint(folder.last, training=True).training == {"step": 2}
    assert not folder.last.samefile(folder.step_path(2))


# -- a full disk


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow while the block runs: no longer, for pytest may write into one itself."""
    resource = pytest.importorskip("resource")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_found_before_any_work(folder) -> None:
    with full_disk(), pytest.raises(ResourceError, match="may not be as large") as caught, folder.lock():
        pass
    assert caught.value.exit_code == 6


def test_a_full_disk_costs_notes_and_one_warning_each(folder, caplog) -> None:
    folder.path.mkdir()
    with folder.logging():
        package = logging.getLogger("txtgen")
        folder.append(folder.metrics, {"step": 1})
        package.info("step 1")
        with full_disk():
            for step in (2, 3):
                folder.append(folder.metrics, {"step": step})
                package.info("step %d", step)
        folder.append(folder.metrics, {"step": 4})
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(Path(warning.split(" is incomplete")[0]).name for warning in warnings) == [
        "log.txt",
        "metrics.jsonl",
    ]
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 4]


def test_one_that_the_disk_does_not_give_is_not_taken_for_damaged(folder, checkpoint, monkeypatch) -> None:
    save(folder, checkpoint, 1, 2, keep_last=4)

    def failing(*_: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("txtgen.archive._hash_entry", failing)
        with pytest.raises(ResourceError, match="cannot read: Input/output error"):
            folder.newest()
    assert folder.newest()[0] == folder.step_path(2)
