"""Runs whose text comes from worker processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands.running import session


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("config", ["decoder", "translator"])
def test_workers_change_nothing_and_their_number_may_change_on_the_way(workshop, trained, config) -> None:
    start = ["pretrain", f"{config}.yaml", "--name", "a", "--set", "train.validation_metric=loss"]
    steps = len(losses(trained / "runs" / config))
    straight = losses(trained / "runs" / config)
    assert run([*start, "--set", "data.workers=2"]) == 0
    assert losses(Path("runs/a")) == straight
    Path("runs/a/checkpoints").joinpath(f"step-{steps:08d}.pth").unlink()
    Path("runs/a/last.pth").unlink()
    assert run([*start, "--resume", "--set", "data.workers=1"]) == 0
    assert losses(Path("runs/a")) == straight
    assert not multiprocessing.active_children()


def test_a_killed_worker_ends_the_run_and_keeps_the_checkpoint(workshop, capfd, monkeypatch) -> None:
    original = session.Session.log

    def kill(self, report) -> None:
        original(self, report)
        if report.step == 3:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    monkeypatch.setattr(session.Session, "log", kill)
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--set", "data.workers=2", "--steps", "100"]) == 8
    error = capfd.readouterr().err
    assert "was killed by SIGKILL; last heard of reading" in error
    assert "text/a.txt" in error
    assert load_checkpoint(Path("runs/a/last.pth")).lineage["step"] >= 2
    assert not multiprocessing.active_children()


def group(number: int) -> list[int]:
    """The processes of a process group that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == number and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143), ("SIGKILL", -9)])
def test_a_signal_to_all_processes_of_a_run_saves_and_leaves_none(workshop, name, code) -> None:
    """As a terminal sends Ctrl-C, and a batch system its warning."""
    command = [sys.executable, "-m", "txtgen", "pretrain", "decoder.yaml", "--name", "cut", "--steps", "1000000"]
    command += ["--set", "data.workers=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 1/"):
                assert len(group(process.pid)) >= 3
                send = os.kill if name == "SIGKILL" else os.killpg
                send(process.pid, getattr(signal, name))
                break
        rest = process.stderr.read()
    assert process.returncode == code, rest
    assert "Traceback" not in rest
    deadline = time.monotonic() + 30
    while group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group(process.pid)
    if code > 0:
        assert load_checkpoint(Path("runs/cut/last.pth")).lineage["step"] >= 1
