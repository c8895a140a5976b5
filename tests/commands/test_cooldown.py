"""Finishing a run in its stable phase, through the command line."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands import pretrain
from txtgen.commands.running import session

WARM = "train.schedule={kind: constant, warmup_steps: 1}"


def lines(folder: Path, key: str) -> dict[int, float]:
    read = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in read if key in line}


def trapezoid(cooldown: int) -> str:
    return f"train.schedule={{kind: trapezoid, warmup_steps: 1, cooldown_steps: {cooldown}}}"


def untouched(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("schedule", [WARM, trapezoid(1)], ids=["constant", "trapezoid"])
@pytest.mark.parametrize("extra", [[], ["--set", "train.ema_decay=0.4"]], ids=["plain", "averaged"])
def test_it_equals_a_run_that_was_meant_to_end_there(workshop, schedule, extra) -> None:
    """Weights, losses, learning rates and validation, with dropout, from the middle of a run that was to be longer."""
    assert run(["pretrain", "decoder.yaml", "--name", "long", "--set", schedule, *extra]) == 0
    before = untouched(Path("runs/long"))
    assert run(["cooldown", "--from", "runs/long/checkpoints/step-00000002.pth", "--steps", "3", "--name", "end"]) == 0
    assert untouched(Path("runs/long")) == before
    straight = ["pretrain", "decoder.yaml", "--steps", "5", "--set", trapezoid(3), "--name", "straight", *extra]
    assert run(straight) == 0
    ended, meant = Path("runs/end"), Path("runs/straight")
    for key in ("loss", "learning_rate", "val_loss", "tokens"):
        later = {step: value for step, value in lines(meant, key).items() if step > 2}
        assert lines(ended, key) == later, key
    ours, theirs = (load_checkpoint(folder / "last.pth", training=True) for folder in (ended, meant))
    assert all(torch.equal(ours.model[name], theirs.model[name]) for name in theirs.model)
    assert ours.training["step"] == 5


def test_it_knows_where_it_comes_from_and_resumes(workshop) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "long", "--set", WARM]) == 0
    base = load_checkpoint(Path("runs/long/last.pth"))
    assert run(["cooldown", "--from", "runs/long"]) == 0
    folder = Path("runs/long-cooldown-1")
    cooled = load_checkpoint(folder / "last.pth", training=True)
    assert cooled.training["step"] == 6 + 3
    assert cooled.lineage["ancestors"] == [base.fingerprint]
    assert load_checkpoint(folder / "best.pth").lineage["step"] > 6
    assert run(["cooldown", "--from", "runs/long", "--steps", "4", "--name", "cut", "--set", "train.save_every=1"]) == 0
    saved = sorted(Path("runs/cut/checkpoints").iterdir())
    assert [path.stem for path in saved] == [f"step-{step:08}" for step in range(6, 11)]
    for path in saved[2:]:
        path.unlink()
    assert run(["pretrain", "--resume", "--name", "cut"]) == 0
    assert run(["cooldown", "--from", "runs/long", "--steps", "4", "--name", "whole"]) == 0
    cut, whole = (load_checkpoint(Path(f"runs/{name}/last.pth")) for name in ("cut", "whole"))
    assert all(torch.equal(cut.model[name], whole.model[name]) for name in whole.model)
    assert cut.lineage["ancestors"] == [base.fingerprint]


def test_a_finetuned_run_cools_down_too(workshop, trained) -> None:
    base = str(trained / "runs" / "decoder" / "last.pth")
    assert run(["finetune", "text", "--base", base, "--name", "tuned", "--steps", "4", "--set", WARM]) == 0
    assert run(["cooldown", "--from", "runs/tuned", "--steps", "2", "--name", "end"]) == 0
    ancestors = load_checkpoint(Path("runs/end/last.pth")).lineage["ancestors"]
    assert ancestors == [load_checkpoint(Path(path)).fingerprint for path in (base, "runs/tuned/last.pth")]


@pytest.mark.parametrize(
    ("start", "arguments", "code", "message"),
    [
        (["--set", "train.schedule={kind: cosine}"], [], 3, "cosine schedule is never stable"),
        (["--set", trapezoid(3)], [], 3, "at step 6 of 6 the learning rate is falling already"),
        (["--set", "train.schedule={kind: constant, warmup_steps: 6}"],
         ["--from", "runs/long/checkpoints/step-00000002.pth"], 3, "at step 2 of 6 the learning rate is still rising"),
        (["--set", WARM], ["--set", "train.clip_norm=3"], 3, "train.clip_norm"),
        (["--set", WARM], ["--steps", "2", "--minutes", "1"], 2, "two budgets"),
    ],
)  # fmt: skip
def test_what_cannot_be_cooled_down_is_refused(workshop, capfd, start, arguments, code, message) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "long", *start]) == 0
    assert run(["cooldown", "--from", "runs/long", *arguments]) == code
    assert message in capfd.readouterr().err
    assert [path.name for path in Path("runs").iterdir()] == ["long"]


def test_a_signal_before_the_first_step_ends_it_with_its_code(workshop, monkeypatch) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "long", "--set", WARM]) == 0
    monkeypatch.setattr(pretrain, "_model", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert run(["cooldown", "--from", "runs/long", "--name", "end"]) == 143
    assert not Path("runs/end/last.pth").exists()


def test_a_model_without_training_state_is_refused(workshop, trained, capfd) -> None:
    assert run(["cooldown", "--from", str(trained / "runs" / "decoder" / "best.pth")]) == 5
    assert "no training state" in capfd.readouterr().err


def test_minutes_are_filled_by_a_rate_that_falls_to_its_end(workshop, a_second_a_step, monkeypatch) -> None:
    """By a clock that goes on a second a step, and that the run it came from did not use up."""
    assert run(["pretrain", "decoder.yaml", "--name", "long", "--set", WARM]) == 0
    before, tick = [], session.Session.log

    def noting(self, report) -> None:
        before.append(self.job.resumed["seconds"])
        tick(self, report)

    monkeypatch.setattr(session.Session, "log", noting)
    assert run(["cooldown", "--from", "runs/long", "--minutes", "0.5", "--name", "end"]) == 0
    rates = lines(Path("runs/end"), "learning_rate")
    assert list(rates) == list(range(7, 6 + 30 + 1))
    assert list(rates.values()) == sorted(rates.values(), reverse=True)
    assert rates[7] == pytest.approx(0.01, rel=0.05)
    assert rates[36] < 0.001
    assert set(before) == {0.0}
