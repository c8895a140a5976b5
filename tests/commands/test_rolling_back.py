"""A run that goes back from a loss that is not finite: as one that never read what was left out, also when resumed."""

import json
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

import txtgen.train.loss
from txtgen.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from txtgen.cli import run
from txtgen.commands.check import equal
from txtgen.commands.running.run_folder import RunFolder

ROLL_BACK = ["--set", "train.on_non_finite=roll_back"]


@pytest.fixture
def poison(monkeypatch):
    """Makes the loss of some passes NaN, counted from 1 over the whole process from here on."""

    def inject(*passes: int) -> None:
        original, numbers = txtgen.train.loss.batch_loss, count(1)

        def poisoned(*arguments):
            sums = original(*arguments)
            return replace(sums, objective=sums.objective * float("nan")) if next(numbers) in passes else sums

        monkeypatch.setattr(txtgen.train.loss, "batch_loss", poisoned)

    return inject


def pretrain(config: str, *arguments: str, name: str) -> int:
    return run(["pretrain", f"{config}.yaml", "--name", name, *arguments])


def step(name: str, number: int) -> Path:
    return RunFolder(Path("runs") / name).step_path(number)


def last(name: str) -> Checkpoint:
    return load_checkpoint(Path("runs") / name / "last.pth", training=True)


def assert_same_end(name: str, other: str) -> None:
    one, two = last(name), last(other)
    for key in ("step", "tokens", "optimizer", "bookmark", "weights"):
        assert equal(one.training[key], two.training[key]), key
    assert equal(one.model, two.model)


def only_up_to(name: str, number: int, new: str) -> None:
    """A copy of a run that was stopped after a step."""
    shutil.copytree(Path("runs") / name, Path("runs") / new)
    for later, path in RunFolder(Path("runs") / new).steps():
        if later > number:
            path.unlink()


def without_what_was_read(name: str, since: int, up_to: int, new: str) -> None:
    """A copy of a healthy run as it was after step `since`, but that it reads on behind step `up_to`."""
    only_up_to(name, since, new)
    checkpoint, beyond = (load_checkpoint(step(name, number), training=True) for number in (since, up_to))
    checkpoint.training["bookmark"] = beyond.training["bookmark"]
    save_checkpoint(step(new, since), checkpoint)


@pytest.mark.parametrize("config", ["decoder", "translator"])
@pytest.mark.parametrize("extra", [[], ["--set", "train.ema_decay=0.4"]], ids=["plain", "averaged"])
def test_it_goes_on_behind_the_step_from_the_last_checkpoint(workshop, capfd, poison, config, extra) -> None:
    extra = ["--steps", "6", *extra]
    assert pretrain(config, "--set", "train.save_every=1", "--set", "train.keep_last=9", *extra, name="healthy") == 0
    without_what_was_read("healthy", since=2, up_to=4, new="expected")
    assert run(["pretrain", "--resume", "--name", "expected"]) == 0
    poison(4)
    assert pretrain(config, "--set", "train.save_every=2", *extra, *ROLL_BACK, name="a") == 0
    assert_same_end("a", "expected")
    error = capfd.readouterr().err
    assert "step 4: the gradient is not finite; back to step 2, and on behind the documents " in error
    assert "(roll-back 1 of 3)" in error
    assert [change["rolled_back_from"] for change in last("a").lineage["changes"]] == [4]
    metrics = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "loss" in line] == [1, 2, 3, 4, 5, 6]
    documents = next(line for line in Path("runs/a/log.txt").read_text().splitlines() if "documents of step 4" in line)
    assert workshop.name in documents


def test_whoever_resumes_leaves_the_same_out_though_nothing_is_wrong_any_more(workshop, poison) -> None:
    poison(3, 5)
    assert pretrain("decoder", *ROLL_BACK, name="a") == 0  # from 3 to 2, then from step 4, the fifth pass, to 2 again
    only_up_to("a", 2, "resumed")
    assert len(load_checkpoint(step("resumed", 2)).lineage["changes"]) == 2
    assert run(["pretrain", "--resume", "--name", "resumed"]) == 0
    assert_same_end("resumed", "a")


def test_before_the_first_save_it_goes_back_to_the_beginning(workshop, poison) -> None:
    assert pretrain("decoder", "--set", "train.save_every=1", name="healthy") == 0
    poison(1)
    assert pretrain("decoder", *ROLL_BACK, "--steps", "3", name="a") == 0
    assert last("a").lineage["changes"][0]["step"] == 0
    assert last("a").training["bookmark"] == load_checkpoint(step("healthy", 4), training=True).training["bookmark"]


def test_too_many_in_a_row_end_the_run_and_later_ones_count_anew(workshop, capfd, poison) -> None:
    often = [*ROLL_BACK, "--set", "train.max_non_finite=2", "--set", "train.save_every=2"]
    poison(1, 2, 6, 7)  # twice back to the beginning; steps 1 to 3, and twice back to step 2
    assert pretrain("decoder", *often, name="a") == 0
    assert [change["step"] for change in last("a").lineage["changes"]] == [0, 0, 2, 2]
    poison(3, 4, 5)
    assert pretrain("decoder", *often, name="b") == 7
    error = capfd.readouterr().err
    assert "error: the gradient is not finite; step 3, after 2 roll-backs to step 2, documents " in error
    assert f"the weights of {step('b', 2)}, just before it, may be at fault themselves; remove that file" in error
    assert f"remove that file and go on from {step('b', 0)} with a lower learning rate: txtgen pretrain" in error
    assert "--resume --name b --accept-changes --set train.optimizer.learning_rate=0.005" in error
    status = json.loads(Path("runs/b/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("diverged", 7)
    assert all(torch.isfinite(weight).all() for weight in last("b").model.values())


def test_the_count_goes_on_after_a_resume(workshop, capfd, poison) -> None:
    once = [*ROLL_BACK, "--set", "train.max_non_finite=1"]
    poison(3)
    assert pretrain("decoder", *once, name="a") == 0
    only_up_to("a", 2, "resumed")
    poison(1)
    assert run(["pretrain", "--resume", "--name", "resumed"]) == 7
    assert "step 3, after 1 roll-backs to step 2" in capfd.readouterr().err


def test_a_damaged_checkpoint_is_passed_over_and_the_good_one_stays(workshop, capfd, monkeypatch, poison) -> None:
    original = RunFolder.newest

    def damaged(self: RunFolder):
        step("a", 4).write_bytes(step("a", 4).read_bytes()[:-100])
        return original(self)

    monkeypatch.setattr(RunFolder, "newest", damaged)
    poison(5)
    assert pretrain("decoder", *ROLL_BACK, "--set", "train.keep_last=2", "--steps", "5", name="a") == 0
    assert "damaged" in capfd.readouterr().err
    assert last("a").lineage["changes"][0]["step"] == 2


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_run_that_ends_says_how_to_go_on_and_what_it_says_works(workshop, capfd, poison, policy) -> None:
    arguments = ["--set", f"train.on_non_finite={policy}", "--set", "train.max_non_finite=1"]
    poison(5, 6)
    assert pretrain("decoder", *arguments, name="a") == 7
    error = capfd.readouterr().err
    failed = 5 if policy == "stop" else 6
    assert f"step {failed}, documents " in error
    told = "the weights of" if policy == "stop" else "the last good checkpoint is"
    assert f"{told} {step('a', 4)}" in error
    command = error.rpartition("these documents: txtgen ")[2].partition(";")[0]
    poison(failed - 4)
    assert run(command.split()) == 0
    assert last("a").lineage["changes"][0]["rolled_back_from"] == failed


def test_the_advice_to_leave_a_checkpoint_whose_weights_are_at_fault_works(workshop, capfd, poison) -> None:
    poison(5)
    assert pretrain("decoder", name="a") == 7
    error = capfd.readouterr().err
    assert f"remove that file and go on from {step('a', 2)} with a lower learning rate: " in error
    step("a", 4).unlink()
    command = error.rpartition("with a lower learning rate: txtgen ")[2].partition(";")[0]
    assert run(command.split()) == 0
    assert last("a").training["step"] == 6


def test_where_nothing_was_saved_the_end_says_so(workshop, capfd, poison) -> None:
    poison(1)
    assert pretrain("decoder", name="a") == 7
    assert "nothing was saved yet" in capfd.readouterr().err


@pytest.mark.parametrize("trainable", ["[]", "['*_norm.*']"], ids=["alone", "and norms"])
def test_with_an_adapter_it_goes_on_behind_the_step_and_the_base_stays(workshop, poison, trainable) -> None:
    assert pretrain("decoder", "--steps", "2", name="base") == 0
    adapter = ["--set", f"adapter={{kind: lora, rank: 2, trainable: {trainable}}}", "--set", "adapter.base_bits=8"]
    common = [*adapter, "--steps", "6", "--set", "train.keep_last=9", "--set", "train.batch_tokens=128"]
    finetune = ["finetune", "text/a.txt", "--base", "runs/base", *common, "--name"]
    assert run([*finetune, "healthy", "--set", "train.save_every=1"]) == 0
    without_what_was_read("healthy", since=2, up_to=4, new="expected")
    assert run(["finetune", "--resume", "--name", "expected"]) == 0
    poison(4)
    assert run([*finetune, "a", "--set", "train.save_every=2", *ROLL_BACK]) == 0
    assert [change["rolled_back_from"] for change in last("a").lineage["changes"]] == [4]
    assert_same_end("a", "expected")
