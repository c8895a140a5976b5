import json
import subprocess
import sys

import pytest

from txtgen.commands.run_folder import RunFolder, latest_name, next_name
from txtgen.commands.status import Status
from txtgen.errors import BusyError, ResourceError


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "story-1")


def test_names_count_up(tmp_path) -> None:
    assert next_name(tmp_path, "story") == "story-1"
    assert latest_name(tmp_path, "story") is None
    for name in ("story-1", "story-9", "story-10", "story-x", "history-40", "story-2.old-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pth").touch()
    (tmp_path / "story-99").mkdir()  # a start that failed left no checkpoint
    assert next_name(tmp_path, "story") == "story-11"
    assert latest_name(tmp_path, "story") == "story-10"
    assert next_name(tmp_path / "missing", "story") == "story-1"


def test_a_second_process_finds_the_folder_busy(folder) -> None:
    code = (
        "import sys; from pathlib import Path; from txtgen.commands.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock(): pass"
    )
    with folder.lock():
        Status(folder.status).set("running")
        done = subprocess.run([sys.executable, "-c", code, folder.path], capture_output=True, text=True, check=False)
        assert "BusyError" in done.stderr
        with pytest.raises(BusyError, match="in use by process"), RunFolder(folder.path).lock():
            pass
    done = subprocess.run([sys.executable, "-c", code, folder.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
        folder.path.mkdir()
        folder.last.write_text(expected)
        assert folder.occupied
        assert folder.move_aside().name == expected
        assert not folder.occupied


def test_metrics_of_steps_done_again_are_dropped(folder) -> None:
    folder.path.mkdir()
    for step in range(1, 6):
        folder.append(folder.metrics, {"step": step})
        folder.append(folder.samples, {"step": step, "text": "a"})
    with open(folder.metrics, "a") as handle:
        handle.write('{"step": 6, "lo')  # killed while writing
    folder.forget_after(3)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2, 3]


def test_status_is_always_whole(folder) -> None:
    folder.path.mkdir()
    Status(folder.status).set("running", step=3)
    status = json.loads(folder.status.read_text())
    assert (status["state"], status["step"]) == ("running", 3)
    assert {"pid", "host", "time"} <= set(status)
