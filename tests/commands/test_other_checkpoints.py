"""Checkpoints that are not of this run, or not of this version."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import txtgen
from txtgen.checkpoint import load_checkpoint, save_checkpoint, writing
from txtgen.cli import run
from txtgen.commands.running.run_folder import RunFolder
from txtgen.config.checkpoint import CheckpointConfig

OLD_RUN = Path(__file__).parent.parent / "old_run"
"""As txtgen left it on 25 November 2026 (3ab78b9), stopped after step 400 of 404: never to be made anew."""


@pytest.fixture
def copy(workshop, trained) -> RunFolder:
    """A copy of a run, of which the last step is to be done again."""
    shutil.copytree(trained / "runs" / "decoder", "runs/a")
    folder = RunFolder(Path("runs/a"))
    folder.step_path(6).unlink()
    return folder


def without_norm(weights: dict[str, torch.Tensor]) -> None:
    del weights["decoder.final_norm.weight"]


def with_a_stranger(weights: dict[str, torch.Tensor]) -> None:
    weights["stranger"] = torch.zeros(2)


def narrower(weights: dict[str, torch.Tensor]) -> None:
    weights["token_embedding.weight"] = weights["token_embedding.weight"][:, :8].clone()


def of_whole_numbers(weights: dict[str, torch.Tensor]) -> None:
    weights["decoder.final_norm.weight"] = weights["decoder.final_norm.weight"].to(torch.int64)


def all_narrower(weights: dict[str, torch.Tensor]) -> None:
    weights.update({name: weight[..., :1].clone() for name, weight in weights.items()})


OTHERS = {
    without_norm: "missing decoder.final_norm.weight",
    with_a_stranger: "unexpected stranger",
    narrower: "token_embedding.weight is [287, 8], expected [287, 16]",
    of_whole_numbers: "decoder.final_norm.weight is torch.int64, expected torch.float32",
    all_narrower: " more; ",
}


@pytest.mark.parametrize(("change", "told"), OTHERS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_weights_of_another_model_are_listed_whatever_they_are_for(copy, capfd, change, told) -> None:
    path = copy.step_path(4)
    checkpoint = load_checkpoint(path, training=True)
    change(checkpoint.model)
    save_checkpoint(path, checkpoint)
    for command in (
        ["pretrain", "decoder.yaml", "--resume", "--name", "a"],
        ["finetune", "chats.jsonl", "--base", str(path), "--name", "b"],
        ["generate", str(path), "--prompt", "the cat"],
    ):
        assert run(command) == 5, command
        error = capfd.readouterr().err
        assert "error: the weights do not fit the model: " in error
        assert told in error
        assert error.count(" is [") <= 5
        assert "runs/a" in error
        assert "Traceback" not in error


def test_an_optimizer_of_another_model_is_refused(copy, capfd) -> None:
    checkpoint = load_checkpoint(copy.step_path(4), training=True)
    state = checkpoint.training["optimizer"]["adamw"]["token_embedding.weight"]
    state["exp_avg"] = state["exp_avg"][:, :8].clone()
    save_checkpoint(copy.step_path(4), checkpoint)
    assert run(["pretrain", "decoder.yaml", "--resume", "--name", "a"]) == 5
    assert "exp_avg of token_embedding.weight" in capfd.readouterr().err


def test_a_run_of_another_architecture_cannot_be_resumed_as_this_one(workshop, trained, capfd) -> None:
    shutil.copytree(trained / "runs" / "translator", "runs/a")
    assert run(["pretrain", "decoder.yaml", "--resume", "--name", "a"]) == 3
    error = capfd.readouterr().err
    assert "model.kind: 'encoder_decoder' -> 'decoder'" in error
    assert "finetune goes on from the weights" in error


def test_a_checkpoint_of_a_newer_version_says_so_and_the_one_before_is_not_taken(copy, capfd, monkeypatch) -> None:
    """To fall back would throw away what the newer version has learnt."""
    path = copy.step_path(4)
    newer = load_checkpoint(path, training=True)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "FORMAT", 2)
        save_checkpoint(path, newer)
    for command in (
        ["pretrain", "decoder.yaml", "--resume", "--name", "a"],
        ["generate", str(path), "--prompt", "the cat"],
    ):
        assert run(command) == 5, command
        error = capfd.readouterr().err
        assert f"has format 2 (of txtgen {txtgen.__version__}), this txtgen {txtgen.__version__} reads up to 1" in error
        assert "update txtgen" in error
    assert path.exists()


def test_a_config_with_unknown_keys_is_of_a_newer_version_and_not_damaged(copy, capfd, monkeypatch) -> None:
    path, plain = copy.step_path(4), CheckpointConfig.plain
    newer = load_checkpoint(path, training=True)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointConfig, "plain", lambda self: {**plain(self), "wings": None})
        save_checkpoint(path, newer)
    assert run(["pretrain", "decoder.yaml", "--resume", "--name", "a"]) == 5
    error = capfd.readouterr().err
    assert "config says more than this txtgen knows (wings: " in error
    assert "update txtgen" in error
    assert path.exists()


def test_a_checkpoint_of_an_older_version_generates_and_is_gone_on_from(workshop, capfd) -> None:
    shutil.copytree(OLD_RUN, "runs/old")
    generate = ["generate", "runs/old/checkpoints/step-00000400.pth", "--prompt", "the cat", "--max-new-tokens", "12"]
    assert run([*generate, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["token_ids"] == [266, 264, 267, 267, 267, 265, 266, 264, 267, 267, 279, 265]
    assert found["logprob"] == pytest.approx(-9.559299945831299, abs=1e-3)
    assert run(["pretrain", "--resume", "--name", "old"]) == 0
    lines = [json.loads(line) for line in Path("runs/old/metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line and line["step"] > 401}
    assert losses == pytest.approx(
        {402: 1.2304880619049072, 403: 1.1332423686981201, 404: 1.3665921688079834}, rel=1e-4
    )
    measured = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    assert measured == pytest.approx({404: 1.1381810305146831}, rel=1e-4)


def test_a_place_in_the_data_of_another_version_is_refused(copy, capfd) -> None:
    checkpoint = load_checkpoint(copy.step_path(4), training=True)
    checkpoint.training["bookmark"] = {**checkpoint.training["bookmark"], "version": 1}
    save_checkpoint(copy.step_path(4), checkpoint)
    assert run(["pretrain", "decoder.yaml", "--resume", "--name", "a"]) == 5
    error = capfd.readouterr().err
    assert "the place in the data has format 1" in error
    assert "continue with the version of txtgen that saved it" in error
