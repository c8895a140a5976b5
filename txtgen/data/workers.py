"""Processes that read and tokenise ahead of the training, each its own share of every batch."""

import logging
import multiprocessing
import multiprocessing.connection
import signal
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from txtgen.data.report import MAX_NAMED, StreamReport
from txtgen.data.types import Batch
from txtgen.errors import DistributedError, TxtgenError

Share = Callable[[StreamReport], Generator[Batch]]
"""Makes a worker's batches, and counts in a report what it reads; must be picklable."""

IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Whoever stops a run may send them to all its processes, but only the training itself knows when to stop."""

PRELOADED = ("torch", "sentencepiece", "pydantic", "jinja2")
"""What takes long to import; not txtgen itself, of which a process without our sys.path may find another copy."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a worker sends: a batch as plain arrays, what it has met so far, and what it has logged since the last."""

    batch: dict[str, Any]
    report: StreamReport
    logged: list[tuple[str, int, str]]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a worker ended: the error of a user or a machine, or the trace of a bug."""

    error: TxtgenError | None
    trace: str


def work_ahead(shares: Sequence[Share], report: StreamReport) -> Generator[Batch]:
    """The rows of all workers, dealt out in turn: row i of a batch is row i div N of worker i mod N.

    A worker makes the next batch while this one is used, and waits until it is asked for. All end with the iterator, or
    with this process, however that ends.

    Raises:
        TxtgenError: what a worker met.
        DistributedError: a worker was killed.
        RuntimeError: there is a bug in a worker.
    """
    workers = [Worker(number, share) for number, share in enumerate(shares)]
    try:
        while True:
            parts = [worker.take() for worker in workers]
            _sum_up([worker.report for worker in workers], report)
            yield parts[0] if len(parts) == 1 else dealt(parts)
    finally:
        for worker in workers:
            worker.end()


class Worker:
    """A process that makes one share of every batch."""

    def __init__(self, number: int, share: Share) -> None:
        self.number, self.report = number, StreamReport()
        context = _context()
        self._parcels, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(share, theirs), name=f"data-{number}", daemon=True)
        with _signals_held_back():
            self._process.start()
        theirs.close()
        self.end = weakref.finalize(self, _end, self._process, self._parcels)
        """Ends the process; nothing is lost with it."""

    def take(self) -> Batch:
        """The next batch of this worker, waiting for it if need be."""
        ready = multiprocessing.connection.wait([self._parcels, self._process.sentinel])
        try:
            if self._parcels not in ready and not self._parcels.poll():
                raise EOFError
            content = self._parcels.recv()
        except (EOFError, OSError) as error:
            raise self._killed() from error
        if isinstance(content, Fault):
            if content.error is not None:
                raise content.error
            raise RuntimeError(f"in data worker {self.number}:\n{content.trace}")
        self.report = content.report
        for name, level, message in content.logged:
            logging.getLogger(name).log(level, "%s", message)
        return _unpacked(content.batch)

    def _killed(self) -> DistributedError:
        self._process.join(timeout=1)
        code = self._process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"gone (exit code {code})"
        reading = f"last heard of reading {self.report.reading}" if self.report.reading else "before its first batch"
        return DistributedError(
            f"data worker {self.number} was {how}", reading, "resume; if memory ran out, set data.workers lower"
        )


def _context() -> Any:
    """How workers are started: as copies of a fresh process that has only imported what takes long, where that is
    possible, for to copy this one is not safe once torch has threads; as fresh processes elsewhere."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    return context


def _end(process: Any, parcels: Connection) -> None:
    parcels.close()
    process.kill()
    process.join()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process that starts now does not get the signals that workers ignore, not even before it can say so."""
    held = {getattr(signal, name) for name in IGNORED_SIGNALS if hasattr(signal, name)}
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in the worker


def _work(share: Share, parcels: Connection) -> None:
    """Send batch after batch until nobody is there to take them."""
    for name in IGNORED_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
    report, log = StreamReport(), _Log()
    logging.getLogger("txtgen").addHandler(log)
    logging.getLogger("txtgen").propagate = False
    try:
        try:
            for batch in share(report):
                parcels.send(Parcel(_packed(batch), report, log.take()))
        except TxtgenError as error:
            parcels.send(Fault(error, ""))
        except Exception:
            parcels.send(Fault(None, traceback.format_exc()))
    except BrokenPipeError:
        pass  # the training has ended


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


# -- batches on their way


def _packed(batch: Batch) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def _unpacked(values: dict[str, Any]) -> Batch:
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return Batch(**{**values, **tensors})


def dealt(parts: Sequence[Batch]) -> Batch:
    """One batch of packed rows: the first row of each part, then the second of each, and so on."""

    def joined(name: str) -> torch.Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        if all(tensor is None for tensor in tensors):
            return None
        none = [torch.zeros_like(part.segment_ids, dtype=torch.bool) for part in parts]
        return torch.cat([found if tensor is None else tensor for tensor, found in zip(tensors, none, strict=True)])[
            order
        ]

    counts = [len(part.origins) for part in parts]
    firsts = np.cumsum([0, *counts])
    order = [int(firsts[part]) + row for row in range(max(counts)) for part in range(len(parts)) if row < counts[part]]
    origins = list(chain.from_iterable(part.origins for part in parts))
    lanes = {lane: state for part in parts for lane, state in part.bookmark["lanes"].items()}
    tensors: dict[str, Any] = {name: joined(name) for name in ("input_ids", "labels", "positions", "segment_ids")}
    return Batch(
        **tensors,
        separate=parts[0].separate,
        bidirectional=joined("bidirectional"),
        bytes=sum(part.bytes for part in parts),
        origins=tuple(origins[row] for row in order),
        bookmark={"lanes": lanes},
    )


def _sum_up(parts: Sequence[StreamReport], report: StreamReport) -> None:
    """Make a report say what all workers have met."""
    for name in ("records", "bad_records", "held_out", "cut_examples"):
        setattr(report, name, sum(getattr(part, name) for part in parts))
    report.bad_examples = [example for part in parts for example in part.bad_examples][:MAX_NAMED]
    report.reading = parts[0].reading
