"""Processes that read and tokenise ahead of the training, each its own share of every batch."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from txtgen.data.report import MAX_NAMED, Oddity, StreamReport
from txtgen.data.types import Batch
from txtgen.errors import DistributedError
from txtgen.processes import KilledError, Line, Subprocess

Share = Callable[[StreamReport], Generator[Batch]]
"""Makes a worker's batches, and counts in a report what it reads; must be picklable."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a worker sends: a batch as plain arrays, and what it has met so far."""

    batch: dict[str, Any]
    report: StreamReport


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
            sum_up([worker.report for worker in workers], report)
            yield parts[0] if len(parts) == 1 else dealt(parts)
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

    def take(self) -> Batch:
        """The next batch of this worker, waiting for it if need be."""
        try:
            parcel: Parcel = self._process.receive()
        except KilledError as how:
            reading = (
                f"last heard of reading {self.report.reading}" if self.report.reading else "before its first batch"
            )
            fix = "resume; if memory ran out, set data.workers lower"
            raise DistributedError(f"{self._process.name} was {how}", reading, fix) from how
        self.report = parcel.report
        return _unpacked(parcel.batch)


def _work(share: Share, line: Line) -> None:
    """In the worker: send batch after batch until nobody is there to take them."""
    report = StreamReport()
    for batch in share(report):
        line.send(Parcel(_packed(batch), report))


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


def sum_up(parts: Sequence[StreamReport], report: StreamReport) -> None:
    """Make a report say what all workers have met."""
    for name in ("records", "bad_records", "held_out", "cut_examples"):
        setattr(report, name, sum(getattr(part, name) for part in parts))
    report.bad_examples = [example for part in parts for example in part.bad_examples][:MAX_NAMED]
    report.oddities = {}
    for part in parts:
        for what, found in part.oddities.items():
            ours = report.oddities.setdefault(what, Oddity())
            ours.count += found.count
            ours.places = [*ours.places, *found.places][:MAX_NAMED]
    report.reading = parts[0].reading
