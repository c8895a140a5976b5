"""What a run saves, in the background and when the disk does not do its part."""

import json
import logging
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from txtgen import files
from txtgen.checkpoint import load_checkpoint, writing
from txtgen.cli import run
from txtgen.commands.running import saving, session
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.running.saving import require_finite
from txtgen.commands.running.staging import Staging
from txtgen.errors import DivergedError, ResourceError

FOREGROUND = ["--set", "train.save_in_background=false"]


def pretrain(name: str, *more: str) -> int:
    return run(["pretrain", "decoder.yaml", "--name", name, *more])


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


# -- the copy


def test_what_was_taken_stays_what_it_was() -> None:
    weights, lists = torch.ones(3, 3), [1, {"a": torch.zeros(())}]
    staging = Staging()
    taken = staging.take({"weights": weights, "lists": lists, "none": None})
    weights.fill_(7.0)
    lists[1]["a"].fill_(7.0)
    lists.append(3)
    assert torch.equal(taken["weights"], torch.ones(3, 3))
    assert taken["lists"] == [1, {"a": torch.zeros(())}]
    again = staging.take({"weights": weights, "lists": lists})
    assert again["weights"].data_ptr() == taken["weights"].data_ptr()
    assert torch.equal(again["weights"], weights)
    assert staging.take({"weights": torch.ones(2, dtype=torch.bfloat16)})["weights"].dtype == torch.bfloat16


def test_a_rank_that_keeps_nothing_takes_no_memory() -> None:
    assert Staging(keep=False).take({"weights": torch.ones(3), "step": 2}) == {"weights": None, "step": 2}


def test_without_a_copy_tensors_are_given_back_themselves() -> None:
    weights = torch.ones(3)
    assert Staging(copy=False).take([weights])[0].data_ptr() == weights.data_ptr()


def test_weights_that_are_not_finite_never_become_a_checkpoint() -> None:
    require_finite({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int64)}, 3)
    with pytest.raises(DivergedError, match=r"weight b is not finite; step 3"):
        require_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("inf")])}, 3)


# -- in the background


def test_in_the_background_or_not_the_files_say_the_same(workshop) -> None:
    assert pretrain("one") == 0
    assert pretrain("two", *FOREGROUND) == 0
    for name in ("last.pth", "best.pth", "checkpoints/step-00000002.pth"):
        one, two = (load_checkpoint(Path("runs") / run / name, training=True) for run in ("one", "two"))
        assert all(torch.equal(one.model[key], two.model[key]) for key in one.model)
        assert one.lineage["step"] == two.lineage["step"]
        if one.training is not None:
            states = [training["optimizer"]["adamw"] for training in (one.training, two.training)]
            assert all(torch.equal(states[0][key]["exp_avg"], states[1][key]["exp_avg"]) for key in states[0])
            assert one.training["bookmark"] == two.training["bookmark"]
    for folder in (Path("runs/one"), Path("runs/two")):
        saves = [line for line in metrics(folder) if "save_seconds" in line]
        assert [line["step"] for line in saves] == [2, 3, 4, 6, 6]  # of 3 the best model alone; at last a wait
        assert all(line["save_seconds"] > 0 for line in saves)


def test_training_goes_on_while_one_save_at_a_time_is_written(workshop, monkeypatch) -> None:
    """And nothing calls a checkpoint saved before it stands under its name."""
    original, steps = RunFolder.save, session.Session.log
    at_work, seen, stepped = threading.Semaphore(1), [], threading.Event()

    def slow(folder, step, *arguments, **more):
        assert at_work.acquire(blocking=False), "two saves at once"
        if step == 2:
            assert stepped.wait(30), "training waited for the disk"
            time.sleep(0.1)
        assert status(folder.path).get("last_checkpoint") != str(folder.step_path(step))
        path = original(folder, step, *arguments, **more)
        at_work.release()
        return path

    def log(session, report) -> None:
        steps(session, report)
        last = status(session.job.folder.path).get("last_checkpoint")
        seen.append((report.step, last and Path(last).exists()))
        if report.step == 3:
            stepped.set()

    monkeypatch.setattr(RunFolder, "save", slow)
    monkeypatch.setattr(session.Session, "log", log)
    assert pretrain("a", "--set", "train.validate_every=0") == 0
    assert seen[2] == (3, None)
    assert all(found in (None, True) for _, found in seen)
    assert status(Path("runs/a"))["last_checkpoint"] == str(Path("runs/a/checkpoints/step-00000006.pth"))


def test_an_error_of_the_thread_ends_the_run_soon(workshop, monkeypatch) -> None:
    monkeypatch.setattr(RunFolder, "save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain("a", "--steps", "1000")
    assert max(line["step"] for line in metrics(Path("runs/a"))) <= 4  # at the latest at the save after
    assert status(Path("runs/a"))["state"] == "failed"


def test_an_error_of_training_lets_a_save_end(workshop, monkeypatch) -> None:
    release, seal, original = threading.Event(), writing.seal, session.Session.log

    def fail(session, report) -> None:
        original(session, report)
        if report.step == 3:
            threading.Timer(0.2, release.set).start()
            raise DivergedError("as if")

    def slow(handle) -> None:
        release.wait(30)
        seal(handle)

    monkeypatch.setattr(writing, "seal", slow)
    monkeypatch.setattr(session.Session, "log", fail)
    assert pretrain("a") == 7
    assert RunFolder(Path("runs/a")).newest()[1].training["step"] == 2


def test_a_second_ctrl_c_cuts_a_save_off(workshop, monkeypatch) -> None:
    """The save of step 4 is half written: nothing of it stays, and step 2 is as good as before."""
    half, seal, original = threading.Event(), writing.seal, session.Session.log

    def slow(handle) -> None:
        if handle.name.find("step-00000004") >= 0:
            half.set()
            time.sleep(0.3)
        seal(handle)

    def interrupt(session, report) -> None:
        original(session, report)
        if report.step == 5:
            assert half.wait(30)
            raise KeyboardInterrupt

    monkeypatch.setattr(writing, "seal", slow)
    monkeypatch.setattr(session.Session, "log", interrupt)
    assert pretrain("a") == 130
    folder = RunFolder(Path("runs/a"))
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000002.pth"]
    assert folder.newest()[1].training["step"] == 2
    monkeypatch.undo()
    monkeypatch.chdir(workshop)
    assert pretrain("a", "--resume") == 0


# -- when there is no room


def no_room(monkeypatch, *names: str) -> None:
    """No space for files of these names."""
    original = files.require_space

    def require(path, needs) -> None:
        original(path, 1 << 60 if needs and path.name in names else needs)

    monkeypatch.setattr(files, "require_space", require)


@pytest.mark.parametrize("more", [[], FOREGROUND], ids=["background", "foreground"])
def test_a_save_without_room_is_a_warning_and_the_next_one_tries_again(workshop, monkeypatch, capfd, more) -> None:
    no_room(monkeypatch, "step-00000002.pth")
    assert pretrain("a", *more) == 0
    error = capfd.readouterr().err
    assert "warning: the checkpoint of step 2 is not saved: the disk is full: " in error
    assert error.count("is not saved") == 1
    folder = RunFolder(Path("runs/a"))
    assert [step for step, _ in folder.steps()] == [4, 6]


@pytest.mark.parametrize("more", [[], FOREGROUND], ids=["background", "foreground"])
def test_the_last_save_of_a_run_must_succeed(workshop, monkeypatch, capfd, more) -> None:
    with monkeypatch.context() as patch:
        no_room(patch, "step-00000006.pth")
        assert pretrain("a", *more) == 6
    error = capfd.readouterr().err
    assert "error: the disk is full: " in error
    assert "MB needed, " in error
    assert "step-00000006.pth" in error
    assert status(Path("runs/a"))["exit_code"] == 6
    assert RunFolder(Path("runs/a")).newest()[1].training["step"] == 4
    assert pretrain("a", "--resume") == 0


def test_a_best_model_that_could_not_be_saved_is_not_the_best(workshop, monkeypatch, capfd) -> None:
    """What best.pth holds and what the run believes of it stay the same thing."""
    calls = iter(range(1, 9))
    original = files.require_space

    def require(path, needs) -> None:
        first = path.name == "best.pth" and next(calls) == 1
        original(path, 1 << 60 if first else needs)

    monkeypatch.setattr(files, "require_space", require)
    assert pretrain("a") == 0
    assert "the checkpoint of step 3 is not saved" in capfd.readouterr().err
    best, last = load_checkpoint(Path("runs/a/best.pth")), load_checkpoint(Path("runs/a/last.pth"), training=True)
    assert best.lineage["step"] == last.training["best"]["step"] == 6


def test_a_run_whose_checkpoints_do_not_fit_is_refused(workshop, monkeypatch, capfd) -> None:
    usage = shutil.disk_usage(workshop)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=200_000))
    assert pretrain("a") == 6
    error = capfd.readouterr().err
    assert "the disk is full: 0.7 MB needed, 0.2 MB free; runs/a" in error
    assert not Path("runs/a/metrics.jsonl").exists()


def test_room_is_asked_for_as_many_checkpoints_as_are_kept(workshop, monkeypatch) -> None:
    asked: list[int] = []

    def ask(_, needs: int) -> None:
        asked.append(needs)
        if len(asked) in (1, 3, 4):
            raise ResourceError("the question is all that was wanted")

    monkeypatch.setattr(saving, "require_space", ask)
    for more in (["keep_last=1"], ["keep_last=2"], ["keep_last=9"], ["keep_last=1", "train.keep_every=4"]):
        sets = [item for setting in more for item in ("--set", setting if "." in setting else f"train.{setting}")]
        assert pretrain(f"a{len(asked)}", "--steps", "8", *sets) == (0 if len(asked) == 2 else 6)
    one = asked[1] - asked[0]  # a checkpoint more
    assert asked[2] - asked[1] == 3 * one  # of 8 steps only 5 checkpoints can be
    assert asked[3] - asked[0] == 2 * one
    assert pretrain("a1", "--steps", "8", "--resume", "--set", "train.keep_last=2") == 0
    assert asked[4] == one  # for the temporary one: the others are there already


def test_keep_every_is_a_multiple_of_save_every(workshop, capfd) -> None:
    assert pretrain("a", "--set", "train.keep_every=3") == 3
    assert "is 3, not a multiple of save_every 2" in capfd.readouterr().err
    assert pretrain("a", "--set", "train.keep_every=4", "--set", "train.keep_last=1") == 0
    assert [step for step, _ in RunFolder(Path("runs/a")).steps()] == [4, 6]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can make file systems")
    yield folder
    logging.shutdown()
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(path: Path) -> None:
    with suppress(OSError), open(path, "wb", buffering=0) as handle:
        while True:
            handle.write(bytes(1 << 12))


def test_a_disk_that_is_full_for_a_while(workshop, small_disk, monkeypatch, capfd) -> None:
    """Full to the last page from step 3 to 5: neither samples nor log nor the checkpoint of step 4 can be written."""
    original, filler = session.Session.log, small_disk / "filler"

    def fill(session, report) -> None:
        original(session, report)
        if report.step == 3:
            session.saving.settle()
            fill_up(filler)
        if report.step == 5:
            session.saving.settle()
            filler.unlink()
        logging.getLogger("txtgen").info("a long line, %s", "so that what is left of the last page is used" * 100)

    monkeypatch.setattr(session.Session, "log", fill)
    assert pretrain("a", "--runs-path", str(small_disk), "--set", "train.keep_last=1") == 0
    error = capfd.readouterr().err
    assert "the checkpoint of step 4 is not saved: the disk is full: " in error
    for name in ("samples.jsonl", "log.txt"):
        assert error.count(f"{name} is incomplete from here on: No space left on device") == 1
    folder = RunFolder(small_disk / "a")
    assert [step for step, _ in folder.steps()] == [6]
    assert {1, 2, 3, 6} <= {line["step"] for line in metrics(folder.path) if "loss" in line}
    assert status(folder.path)["state"] == "finished"


def test_a_disk_that_is_too_small_is_exit_6(workshop, small_disk, capfd) -> None:
    (small_disk / "filler").write_bytes(bytes(3_900_000))
    assert pretrain("a", "--runs-path", str(small_disk)) == 6
    assert "the disk is full" in capfd.readouterr().err
    assert not list((small_disk / "a").glob("**/*.pth"))


def test_a_fault_that_stays_is_told_at_the_last_save(workshop, monkeypatch, capfd) -> None:
    def fails(path: Path, *_: object) -> None:
        raise ResourceError("flushing to disk failed", str(path))

    monkeypatch.setattr(saving, "save_checkpoint", fails)
    monkeypatch.setattr(RunFolder, "save", lambda folder, step, *_, **__: fails(folder.step_path(step)))
    assert pretrain("a") == 6
    error = capfd.readouterr().err
    assert error.count("warning: the checkpoint of step") == 5  # of 2, 3 and 4, and twice of the last
    assert error.count("error: flushing to disk failed") == 1


# -- before the first checkpoint


def test_a_run_killed_before_its_first_checkpoint_begins_anew(workshop, monkeypatch, capfd) -> None:
    original = session.Session.log

    def kill(session, report) -> None:
        original(session, report)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "log", kill)
        assert pretrain("a") == 130
    assert not RunFolder(Path("runs/a")).occupied
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    assert "no checkpoint was saved yet: the run begins anew" in capfd.readouterr().err
    assert [line["step"] for line in metrics(Path("runs/a")) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_best_model_that_came_before_it_does_not_stand_in_the_way(workshop, monkeypatch, capfd) -> None:
    original = session.Session.log

    def kill(session, report) -> None:
        original(session, report)
        if report.step == 3:
            raise KeyboardInterrupt

    rarely = ["--set", "train.validate_every=1", "--set", "train.save_every=5", *FOREGROUND]
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "log", kill)
        assert pretrain("a", *rarely) == 130
    assert [path.name for path in Path("runs/a").rglob("*.pth")] == ["best.pth"]
    assert pretrain("a", *rarely) == 9, "it is not overwritten unless that is asked for"
    capfd.readouterr()
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    assert "no checkpoint was saved yet: the run begins anew" in capfd.readouterr().err
    assert [line["step"] for line in metrics(Path("runs/a")) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert pretrain("straight", *rarely) == 0
    ours, theirs = (load_checkpoint(Path("runs") / name / "best.pth") for name in ("a", "straight"))
    assert all(torch.equal(ours.model[name], theirs.model[name]) for name in theirs.model)


def test_a_cooldown_can_be_resumed_from_its_first_moment_on(workshop, monkeypatch) -> None:
    constant = ["--set", "train.schedule.kind=constant"]
    assert pretrain("stable", *constant) == 0
    original = session.Session.log

    def kill(session, report) -> None:
        original(session, report)
        raise KeyboardInterrupt

    cooldown = ["cooldown", "--from", "runs/stable/checkpoints/step-00000004.pth", "--steps", "3", "--name", "cool"]
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "log", kill)
        assert run(cooldown) == 130
    assert [step for step, _ in RunFolder(Path("runs/cool")).steps()] == [4]
    assert run(["pretrain", "--resume", "--name", "cool"]) == 0
    assert run([*cooldown[:-1], "straight"]) == 0
    one, two = (load_checkpoint(Path("runs") / name / "last.pth") for name in ("cool", "straight"))
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)
