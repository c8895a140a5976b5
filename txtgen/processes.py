"""Processes that work for this one. They end with it, however that ends, and what they meet is told here."""

import logging
import multiprocessing
import multiprocessing.connection
import signal
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from txtgen.errors import TxtgenError

IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Whoever stops a command may send them to all its processes, but only the first one knows when to stop."""

PRELOADED = ("torch", "sentencepiece", "pydantic", "jinja2")
"""What takes long to import; not txtgen itself, of which a process without our sys.path may find another copy."""


class KilledError(Exception):
    """A process ended without a word; says how."""


@dataclass(frozen=True, slots=True)
class _Parcel:
    """What goes from a process to the one that it works for: content, and what was logged since the last."""

    content: Any
    logged: list[tuple[str, int, str]]


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why a process ended: the error of a user or a machine, or the trace of a bug."""

    error: TxtgenError | None
    trace: str


class Subprocess:
    """A process of one thread that works for this one.

    Args:
        work: what it does, picklable; it is given its end of the line.
        name: what it is called when something goes wrong.
    """

    def __init__(self, work: Callable[["Line"], None], name: str) -> None:
        context = _context()
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(work, theirs), name=name, daemon=True)
        with _signals_held_back():
            self._process.start()
        theirs.close()
        self.end = weakref.finalize(self, _end, self._process, self._pipe)
        """Ends the process at once."""

    def send(self, content: Any) -> None:
        """Send something picklable.

        Raises:
            KilledError: the process was killed.
        """
        try:
            self._pipe.send(content)
        except OSError as error:
            raise self._killed() from error

    def receive(self) -> Any:
        """The next thing that it sends, waiting for it if need be; what it has logged is logged here.

        Raises:
            TxtgenError: what it met.
            KilledError: it was killed.
            RuntimeError: there is a bug in it.
        """
        ready = multiprocessing.connection.wait(self._signs)
        try:
            if self._pipe not in ready and not self._pipe.poll():
                raise EOFError
            parcel: _Parcel = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._killed() from error
        for name, level, message in parcel.logged:
            logging.getLogger(name).log(level, "%s", message)
        fault = parcel.content
        if not isinstance(fault, _Fault):
            return parcel.content
        if fault.error is not None:
            raise fault.error
        raise RuntimeError(f"in {self.name}:\n{fault.trace}")

    @property
    def _signs(self) -> list[Any]:
        """What changes when it sends something, or ends."""
        return [self._pipe, self._process.sentinel]

    def _killed(self) -> KilledError:
        self._process.join(timeout=1)
        code = self._process.exitcode
        if code is not None and code < 0:
            return KilledError(f"killed by {signal.Signals(-code).name}")
        return KilledError(f"gone (exit code {code})")


def first_to_answer(processes: Sequence[Subprocess]) -> Subprocess:
    """Wait for any of them: one that has sent something, or was killed."""
    waiting = {sign: process for process in processes for sign in process._signs}
    return waiting[multiprocessing.connection.wait(list(waiting))[0]]


def _context() -> Any:
    """How processes are started: as copies of a fresh one that has only imported what takes long, where that is
    possible, for to copy this one is not safe once torch has threads; as fresh processes elsewhere."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    return context


def _end(process: Any, pipe: Connection) -> None:
    pipe.close()
    process.kill()
    process.join()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process that starts now does not get the signals that it is to ignore, not even before it can say so."""
    held = {getattr(signal, name) for name in IGNORED_SIGNALS if hasattr(signal, name)}
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in the process


class Line:
    """The line of a process to the one that it works for."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._log = pipe, _Log()
        logging.getLogger("txtgen").addHandler(self._log)
        logging.getLogger("txtgen").propagate = False

    def send(self, content: Any) -> None:
        """Send something picklable, and what was logged."""
        try:
            self._pipe.send(_Parcel(content, self._log.take()))
        except OSError as error:
            raise _Left from error

    def receive(self) -> Any:
        """The next thing that is sent here, waiting for it."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _Left from error


class _Left(BaseException):
    """The process at the other end of the line is gone, or needs nothing more."""


def _run(work: Callable[[Line], None], pipe: Connection) -> None:
    for name in IGNORED_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    import torch  # only here: to start a process needs none

    torch.set_num_threads(1)
    line = Line(pipe)
    try:
        try:
            work(line)
        except TxtgenError as error:
            line.send(_Fault(error, ""))
        except Exception:
            line.send(_Fault(None, traceback.format_exc()))
    except _Left:
        pass


class _Log(logging.Handler):
    """Keeps what is logged until the next parcel goes out."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self._records.append((record.name, record.levelno, record.getMessage()))

    def take(self) -> list[tuple[str, int, str]]:
        """What was logged since the last time."""
        records, self._records = self._records, []
        return records
