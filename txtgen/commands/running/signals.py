"""Ctrl-C, SIGTERM and SIGHUP: at once where nothing is lost, else as a request answered at the next safe point."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TypeVar

Made = TypeVar("Made")

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143}

LEFT_ALONE = "txtgen-left-alone"
"""The name of threads that do what cannot be ended."""

SAME_REQUEST_SECONDS = 0.5
"""A terminal signals every process at once and a launcher passes on what it got: together that is one request."""


class Interrupted(KeyboardInterrupt):
    """A signal that stops the work at once."""

    def __init__(self, name: str) -> None:
        super().__init__(f"stopped at once by {name}")
        self.exit_code = EXIT_CODES[name]


class StopRequest:
    """Which signal asked to stop, if any.

    A signal raises `Interrupted`, except while signals are deferred: then the first one is only noted, for the loop to
    finish its step and save, and a second one raises.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal: str | None = None
        self.announces = False
        """Whether this process tells the user that the first signal was understood."""
        self._clock = clock
        self._since: float | None = None
        """When this process was signalled last, if it ever was: it may know of a signal from another one."""
        self._deferring = False

    def __bool__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Take up a signal."""
        name, now = signal.Signals(number).name, self._clock()
        first = self._since is None
        if self._since is not None and now - self._since < SAME_REQUEST_SECONDS:
            return
        self.signal, self._since = self.signal or name, now
        if not (first and self._deferring):
            raise Interrupted(name)
        if self.announces:
            with suppress(OSError):  # not by way of Python's buffers, which this may have interrupted
                os.write(2, b"\nfinishing the step and saving; once more stops at once\n")

    @contextmanager
    def deferred(self, wanted: bool = True) -> Iterator[None]:
        """Only note the first signal while the block runs, or, if not wanted, let it raise."""
        before, self._deferring = self._deferring, wanted
        try:
            yield
        finally:
            self._deferring = before


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Turn signals into a StopRequest while the block runs. Off the main thread, where none arrive, nothing changes."""
    request = StopRequest()
    wanted = [getattr(signal, name) for name in EXIT_CODES if name in signal.Signals.__members__]
    if threading.current_thread() is not threading.main_thread():
        wanted = []
    # Who starts a run with nohup wants it to outlive the terminal.
    heard = [number for number in wanted if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, request.receive) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible(work: Callable[[], Made]) -> Made:
    """Do work that keeps to itself in C++ for long, so that a signal can end the wait for it.

    The work goes on in its thread until the process ends, which must then end by `leave`.
    """
    made: list[Made] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=LEFT_ALONE, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def leave(code: int) -> NoReturn:
    """End the process with this exit code, also where interrupted work still goes on: C++ that calls back into a Python
    that is ending would abort it."""
    if any(thread.name == LEFT_ALONE for thread in threading.enumerate()):
        logging.shutdown()
        for file in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                file.flush()
        os._exit(code)
    sys.exit(code)


def exit_code_of(work: Callable[[], int]) -> int:
    """The exit code that work gives back, or that of the signal which stopped it at once."""
    try:
        return work()
    except KeyboardInterrupt as stop:  # of this rank, or of another one
        return int(getattr(stop, "exit_code", 130))
