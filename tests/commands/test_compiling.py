"""train.compile through the command line: told where it fails, repeated on resume."""

import pytest
import torch

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands.running import probe

COMPILED = ["pretrain", "decoder.yaml", "--name", "run", "--set", "train.compile=true"]


@pytest.fixture
def compiler(monkeypatch):
    """torch.compile as it is where all goes well; the list says for how many layers it was asked."""
    asked: list[bool] = []

    def fine(function, dynamic):
        asked.append(dynamic)
        return function

    monkeypatch.setattr(torch, "compile", fine)
    return asked


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def saved(workshop):
    return load_checkpoint(workshop / "runs" / "run" / "last.pth", training=True)


def test_a_run_that_cannot_compile_tells_why_and_goes_on(workshop, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch, "compile", None)
    assert run(COMPILED) == 0
    assert "the layers are not compiled: TypeError" in (workshop / "runs" / "run" / "log.txt").read_text()
    assert said(capsys).count("the layers are not compiled: TypeError") == 1
    assert saved(workshop).training["compiled"] == [True, False]


def test_a_resumed_run_compiles_again_and_says_where_it_cannot(workshop, compiler, monkeypatch, capsys) -> None:
    assert run([*COMPILED, "--steps", "2"]) == 0
    assert run([*COMPILED, "--steps", "4", "--resume", "--accept-changes"]) == 0
    assert compiler == [False, False]
    assert saved(workshop).training["compiled"] == [True, True]
    assert saved(workshop).lineage["compile"] is True
    assert "compiled" not in said(capsys)
    monkeypatch.setattr(torch, "compile", None)
    assert run([*COMPILED, "--steps", "6", "--resume", "--accept-changes"]) == 0
    assert "up to now they were compiled, so rounding will differ" in said(capsys)


def test_another_setting_on_resume_is_told(workshop, compiler, capsys) -> None:
    assert run([*COMPILED, "--steps", "2"]) == 0
    assert run(["pretrain", "decoder.yaml", "--name", "run", "--steps", "4", "--resume", "--accept-changes"]) == 0
    assert "compile True -> auto" in said(capsys)
    assert saved(workshop).training["compiled"] == ["auto", False]


def test_a_dry_run_times_compiled_layers_in_whole_batches(workshop, compiler, monkeypatch) -> None:
    for name in ("PROBE_SECONDS", "VALIDATION_SECONDS"):
        monkeypatch.setattr(probe, name, 0.0)
    assert run([*COMPILED, "--dry-run"]) == 0
    assert compiler == [False]
