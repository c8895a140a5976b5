"""Averaged weights and early stopping, through the command line."""

import json
from pathlib import Path

import torch

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run

CONSTANT = ["--set", "train.schedule={kind: constant}"]


def lines(folder: Path, key: str) -> dict[int, float]:
    read = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in read if key in line}


def test_a_run_with_an_average_resumes_exactly(workshop) -> None:
    averaged = ["pretrain", "decoder.yaml", *CONSTANT, "--set", "train.ema_decay=0.4"]
    assert run([*averaged, "--name", "straight"]) == 0
    assert run([*averaged, "--name", "cut", "--steps", "3"]) == 0
    assert run([*averaged, "--name", "cut", "--resume"]) == 0
    straight, cut = (load_checkpoint(Path(f"runs/{name}/last.pth"), training=True) for name in ("straight", "cut"))
    for name, weight in straight.model.items():
        assert torch.equal(weight, cut.model[name]), name
        assert torch.equal(straight.training["weights"][name], cut.training["weights"][name]), name
        assert not torch.equal(weight, straight.training["weights"][name]), name
    assert lines(Path("runs/straight"), "val_loss") == lines(Path("runs/cut"), "val_loss")


def test_the_average_is_what_is_validated_and_kept_and_the_weights_go_on_as_without(workshop) -> None:
    assert run(["pretrain", "decoder.yaml", *CONSTANT, "--name", "plain"]) == 0
    assert run(["pretrain", "decoder.yaml", *CONSTANT, "--name", "mean", "--set", "train.ema_decay=0.4"]) == 0
    plain, mean = Path("runs/plain"), Path("runs/mean")
    assert lines(plain, "loss") == lines(mean, "loss")
    assert lines(plain, "val_loss") != lines(mean, "val_loss")
    weights = load_checkpoint(mean / "last.pth", training=True).training["weights"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_checkpoint(plain / "last.pth").model.items())
    best = load_checkpoint(mean / "best.pth").model
    last = load_checkpoint(mean / "last.pth").model
    assert all(torch.equal(best[name], last[name]) for name in last)


def test_a_run_stops_when_validation_gets_no_better(workshop, capfd) -> None:
    arguments = ["pretrain", "decoder.yaml", "--name", "early", *CONSTANT, "--set", "train.patience=2"]
    arguments += ["--set", "train.validate_every=1", "--set", "train.optimizer.learning_rate=1e-30", "--steps", "50"]
    assert run(arguments) == 0
    folder = Path("runs/early")
    assert list(lines(folder, "val_loss")) == [1, 2, 3]
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["reason"], status["exit_code"]) == ("finished", "no better validation in 2", 0)
    assert load_checkpoint(folder / "last.pth", training=True).training["step"] == 3
    assert load_checkpoint(folder / "best.pth").lineage["step"] == 1
    assert "stopped early" in capfd.readouterr().err
    assert run([*arguments, "--resume"]) == 0
    assert "nothing to do: 2 validations" in capfd.readouterr().err
    assert run([*arguments, "--resume", "--set", "train.patience=4"]) == 0
    assert list(lines(folder, "val_loss")) == [1, 2, 3, 4, 5]
