"""Faults beside the training itself: told once, and the run goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import txtgen.commands.validation
from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands.console import ProgressDisplay
from txtgen.commands.sampling import Samples
from txtgen.commands.status import HEARTBEAT_SECONDS, Status


def test_a_metric_or_a_sample_that_fails_is_told_once_and_training_goes_on(workshop, capfd, monkeypatch) -> None:
    def fails(*_, **__):
        raise ZeroDivisionError("a bug")

    original = Samples.generate
    asked = iter([original])
    monkeypatch.setattr(txtgen.commands.validation, "evaluate_loss", fails)
    monkeypatch.setattr(Samples, "generate", lambda self: next(asked, fails)(self))
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--set", "samples.every=2"]) == 0
    error = capfd.readouterr().err
    assert error.count("validation at step") == error.count("sampling at step") == 1
    assert "ZeroDivisionError" in error
    assert "Traceback" in Path("runs/a/log.txt").read_text()
    assert load_checkpoint(Path("runs/a/last.pth")).lineage["step"] == 6


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("config", "where", "what"),
    [
        ("decoder", "txtgen.generator.generator.run_steps", "sampling at step 3 failed"),
        ("decoder", "txtgen.evaluate.loss.batch_loss", "validation at step 3 failed"),
        ("translator", "txtgen.generator.generator.run_steps", "validation at step 2 failed"),
    ],
    ids=["samples", "loss", "translations"],
)
def test_memory_that_runs_out_beside_training_does_not_end_it(
    workshop, trained, capfd, monkeypatch, config, where, what, error
) -> None:
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(where, fails)
    assert run(["pretrain", f"{config}.yaml", "--name", config]) == 0
    told = capfd.readouterr().err
    assert f"{what}, and training goes on: out of memory" in told
    assert told.count("training goes on") == 1
    ours, straight = (load_checkpoint(folder / config / "last.pth") for folder in (Path("runs"), trained / "runs"))
    assert all(torch.equal(weight, straight.model[name]) for name, weight in ours.model.items())


def test_a_run_of_no_steps_has_nothing_to_do(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "0"]) == 0
    assert "nothing to do: 0 of 0 steps are done" in capfd.readouterr().err
    assert json.loads(Path("runs/a/status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(workshop, capfd, seed) -> None:
    assert run(["pretrain", "decoder.yaml", "--set", f"seed={seed}"]) == 3
    assert "seed" in capfd.readouterr().err


def test_the_status_is_written_when_it_changes_and_now_and_then(tmp_path, monkeypatch) -> None:
    now = [100.0]
    status = Status(tmp_path / "status.json", clock=lambda: now[0])
    read = lambda: json.loads((tmp_path / "status.json").read_text())  # noqa: E731
    status.set("running", steps=9)
    status.beat(step=1, loss=2.0)
    assert "loss" not in read()
    now[0] += HEARTBEAT_SECONDS
    monkeypatch.setattr(time, "time", lambda: 5.0)  # the wall clock jumps back
    status.beat(step=2, loss=1.5)
    assert (read()["step"], read()["loss"], read()["state"], read()["time"]) == (2, 1.5, "running", 5.0)
    with status.during("saving"):
        assert read()["state"] == "saving"
    assert read()["state"] == "running"
    with pytest.raises(KeyError), status.failures():
        raise KeyError("why")
    assert (read()["state"], read()["exit_code"], read()["steps"]) == ("failed", 1, 9)


def test_a_terminal_that_goes_away_takes_nothing_with_it(monkeypatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        display = ProgressDisplay(3)
        with display:
            display.note("nobody reads this")
            display.note("nor this")
        broken.write("nor what others write\n")  # it leads nowhere now, and does not fail
        broken.flush()
    monkeypatch.setattr(sys, "stderr", None)
    ProgressDisplay(3).note("there is no standard error at all")


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>&1 | head -n 1", "2>&-", ">&- 2>&- <&-"])
def test_a_run_whose_output_is_closed_ends_well(workshop, redirection) -> None:
    command = f'"{sys.executable}" -m txtgen pretrain decoder.yaml --name a {redirection}'
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False)
    status = json.loads(Path("runs/a/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("finished", 0)
    assert load_checkpoint(Path("runs/a/last.pth")).lineage["step"] == 6
