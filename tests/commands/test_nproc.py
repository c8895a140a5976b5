"""Ranks started by this process: how they end is how it ends. The commands here are scripts that know no torch."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from txtgen.commands.launching import Request
from txtgen.commands.running import ranks
from txtgen.commands.running.ranks import run_ranks
from txtgen.commands.running.run_folder import RunFolder, begun_by
from txtgen.errors import UsageError

START = (
    "import os, signal, sys, time; rank = int(os.environ['RANK']); again = os.environ['TORCHELASTIC_RESTART_COUNT'];"
)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.3)


def script(body: str) -> list[str]:
    return [sys.executable, "-c", f"{START} {body}"]


def started(body: str, count: int = 2, max_restarts: int = 0) -> int:
    return run_ranks(script(body), count, max_restarts, Path("runs"))


def test_the_ranks_see_what_torchrun_would_give_them(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR"]
    assert started(f"open(f'env{{rank}}', 'w').write(' '.join(os.environ[name] for name in {names!r}))") == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [Path(f"env{rank}").read_text() for rank in (0, 1)] == [
        f"{rank} {rank} 2 2 {threads} 127.0.0.1" for rank in (0, 1)
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert started("sys.exit(os.environ['OMP_NUM_THREADS'] != '7')") == 0


def test_the_exit_code_is_that_of_the_rank_that_failed_first(capfd) -> None:
    assert started("sys.exit(4) if rank else time.sleep(60)") == 4
    assert capfd.readouterr().err == ""  # the rank speaks for itself


def test_a_killed_rank_is_named(capfd) -> None:
    assert started("os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)") == 8
    assert "error: rank 1 was killed by SIGKILL" in capfd.readouterr().err


def test_status_tells_of_a_rank_that_could_not(capfd) -> None:
    body = "launch = os.environ['TORCHELASTIC_RUN_ID']; os.makedirs('runs/a', exist_ok=True);"
    body += "rank or (open('runs/a/.launch', 'w').write(launch), open('runs/a/status.json', 'w').write('{}'));"
    assert started(body + "time.sleep(60) if rank else os.kill(os.getpid(), signal.SIGKILL)") == 8
    assert '"exit_code": 8' in Path("runs/a/status.json").read_text()
    assert "rank 0 was killed by SIGKILL" in Path("runs/a/status.json").read_text()


def test_lost_ranks_are_started_again(capfd) -> None:
    body = "open('attempts', 'a').write(again); again == '2' or rank or os.kill(os.getpid(), signal.SIGKILL)"
    assert started(body, count=1, max_restarts=3) == 0
    assert Path("attempts").read_text() == "012"
    assert "restart 2 of 3" in capfd.readouterr().err


def test_mistakes_are_not_made_again() -> None:
    assert started("open('attempts', 'a').write(again); sys.exit(3)", count=1, max_restarts=3) == 3
    assert Path("attempts").read_text() == "0"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signals_are_passed_on_to_all(name, code) -> None:
    body = f"signal.signal(signal.{name}, lambda *_: sys.exit({code})); open(f'ready{{rank}}', 'w'); time.sleep(60)"

    def interrupt() -> None:
        while not (Path("ready0").exists() and Path("ready1").exists()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.Signals[name])

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert started(body, max_restarts=3) == code
    thread.join()


def test_a_rank_ends_with_its_launcher() -> None:
    code = "import time; from txtgen.commands.running.ranks import follow_launcher; follow_launcher(); "
    code += "print(1, flush=True); "
    environment = {**os.environ, ranks.LIFELINE: "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(60)"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"1\n"
    assert child.poll() is None
    child.stdin.close()  # as when the launcher is killed
    assert child.wait(60) == -signal.SIGTERM
    child.stdout.close()


def test_a_launch_finds_its_own_run(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name).launch.write_text(f"launch of {name}")
    assert begun_by("launch of two", tmp_path).path.name == "two"
    assert begun_by("another", tmp_path) is None
    (tmp_path / "damaged").mkdir()
    RunFolder(tmp_path / "damaged").launch.write_bytes(b"\xff\xfe")
    assert begun_by("another", tmp_path) is None


def test_torchrun_and_nproc_exclude_each_other(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="torchrun"):
        started("")


def test_the_command_of_a_rank_says_what_the_user_said() -> None:
    request = Request("finetune", ("a.txt", "-b"), "n", "runs", "base.pth", True, False, True, True, 2, 1, True)
    assert request.arguments(["train.steps=3"]) == [
        "finetune", "--name", "n", "--runs-path", "runs", "--base", "base.pth", "--resume", "--accept-changes",
        "--dry-run", "--json", "--set", "train.steps=3", "--", "a.txt", "-b",
    ]  # fmt: skip
