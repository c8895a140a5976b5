"""Examples -> rows of a fixed length, and rows -> a batch."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from txtgen.data.objectives import Objective
from txtgen.data.report import StreamReport
from txtgen.data.supply import Mixture
from txtgen.data.types import IGNORE, Batch, Example, Origin

Part = tuple[Example, int, int]
"""Of an example, from a position on, so many positions."""


class Rows:
    """Rows of one batch while they are filled: arrays [B,T], padding wherever nothing is written."""

    def __init__(self, count: int, length: int, objective: Objective) -> None:
        self.length = length
        self._objective = objective
        self._input_ids = np.full((count, length), objective.pad_id, np.int64)
        self._labels = np.full((count, length), IGNORE, np.int64)
        self._segment_ids = np.zeros((count, length), np.int32)
        self._bidirectional = np.zeros((count, length), np.bool_)
        self._positions = np.zeros((count, length), np.int64)
        self._along = np.arange(length)
        if not objective.separate:
            self._positions[:] = self._along
        self._origins: list[tuple[Origin, ...]] = [()] * count

    def write(self, row: int, parts: Sequence[Part]) -> None:
        """Write parts of examples to a row, one after the other."""
        counts = [count for _, _, count in parts]
        size = sum(counts)
        inputs = [example.input_ids[offset : offset + count] for example, offset, count in parts]
        labels = [example.labels[offset : offset + count] for example, offset, count in parts]
        np.concatenate(inputs, out=self._input_ids[row, :size])
        np.concatenate(labels, out=self._labels[row, :size])
        start = 0
        for segment, (example, offset, count) in enumerate(parts, start=1):
            stop = start + count
            self._segment_ids[row, start:stop] = segment
            if self._objective.separate:
                self._positions[row, start:stop] = self._along[:count]
            if example.bidirectional > offset:
                self._bidirectional[row, start : min(stop, start + example.bidirectional - offset)] = True
            start = stop
        self._origins[row] = tuple([example.origin for example, _, _ in parts])

    def batch(self, rows: slice = slice(None), bookmark: dict[str, Any] | None = None) -> Batch:
        """Some of the rows as a batch."""
        labels = self._labels[rows]
        bidirectional = self._bidirectional[rows]
        return Batch(
            input_ids=torch.from_numpy(self._input_ids[rows]),
            labels=torch.from_numpy(labels),
            positions=torch.from_numpy(self._positions[rows]),
            segment_ids=torch.from_numpy(self._segment_ids[rows]),
            separate=self._objective.separate,
            bidirectional=torch.from_numpy(bidirectional) if bidirectional.any() else None,
            bytes=self._objective.scored_bytes(labels),
            origins=tuple(self._origins[rows]),
            bookmark=bookmark or {},
        )


class Packer:
    """Fills row after row with examples.

    An example that does not fit into the rest of a row goes on in the next one, where it is a document of its own,
    since what stands before is out of sight. If it cannot be split, it moves to the next row as a whole.

    Args:
        take: gives the next examples; none: there are no more.
        report: counts examples that are longer than a row and cannot be split.
    """

    def __init__(self, take: Callable[[], Iterable[Example]], report: StreamReport) -> None:
        self._take, self._report = take, report
        self._queue: deque[Example] = deque()
        self._offset = 0

    @property
    def waiting(self) -> int:
        """Positions that were taken but are not in a row yet."""
        return sum(len(example.input_ids) for example in self._queue) - self._offset

    def resume(self, examples: Sequence[Example], done: int) -> None:
        """Go on with examples of which the first `done` positions are in rows already."""
        self._queue.extend(examples)
        while self._queue and done >= len(self._queue[0].input_ids):
            done -= len(self._queue.popleft().input_ids)
        self._offset = done if self._queue else 0

    def fill(self, rows: Rows, row: int) -> bool:
        """Fill one row. Returns whether there was anything to put into it."""
        parts: list[Part] = []
        room = rows.length
        while room:
            if not self._queue:
                self._queue.extend(self._take())
                if not self._queue:
                    break
            example = self._queue[0]
            left = len(example.input_ids) - self._offset
            if left > room and parts and not example.splittable:
                break
            count = min(left, room)
            parts.append((example, self._offset, count))
            room -= count
            if count < left and example.splittable:
                self._offset += count
            else:
                self._report.cut_examples += count < left and not example.cut
                self._queue.popleft()
                self._offset = 0
        if parts:
            rows.write(row, parts)
        return bool(parts)


class Lane:
    """One row of every global batch, with a place in every source of its own.

    state: the source of the document that is not finished (-1: none), the positions of it that are in rows, and the
    mixture's state, in which the place of that source is the place of the document itself.
    """

    def __init__(self, mixture: Mixture, report: StreamReport, state: Sequence[Any] = ()) -> None:
        self._mixture = mixture
        self._document: Sequence[Example] = ()
        self._packer = Packer(self._take, report)
        if state and state[0] >= 0:
            mixture.last_source = state[0]
            self._document = mixture.cursors[state[0]].take()
            self._packer.resume(self._document, state[1])

    def _take(self) -> Sequence[Example]:
        self._document = self._mixture.take()
        return self._document

    def fill(self, rows: Rows, row: int) -> None:
        """Fill one row with the next examples."""
        self._packer.fill(rows, row)

    def state(self) -> list[Any]:
        """Where the lane is, as plain ints and short lists."""
        waiting = self._packer.waiting
        if not waiting:
            return [-1, 0, *self._mixture.state()]
        done = sum(len(example.input_ids) for example in self._document) - waiting
        return [self._mixture.last_source, done, *self._mixture.state(unfinished=True)]
