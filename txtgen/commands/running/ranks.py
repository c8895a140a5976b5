"""`--nproc N`: this process starts N ranks on this machine, passes signals on to them, and ends as they end.

The ranks see the environment that torchrun would give them. This process holds the store through which they find one
another, so that no port need be known and no rank's end takes it away.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from txtgen.commands.running.run_folder import begun_by
from txtgen.commands.running.run_record import read_object
from txtgen.commands.running.signals import EXIT_CODES
from txtgen.commands.running.status import Status
from txtgen.distributed import host_launch
from txtgen.errors import DistributedError, TxtgenError, UsageError

GRACE_SECONDS = 30.0
"""How long the other ranks have to find out by themselves that one has failed, and to say so."""
LIFELINE = "TXTGEN_LIFELINE"
"""Set for ranks whose standard input ends when the process that started them does."""
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
STOPPED = {-int(signal.Signals[name]): EXIT_CODES[name] for name in SIGNALS if name in signal.Signals.__members__}
WORTH_A_RESTART = (TxtgenError.exit_code, DistributedError.exit_code)
"""Exit codes of a rank that may go away by themselves, as being killed may; a mistake of the user's does not."""


@dataclass
class Ranks:
    """The processes of one attempt, and the signals that were passed on to them."""

    processes: list[subprocess.Popen[bytes]]
    passed_on: list[int] = field(default_factory=list)

    def pass_on(self, number: int, _frame: FrameType | None = None) -> None:
        """Pass a signal on; the third time is the last."""
        self.passed_on.append(number)
        for process in self.processes:
            with suppress(OSError):  # it has just ended
                process.kill() if len(self.passed_on) > 2 else process.send_signal(number)

    def wait(self) -> tuple[int, int]:
        """The first rank that failed, and its exit code, negative for a signal; (0, 0) if none did.

        What is left of the others is ended after a while.
        """
        failed: tuple[int, int] | None = None
        since = 0.0
        while None in [process.poll() for process in self.processes]:
            if failed is None and (failed := self._failed()):
                since = time.monotonic()
                self._tell(*failed)
            if failed is not None and not self.passed_on and time.monotonic() - since > GRACE_SECONDS:
                self.end()
            time.sleep(0.02)
        return failed or self._failed() or (0, 0)

    def _failed(self) -> tuple[int, int] | None:
        """A rank that failed: if several did at once, rather one that was killed than one that lost another."""
        codes = [(rank, process.returncode) for rank, process in enumerate(self.processes) if process.returncode]
        return min(codes, key=lambda found: (found[1] > 0, found[1] == DistributedError.exit_code), default=None)

    def _tell(self, rank: int, code: int) -> None:
        """Say how a rank ended that could not say so itself."""
        if code < 0 and not self.passed_on:
            sys.stderr.write(f"error: {told(rank, code)}\n")

    def end(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def txtgen_command(arguments: Sequence[str]) -> list[str]:
    """The command that runs txtgen with these arguments in a process of its own."""
    safe = ["-P"] if sys.flags.safe_path else []
    return [sys.executable, *safe, "-m", "txtgen", *arguments]


def run_ranks(command: Sequence[str], count: int, max_restarts: int, runs_path: Path) -> int:
    """Run a command as so many ranks, again if one is lost. Returns the exit code of the first that failed.

    A restarted run goes on from its last checkpoint.

    Args:
        command: starts a rank.
        count: number of ranks.
        max_restarts: how often all are started again.
        runs_path: where the run's folder is; its status.json says how it ended if no rank could.

    Raises:
        UsageError: this process is a rank already.
    """
    if "RANK" in os.environ:
        raise UsageError(
            "--nproc and --max-restarts are for one machine", "torchrun is at work", "leave them to torchrun"
        )
    store, launch = host_launch()
    for attempt in range(max_restarts + 1):
        shared = {"MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": launch}
        with _started(command, count, {**shared, "TORCHELASTIC_RESTART_COUNT": str(attempt)}) as ranks:
            rank, code = ranks.wait()
        if ranks.passed_on or code == 0 or not (code < 0 or code in WORTH_A_RESTART):
            break
        if attempt < max_restarts:
            sys.stderr.write(f"rank {rank} is lost: restart {attempt + 1} of {max_restarts}\n")
    if code < 0:
        stopped = STOPPED.get(code, DistributedError.exit_code) if ranks.passed_on else DistributedError.exit_code
        _note_end(launch, runs_path, told(rank, code), stopped)
        return stopped
    return code


def told(rank: int, code: int) -> str:
    """How a rank ended that was killed by signal -code."""
    known = {int(number): number.name for number in signal.Signals}
    memory = ", which the system does when memory runs out" if known.get(-code) == "SIGKILL" else ""
    return f"rank {rank} was killed by {known.get(-code, f'signal {-code}')}{memory}"


def _note_end(launch: str, runs_path: Path, reason: str, code: int) -> None:
    """Say in status.json how the run ended, if the rank that should have was killed."""
    folder = begun_by(launch, runs_path)
    if folder is None:
        return
    before = read_object(folder.status, [])
    if "exit_code" in before:
        return
    known = {name: before[name] for name in ("step", "steps", "last_checkpoint") if name in before}
    Status(folder.status).set("failed", **known, reason=reason, exit_code=code)


@contextmanager
def _started(command: Sequence[str], count: int, variables: dict[str, str]) -> Iterator[Ranks]:
    """The ranks of one attempt; none outlives the block. variables: of their environment, beside the usual ones."""
    shared = {
        **variables,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // count)),
        LIFELINE: "1",
    }
    ranks = Ranks([])
    before = {number: signal.signal(number, ranks.pass_on) for number in _signals()}
    try:
        for rank in range(count):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
        yield ranks
    finally:
        ranks.end()
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    known = [signal.Signals[name] for name in SIGNALS if name in signal.Signals.__members__]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def follow_launcher() -> None:
    """Ask this rank to stop, as by SIGTERM, as soon as the process that started it is gone; else do nothing."""
    if os.environ.pop(LIFELINE, None):
        threading.Thread(target=_stop_with_launcher, name="lifeline", daemon=True).start()


def _stop_with_launcher() -> None:
    with suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
