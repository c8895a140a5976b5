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
    assert "nothing to do in runs/early: 2 validations" in capfd.readouterr().err
    assert run([*arguments, "--resume", "--set", "train.patience=4"]) == 0
    assert list(lines(folder, "val_loss")) == [1, 2, 3, 4, 5]


def test_the_average_of_checkpoints_is_their_mean(workshop, trained, capfd) -> None:
    parts = sorted((trained / "runs" / "decoder" / "checkpoints").iterdir())
    assert run(["average", *map(str, parts), "--out", "mean.pth", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["path"] == "mean.pth"
    mean, each = load_checkpoint(Path("mean.pth"), training=True), [load_checkpoint(path) for path in parts]
    for name, weight in mean.model.items():
        expected = torch.stack([one.model[name].double() for one in each]).mean(0).float()
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-9)
    assert mean.lineage["parents"] == [one.fingerprint for one in each]
    assert mean.training is None
    assert run(["generate", "mean.pth", "--prompt", "the", "--max-new-tokens", "2"]) == 0


def test_the_average_of_one_model_is_that_model(workshop, trained) -> None:
    last = str(trained / "runs" / "translator" / "last.pth")
    assert run(["average", last, last, last, "--out", "same.pth"]) == 0
    same, one = load_checkpoint(Path("same.pth")), load_checkpoint(Path(last))
    assert all(torch.equal(weight, one.model[name]) for name, weight in same.model.items())
    assert run(["average", last, last, "--out", "same.pth"]) == 9
    assert run(["average", last, last, "--out", "same.pth", "--overwrite"]) == 0


def test_other_models_and_tokenizers_are_refused(workshop, trained, capfd) -> None:
    decoder, translator = (str(trained / "runs" / name / "last.pth") for name in ("decoder", "translator"))
    assert run(["average", decoder, translator, "--out", "mean.pth"]) == 5
    assert "they differ in model, tokenizer, weights" in capfd.readouterr().err.replace("\n", " ")
    assert (
        run(["pretrain", "decoder.yaml", "--name", "other", "--steps", "1", "--set", "tokenizer.vocab_size=280"]) == 0
    )
    assert run(["average", decoder, "runs/other", "--out", "mean.pth"]) == 5
    assert "tokenizer" in capfd.readouterr().err
    assert run(["average", decoder, "--out", "mean.pth"]) == 2
    assert run(["average", decoder, decoder, "--out", "mean.bin"]) == 2
    assert not Path("mean.pth").exists()
