"""Faults of real ranks: whatever happens to one of them, all end soon, for the same reason, and nothing is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from txtgen.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 400
"""For a machine that is busy with other things; nothing here waits so long."""


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **changes}


def pretrain(*arguments: str, name: str = "run") -> list[str]:
    fixed = ["--dtype", "float32", "--set", "train.validate_every=0", "--set", "samples.prompts=[]", "--name", name]
    return [sys.executable, "-m", "txtgen", "pretrain", "decoder.yaml", *fixed, *arguments]


def begin(*arguments: str, name: str = "run", prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A run of two ranks, in a session of its own."""
    command = [*prefix, *pretrain("--nproc", "2", *arguments, name=name)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, errors


def wait_for(found: Callable[[], Any]) -> Any:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not (value := found()):
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.05)
    return value


def rank_process(parent: int, rank: int) -> int | None:
    """The process of a rank that this one started."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"\nPPid:\t{parent}\n" in status.read_text():
                variables = (status.parent / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in variables:
                    return int(status.parent.name)
        except OSError:
            continue
    return None


def steps(name: str = "run") -> int:
    try:
        lines = Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines), default=0)
    except (OSError, ValueError):
        return 0


def status(name: str = "run") -> dict[str, Any]:
    return json.loads(Path(f"runs/{name}/status.json").read_text())


def weights(name: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(f"runs/{name}/last.pth")).model


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(("sharding", "ranks"), [("replicate", 2), ("replicate", 3), ("shard", 2)])
def test_a_killed_rank_costs_no_more_than_the_steps_since_the_last_save(workshop, sharding, ranks) -> None:
    """Nor a single bit, also where three gradients are summed, of which the order matters."""
    long = ("--steps", "60", "--set", f"train.sharding={sharding}", "--set", f"train.batch_tokens={64 * ranks}")
    long += ("--nproc", str(ranks))
    assert subprocess.run(pretrain(*long, name="straight"), env=environment()).returncode == 0
    process = begin("--max-restarts", "1", *long)
    wait_for(lambda: steps() > 10)
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    code, errors = end(process)
    assert code == 0, errors
    assert "error: rank 1 was killed by SIGKILL" in errors
    assert "restart 1 of 1" in errors
    assert status()["state"] == "finished"
    assert steps() == 60
    assert_same_weights("run", "straight")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_told_by_exit_code_message_and_status(workshop, rank) -> None:
    process = begin("--steps", "100000")
    wait_for(lambda: steps() > 3)
    pids = [rank_process(process.pid, number) for number in (0, 1)]
    os.kill(pids[rank], signal.SIGKILL)
    code, errors = end(process)
    assert code == 8
    assert f"error: rank {rank} was killed by SIGKILL" in errors
    assert "Traceback" not in errors
    assert status()["state"] == "failed"
    assert status()["exit_code"] == 8
    assert f"rank {rank}" in status()["reason"]
    assert gone(pids)


def test_a_rank_that_stands_still_is_named(workshop) -> None:
    process = begin("--steps", "100000", "--set", "train.rank_timeout_seconds=20")
    wait_for(lambda: steps() > 3)
    os.kill(rank_process(process.pid, 1), signal.SIGSTOP)
    code, errors = end(process)
    assert code == 8
    assert "rank 1 (process" in errors
    assert status()["exit_code"] == 8


@pytest.mark.parametrize("to", ["launcher", "rank 1", "rank 0, then rank 1"])
def test_sigterm_stops_all_ranks_with_one_save(workshop, to) -> None:
    process = begin("--steps", "100000", "--set", "train.save_every=0")
    wait_for(lambda: steps() > 3)
    first, second = (rank_process(process.pid, rank) for rank in (0, 1))
    if to == "rank 0, then rank 1":  # which has heard of it from the other by then, and may be saving
        os.kill(first, signal.SIGTERM)
        time.sleep(0.03)
    os.kill(process.pid if to == "launcher" else second, signal.SIGTERM)
    code, errors = end(process)
    assert code == 143, errors
    assert status()["state"] == "interrupted"
    assert status()["exit_code"] == 143
    assert status()["reason"] == "SIGTERM"
    assert len(list(Path("runs/run/checkpoints").glob("*.pth"))) == 1


def test_ranks_save_and_end_when_their_launcher_is_killed(workshop) -> None:
    process = begin("--steps", "100000", "--set", "train.save_every=0")
    wait_for(lambda: steps() > 3)
    pids = [rank_process(process.pid, number) for number in (0, 1)]
    process.kill()
    process.communicate(timeout=PATIENCE_SECONDS)
    wait_for(lambda: gone(pids))
    assert status()["state"] == "interrupted"
    assert len(list(Path("runs/run/checkpoints").glob("*.pth"))) == 1


def test_a_full_disk_stops_all_ranks(workshop) -> None:
    limited = ("sh", "-c", 'ulimit -f 16; exec "$@"', "sh")
    process = begin("--steps", "5", "--set", "train.save_every=0", prefix=limited)
    code, errors = end(process)
    assert code == 6, errors
    assert "the file may not be as large as that" in errors
    assert errors.count("error:") <= 2
    assert not list(Path("runs").glob("run/**/*.pth"))


def two_ranks(folders: list[Path], arguments: list[str], port: int) -> list[tuple[int, str]]:
    """Two ranks as two machines would have them, each in a folder of its own; their exit codes and messages."""
    processes = []
    for rank, folder in enumerate(folders):
        variables = environment(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        processes.append(subprocess.Popen(arguments, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True))
    return [end(process) for process in processes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("other", ["missing", "different"])
def test_ranks_with_other_corpora_stop_for_the_same_reason(workshop, tmp_path, other) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "text").mkdir()
    (folders[0] / "text" / "a.txt").write_text((workshop / "text" / "a.txt").read_text())
    if other == "different":
        (folders[1] / "text").mkdir()
        (folders[1] / "text" / "a.txt").write_text((workshop / "text" / "a.txt").read_text() + "one more\n")
    arguments = pretrain("--runs-path", str(tmp_path / "runs"), "--set", "data.sources.0.path=text")
    arguments[arguments.index("decoder.yaml")] = str(workshop / "decoder.yaml")
    for code, errors in two_ranks(folders, arguments, free_port()):
        assert code == 4, errors
    assert json.loads((tmp_path / "runs" / "run" / "status.json").read_text())["exit_code"] == 4


def alone(rank: str, port: str) -> tuple[int, str]:
    """The exit code and the errors of one rank of two that waits for the other for two seconds."""
    variables = environment(RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    arguments = pretrain("--set", "train.rank_timeout_seconds=2")
    return end(subprocess.Popen(arguments, env=variables, stderr=subprocess.PIPE, text=True))


def test_a_rendezvous_that_cannot_be_reached_is_told_with_its_address(workshop) -> None:
    port = str(free_port())
    code, errors = alone("1", port)
    assert code == 8
    assert f"127.0.0.1:{port}" in errors
    assert "within 2 seconds" in errors


def test_a_port_in_use_is_told_with_its_address(workshop) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, errors = alone("0", port)
    assert code == 8
    assert f"127.0.0.1:{port}" in errors


def torchrun(*options: str, arguments: list[str]) -> subprocess.Popen[str]:
    """A command of txtgen as torchrun's agent starts it."""
    launcher = ["-W", "ignore", "-m", "torch.distributed.run", *options, "-m"]
    command = [arguments[0], *launcher, *arguments[2:]]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


def assert_same_weights(name: str, expected: str) -> None:
    for weight, straight in zip(weights(name).values(), weights(expected).values(), strict=True):
        assert torch.equal(weight, straight)


@pytest.fixture
def straight(workshop) -> str:
    """The name of a run of two ranks that nothing happens to."""
    command = pretrain("--nproc", "2", "--steps", "60", name="straight")
    assert subprocess.run(command, env=environment()).returncode == 0
    return "straight"


def test_torchrun_starts_lost_ranks_again_and_they_resume(straight) -> None:
    options = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    process = torchrun(*options, arguments=pretrain("--steps", "60"))
    wait_for(lambda: steps() > 10)
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    code, errors = end(process)
    assert code == 0, errors
    assert_same_weights("run", straight)


def test_agents_of_several_machines_restart_as_one(straight) -> None:
    """Each counts restarts by itself; a run that goes on is not taken for one that is to be overwritten."""
    Path("runs/run").mkdir()
    Path("runs/run/last.pth").write_bytes(b"an older run")
    options = ("--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-id=17")
    endpoint = f"--rdzv-endpoint=localhost:{free_port()}"
    arguments = pretrain("--steps", "60", "--overwrite")
    agents = [torchrun(*options, endpoint, arguments=arguments) for _ in range(2)]
    for rank, step in ((1, 10), (0, 30)):
        wait_for(lambda step=step: steps() > step)
        [process] = [found for agent in agents if (found := rank_process(agent.pid, rank))]
        os.kill(process, signal.SIGKILL)
    for code, errors in [end(agent) for agent in agents]:
        assert code == 0, errors
    assert_same_weights("run", straight)
    assert [path.name for path in Path("runs").glob("run.old-*")] == ["run.old-1"]
    assert Path("runs/run.old-1/last.pth").read_bytes() == b"an older run"


def with_fault(fault: str, step: int, *arguments: str, name: str) -> list[tuple[int, str]]:
    """Exit codes and messages of two ranks, the second of which meets with a fault at a step."""
    script = str(Path(__file__).with_name("faulty_rank.py"))
    _, _, _, *rest = pretrain(*arguments, name=name)
    command = [sys.executable, script, fault, "1", str(step), *rest]
    return two_ranks([Path.cwd()] * 2, command, free_port())


def training(name: str, step: int) -> dict[str, Any]:
    return load_checkpoint(Path(f"runs/{name}/checkpoints/step-{step:08d}.pth"), training=True).training


def test_a_step_that_does_not_fit_on_one_rank_is_done_with_less_on_both_and_so_after_a_resume(workshop) -> None:
    for code, errors in with_fault("memory", 3, name="straight"):
        assert code == 0, errors
    assert "memory ran out: from now on 32 tokens" in Path("runs/straight/log.txt").read_text()
    assert training("straight", 2)["micro_batch_tokens"] == [None, None]
    assert training("straight", 4)["micro_batch_tokens"] == training("straight", 6)["micro_batch_tokens"] == [None, 32]
    shutil.copytree("runs/straight", "runs/resumed")
    Path("runs/resumed/checkpoints/step-00000006.pth").unlink()
    Path("runs/resumed/last.pth").unlink()
    code, errors = end(begin("--resume", name="resumed"))
    assert code == 0, errors
    assert_same_weights("resumed", "straight")


@pytest.mark.parametrize(
    ("fault", "sharding", "code", "told", "state"),
    [
        ("memory", "shard", 6, "out of memory while training", "failed"),
        ("nan", "replicate", 7, "the gradient is not finite; step 5, documents ", "diverged"),
        ("nan", "shard", 7, "the gradient is not finite; step 5, documents ", "diverged"),
    ],
)
def test_a_fault_of_one_rank_ends_both_with_the_last_good_checkpoint(
    workshop, fault, sharding, code, told, state
) -> None:
    for found, errors in with_fault(fault, 5, "--set", f"train.sharding={sharding}", name="run"):
        assert found == code, errors
        assert "Traceback" not in errors
    assert (status()["state"], status()["exit_code"]) == (state, code)
    assert told in status()["reason"]
    last = load_checkpoint(Path("runs/run/last.pth"))
    assert last.lineage["step"] == 4
    assert all(torch.isfinite(weight).all() for weight in last.model.values())


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
@pytest.mark.parametrize(("fault", "told"), [("kill", "is gone or stopped"), ("hang", "did not come to where")])
def test_a_rank_that_is_lost_within_a_step_is_named(workshop, fault, told, sharding) -> None:
    script = str(Path(__file__).with_name("faulty_rank.py"))
    _, _, _, *rest = pretrain(
        "--set", "train.rank_timeout_seconds=20", "--set", f"train.sharding={sharding}", name="run"
    )
    command = [sys.executable, script, fault, "1", "5", *rest]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    first, second = (
        subprocess.Popen(command, env=environment(RANK=rank, **variables), stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    )
    code, errors = end(first)
    second.kill()
    end(second)
    assert code == 8
    assert f"rank 1 (process {second.pid} " in errors
    assert told in errors
    assert load_checkpoint(Path("runs/run/last.pth")).lineage["step"] == 4


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_ranks_roll_back_together_and_who_resumes_learns_the_same(workshop, sharding) -> None:
    more = ("--set", "train.on_non_finite=roll_back", "--set", f"train.sharding={sharding}")
    for code, errors in with_fault("nan", 5, *more, name="run"):
        assert code == 0, errors
    shutil.copytree("runs/run", "runs/resumed")
    for step in (2, 6):
        Path(f"runs/resumed/checkpoints/step-{step:08d}.pth").unlink()
    Path("runs/resumed/last.pth").unlink()
    assert load_checkpoint(Path("runs/run/last.pth")).lineage["changes"][0]["rolled_back_from"] == 5
    code, errors = end(begin("--resume", *more, name="resumed"))
    assert code == 0, errors
    assert_same_weights("resumed", "run")
    assert training("resumed", 6)["bookmark"] == training("run", 6)["bookmark"]
