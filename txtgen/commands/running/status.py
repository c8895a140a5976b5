"""status.json: what a run is doing, for people and programs that look in from outside."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from txtgen.errors import DivergedError, ResourceError, TxtgenError
from txtgen.files import replace_file
from txtgen.memory import is_out_of_memory

State = Literal[
    "starting", "running", "validating", "sampling", "saving", "finished", "interrupted", "diverged", "failed"
]

HEARTBEAT_SECONDS = 5.0


class Status:
    """The facts of a run, written when its state changes and every few seconds.

    Args:
        path: of status.json; None: on a rank that writes nothing.
        clock: seconds, never going back.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._written = 0.0
        self._facts: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        self.state: State = "starting"

    def set(self, state: State, **facts: Any) -> None:
        """Say what the run does from now on."""
        self.state = state
        self._facts.update(facts)
        self._write()

    def beat(self, **facts: Any) -> None:
        """Say that the run goes on, if that was not said just now."""
        self._facts.update(facts)
        if self._clock() - self._written >= HEARTBEAT_SECONDS:
            self._write()

    @contextmanager
    def during(self, state: State) -> Iterator[None]:
        """Say what the block does, and after it what was being done before."""
        before = self.state
        self.set(state)
        yield
        self.set(before)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Say so if the block ends the run with an error."""
        try:
            yield
        except BaseException as error:
            self.set(end_of(error), reason=str(error) or type(error).__name__, exit_code=exit_code_of(error))
            raise

    def _write(self) -> None:
        if self._path is None:
            return
        self._written = self._clock()
        status = {"state": self.state, "time": time.time(), **self._facts}
        # A full disk must not stop training; the next save reports it.
        with suppress(ResourceError), replace_file(self._path, durable=False) as handle:
            handle.write((json.dumps(status, indent=1) + "\n").encode())


def end_of(error: BaseException) -> State:
    """The state of a run that ended with this error."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "diverged" if isinstance(error, DivergedError) else "failed"


def exit_code_of(error: BaseException) -> int:
    """The exit code that the process ends with because of this error."""
    if isinstance(error, KeyboardInterrupt):
        return int(getattr(error, "exit_code", 130))
    if isinstance(error, TxtgenError):
        return error.exit_code
    return ResourceError.exit_code if is_out_of_memory(error) else TxtgenError.exit_code
