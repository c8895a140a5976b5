"""Processes that read and tokenise ahead of the training, each its own share of every batch."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from txtgen.data.report import MAX_NAMED, Oddity, StreamReport
from txtgen.errors import DistributedError
from txtgen.processes import KilledError, Line, Subprocess

Share = Callable[[StreamReport], Generator[Any]]
"""Makes a worker's part of every batch, and counts in a report what it reads; picklable, as the parts are."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a worker sends: its part of a batch, and what it has met so far."""

    part: Any
    report: StreamReport


def work_ahead(shares: Sequence[Share], report: StreamReport) -> Generator[list[Any]]:
    """The parts of every batch, one from each worker.

    A worker makes the next one while this one is used, and waits until it is asked for. All end with the iterator, or
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
            sum_up([worker.report for worker in workers], report)
            yield parts
    finally:
        for worker in workers:
            worker.end()


class Worker:
    """A process that makes one share of every batch."""

    def __init__(self, number: int, share: Share) -> None:
        self.number, self.report = number, StreamReport()
        self._process = Subprocess(partial(_work, share), f"data worker {number}")
        self.end = self._process.end
        """Ends the process; nothing is lost with it."""

    def take(self) -> Any:
        """Its part of the next batch, waiting for it if need be."""
        try:
            parcel: Parcel = self._process.receive()
        except KilledError as how:
            reading = (
                f"last heard of reading {self.report.reading}" if self.report.reading else "before its first batch"
            )
            fix = "resume; if memory ran out, set data.workers lower"
            raise DistributedError(f"{self._process.name} was {how}", reading, fix) from how
        self.report = parcel.report
        return parcel.part


def _work(share: Share, line: Line) -> None:
    """In the worker: send part after part until nobody is there to take them."""
    report = StreamReport()
    for part in share(report):
        line.send(Parcel(part, report))


def sum_up(parts: Sequence[StreamReport], report: StreamReport) -> None:
    """Make a report say what all workers have met."""
    for name in ("records", "bad_records", "different_bad_records", "held_out", "cut_examples"):
        setattr(report, name, sum(getattr(part, name) for part in parts))
    report.bad_examples = [example for part in parts for example in part.bad_examples][:MAX_NAMED]
    report.oddities = {}
    for part in parts:
        for what, found in part.oddities.items():
            ours = report.oddities.setdefault(what, Oddity())
            ours.count += found.count
            ours.places = [*ours.places, *found.places][:MAX_NAMED]
    report.reading = parts[0].reading
