"""Faults beside the training itself: told once, and the run goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

import txtgen.commands.running.measuring
import txtgen.train.loss
from txtgen.checkpoint import load_checkpoint, save_checkpoint
from txtgen.cli import run
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.running.sampling import Samples
from txtgen.commands.running.status import HEARTBEAT_SECONDS, Status
from txtgen.commands.showing.console import ProgressDisplay


def test_a_metric_or_a_sample_that_fails_is_told_once_and_training_goes_on(workshop, capfd, monkeypatch) -> None:
    def fails(*_, **__):
        raise ZeroDivisionError("a bug")

    original = Samples.generate
    asked = iter([original])
    monkeypatch.setattr(txtgen.commands.running.measuring, "evaluate_loss", fails)
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


def test_nor_does_memory_for_an_average_that_is_to_be_measured(workshop, capfd, monkeypatch) -> None:
    averaged = ["--set", "train.ema_decay=0.5"]
    assert run(["pretrain", "decoder.yaml", "--name", "straight", *averaged]) == 0
    capfd.readouterr()

    def fails(_average):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("txtgen.train.WeightAverage.applied", fails)
    assert run(["pretrain", "decoder.yaml", "--name", "a", *averaged]) == 0
    assert "validation at step 0 failed, and training goes on: OutOfMemoryError" in capfd.readouterr().err
    ours, straight = (load_checkpoint(Path("runs") / name / "last.pth") for name in ("a", "straight"))
    assert all(torch.equal(weight, straight.model[name]) for name, weight in ours.model.items())


def test_a_run_of_no_steps_is_refused(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "0"]) == 3
    assert "train.steps: expected a whole number" in capfd.readouterr().err
    assert not Path("runs").exists()
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--minutes", "0.0000001"]) == 3
    assert "there is nothing to do: the time of the run is over" in capfd.readouterr().err
    assert json.loads(Path("runs/a/status.json").read_text())["state"] == "failed"
    assert run(["runs", "list"]) == 0
    assert "1,000,000,000" not in capfd.readouterr().out


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


def test_a_loss_that_jumps_is_told_when_it_does_and_at_the_end(workshop, capfd, monkeypatch) -> None:
    steps, original = count(1), txtgen.train.loss.batch_loss

    def jumping(*arguments):
        sums = original(*arguments)
        return replace(sums, nll=sums.nll * 10) if next(steps) in (24, 25) else sums

    monkeypatch.setattr(txtgen.train.loss, "batch_loss", jumping)
    more = ["--set", "train.validate_every=0", "--set", "train.save_every=0", "--set", "samples.prompts=[]"]
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "30", *more]) == 0
    error = capfd.readouterr().err
    assert error.count("warning: the loss jumped at step 24: ") == error.count("warning: the loss jumped") == 1
    assert "\nthe loss jumped at step 24\n" in error


def test_a_wall_clock_that_jumps_changes_nothing(workshop, trained, monkeypatch) -> None:
    """By a day back or forth at every look at it; as daylight saving, corrections and batteries that were empty do."""
    jumps, jumping = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: jumping() + 86_400 * jumps.randint(-1, 1))
    minutes = ["--minutes", "5"]  # the steps are over long before: but it fits them into the time
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "4", *minutes]) == 0
    assert run(["pretrain", "--resume", "--name", "a", "--steps", "6", "--accept-changes", *minutes]) == 0
    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    # A resumed run's clock goes on from when its checkpoint was made, which was before that had been written.
    seconds = [line["seconds"] for line in lines if "save_seconds" not in line]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    assert seconds[-1] < 3600
    assert all(line["tokens_per_second"] > 0 and 0 <= line["data_wait_share"] <= 1 for line in lines if "loss" in line)
    ours, straight = (load_checkpoint(folder / "last.pth") for folder in (Path("runs/a"), trained / "runs/decoder"))
    assert ours.lineage["step"] == straight.lineage["step"] == 6
    assert json.loads(Path("runs/a/status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_counters_may_be_larger_than_any_of_32_bits(workshop, seed) -> None:
    """A run as it would be after months: nothing overflows, and it is resumed from there, exactly."""
    many, more = 2**31 - 2, 2**40
    start = [
        "pretrain",
        "decoder.yaml",
        "--name",
        "a",
        "--set",
        f"seed={seed}",
        "--set",
        "train.schedule.kind=constant",
    ]
    assert run([*start, "--set", f"seed={seed}", "--steps", "2"]) == 0
    folder = RunFolder(Path("runs/a"))
    checkpoint = load_checkpoint(folder.step_path(2), training=True)
    checkpoint.training.update(step=many, tokens=more, validated=many)
    checkpoint.lineage.update(step=many, tokens=more)
    save_checkpoint(folder.step_path(many), checkpoint)
    folder.step_path(2).unlink()
    shutil.copytree("runs/a", "runs/b")
    for name, stops in (("a", [many + 4]), ("b", [many + 2, many + 4])):
        for steps in stops:
            assert run(["pretrain", "--resume", "--name", name, "--steps", str(steps)]) == 0
    ends = [load_checkpoint(Path("runs") / name / "last.pth", training=True) for name in ("a", "b")]
    assert [end.training["step"] for end in ends] == [2**31 + 2] * 2
    assert ends[0].training["tokens"] == ends[1].training["tokens"] > more
    assert all(torch.equal(weight, ends[1].model[name]) for name, weight in ends[0].model.items())
    assert all(torch.isfinite(weight).all() for weight in ends[0].model.values())
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line][-4:] == [many + 1, many + 2, many + 3, many + 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [[], ["--nproc", "2"], ["--set", "data.workers=2"]], ids=["one", "ranks", "workers"]
)
def test_a_run_that_is_stopped_goes_on(workshop, arguments) -> None:
    """SIGSTOP to all of its processes, as a laptop's sleep or a batch system does, and SIGCONT."""
    command = [sys.executable, "-m", "txtgen", "pretrain", "decoder.yaml", "--steps", "200", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([*command, "--name", "straight"], env=environment, capture_output=True).returncode == 0
    process = subprocess.Popen(
        [*command, "--name", "stopped"], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stderr is not None
        metrics = Path("runs/stopped/metrics.jsonl")
        try:
            while not metrics.exists():  # until the first step is told of
                assert process.poll() is None
                time.sleep(0.02)
            for _ in range(2):
                os.killpg(process.pid, signal.SIGSTOP)
                done = metrics.read_bytes()
                time.sleep(3)
                assert metrics.read_bytes() == done
                os.killpg(process.pid, signal.SIGCONT)
                time.sleep(0.2)
            rest = process.stderr.read()
            process.wait(60)
        finally:
            with suppress(ProcessLookupError):  # a stopped process would be waited for without end
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, rest
    ours, straight = (load_checkpoint(Path("runs") / name / "last.pth") for name in ("stopped", "straight"))
    assert all(torch.equal(weight, straight.model[name]) for name, weight in ours.model.items())


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
