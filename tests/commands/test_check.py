"""`txtgen check resume` proves exactness, and finds what is not exact."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from txtgen.checkpoint import load_checkpoint, save_checkpoint
from txtgen.cli import run
from txtgen.errors import ResourceError


def check(capfd, *arguments) -> tuple[int, dict]:
    capfd.readouterr()
    code = run(["check", "resume", *arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (os.stat(path).st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def copy(workshop, trained) -> Path:
    """A copy of the finished run of the decoder."""
    shutil.copytree(trained / "runs", "runs")
    return Path("runs/decoder")


@pytest.mark.parametrize("name", ["decoder", "translator"])
def test_a_run_equals_itself_and_is_not_touched(trained, capfd, name) -> None:
    folder = trained / "runs" / name
    before = snapshot(folder)
    code, found = check(capfd, str(folder))
    assert (code, found["verdict"], found["against"]) == (0, "exact", "the run itself")
    assert found["same"].keys() >= {"weights", "optimizer", "place in the data", "tokens", "losses in metrics.jsonl"}
    assert len(found["steps"]) == 2
    assert found["others"] == {str(trace["step"]): trace["loss"] for trace in found["steps"]}
    assert snapshot(folder) == before


def test_a_table_for_people(trained, capfd) -> None:
    capfd.readouterr()
    assert run(["check", "resume", str(trained / "runs" / "decoder")]) == 0
    out = capfd.readouterr().out
    assert "resuming is" in out
    assert "exact" in out
    assert "DIFFERENT" not in out


def test_other_numbers_of_steps_are_taken_twice(trained, capfd) -> None:
    code, found = check(capfd, str(trained / "runs" / "decoder"), "--steps", "1")
    assert (code, found["verdict"], found["against"]) == (0, "exact", "a second continuation")
    assert [trace["step"] for trace in found["steps"]] == [5]
    assert found["same"]["batches"]
    assert found["same"]["losses in metrics.jsonl"]
    code, found = check(capfd, str(trained / "runs" / "decoder"), "--steps", "9")
    assert (code, found["verdict"], found["against"]) == (0, "exact", "the run itself")


def test_a_run_with_one_checkpoint_is_continued_twice(copy, capfd) -> None:
    for path in sorted(copy.glob("checkpoints/*"))[:-1]:
        path.unlink()
    code, found = check(capfd, "decoder")
    assert (code, found["against"], len(found["steps"])) == (0, "a second continuation", 10)
    assert [trace["step"] for trace in found["steps"]] == list(range(7, 17))
    assert len({trace["batch"] for trace in found["steps"]}) == 10


def test_a_run_whose_length_was_decided_anew_is_continued_twice(workshop, a_second_a_step, capfd) -> None:
    kept = ["--set", "train.save_every=1", "--set", "train.keep_last=20", "--set", "train.validate_every=0"]
    assert (
        run(["pretrain", "decoder.yaml", "--name", "timed", "--minutes", "0.2", "--set", "train.steps=null", *kept])
        == 0
    )
    later = [load_checkpoint(path, training=True) for path in sorted(Path("runs/timed/checkpoints").iterdir())]
    assert later[0].training["horizon"][0] > later[-1].training["horizon"][0] == 12
    code, found = check(capfd, "timed")
    assert (code, found["verdict"], found["against"]) == (0, "exact", "the run itself")
    for path in sorted(Path("runs/timed/checkpoints").iterdir())[1:-1]:
        path.unlink()
    code, found = check(capfd, "timed")
    assert (code, found["verdict"], found["against"]) == (0, "exact", "a second continuation")
    assert [trace["step"] for trace in found["steps"]] == list(range(2, 13))
    Path("runs/timed/checkpoints/step-00000001.pth").unlink()
    code, found = check(capfd, "timed")
    assert (code, found["verdict"], len(found["steps"])) == (0, "exact", 10)


def test_no_room_is_asked_for_where_nothing_is_saved(trained, capfd, monkeypatch) -> None:
    def full(*_) -> None:
        raise ResourceError("the disk is full", "here", "make room")

    monkeypatch.setattr("txtgen.commands.running.saving.require_space", full)
    assert check(capfd, str(trained / "runs" / "decoder"))[0] == 0


def rewrite(path: Path, change) -> None:
    checkpoint = load_checkpoint(path, training=True)
    change(checkpoint)
    path.unlink()
    save_checkpoint(path, checkpoint)


def nudge_a_weight(checkpoint) -> None:
    next(iter(checkpoint.model.values())).view(-1)[0] += 1e-3


def nudge_a_moment(checkpoint) -> None:
    state = next(state for state in checkpoint.training["optimizer"]["adamw"].values() if state)
    state["exp_avg"].view(-1)[0] += 1e-3


def move_the_bookmark(checkpoint) -> None:
    lanes = checkpoint.training["bookmark"]["lanes"]
    lanes["0"], lanes["1"] = lanes["1"], lanes["0"]


@pytest.mark.parametrize(
    ("change", "part"),
    [(nudge_a_weight, "weights"), (nudge_a_moment, "optimizer"), (move_the_bookmark, "losses in metrics.jsonl")],
)
def test_what_is_not_exact_is_found(copy, capfd, change, part) -> None:
    rewrite(copy / "checkpoints" / "step-00000004.pth", change)
    code, found = check(capfd, "decoder")
    assert (code, found["verdict"]) == (5, "different")
    assert not found["same"][part]
    run(["check", "resume", "decoder"])
    assert "DIFFERENT" in capfd.readouterr().out


def test_another_machine_promises_less(copy, capfd, monkeypatch) -> None:
    """Other rounding is allowed where the machine differs, but no other data."""
    rewrite(copy / "checkpoints" / "step-00000004.pth", lambda checkpoint: nudge(checkpoint, 1e-6))
    here = torch.get_num_threads()
    assert check(capfd, "decoder")[1]["verdict"] == "different"
    monkeypatch.setattr(torch, "get_num_threads", lambda: here + 6)
    code, found = check(capfd, "decoder")
    assert (code, found["verdict"]) == (0, "equal to rounding")
    assert found["machine"] == f"threads {here} -> {here + 6}"
    rewrite(copy / "checkpoints" / "step-00000004.pth", move_the_bookmark)
    assert check(capfd, "decoder")[1]["verdict"] == "different"


def nudge(checkpoint, by: float) -> None:
    next(iter(checkpoint.model.values())).view(-1)[0] += by


def test_a_changed_corpus_is_named(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "4"]) == 0
    with open("text/a.txt", "a", encoding="utf-8") as file:
        file.write("one more line.\n")
    assert run(["check", "resume", "a"]) == 4
    assert "a.txt has grown" in capfd.readouterr().err


def test_nothing_to_check(workshop) -> None:
    assert run(["check", "resume", "missing"]) == 5
    assert run(["check"]) == 2
