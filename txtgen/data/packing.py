"""Examples -> rows of a fixed length, and rows -> a batch."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from txtgen.data.examples import Examples, Span
from txtgen.data.objectives import Objective
from txtgen.data.report import StreamReport
from txtgen.data.supply import Mixture
from txtgen.data.types import IGNORE, Batch, Origins

Part = tuple[Examples, int, int]
"""Of some examples, the positions from one up to another."""


class Rows:
    """Rows of one batch while they are filled: arrays [B,T], padding wherever nothing is written.

    They may come from another process, so what `batch` can tell from the rest is not kept.
    """

    def __init__(self, count: int, length: int, pad_id: int) -> None:
        self.length = length
        self._input_ids = np.full((count, length), pad_id, np.int32)
        self._labels = np.full((count, length), IGNORE, np.int32)
        self._bidirectional = np.zeros((count, length), np.bool_)
        self._begins = np.zeros((count, length), np.bool_)
        """Where a document begins, or a row."""
        self._begins[:, 0] = True
        self._sizes = np.zeros(count, np.int64)
        self._origins = [Origins([], []) for _ in range(count)]

    @classmethod
    def dealt(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts: the first of each, then the second of each, and so on."""
        rows = cls(sum(len(part._sizes) for part in parts), parts[0].length, 0)
        for number, part in enumerate(parts):
            places = slice(number, None, len(parts))
            rows._input_ids[places] = part._input_ids
            rows._labels[places] = part._labels
            rows._bidirectional[places] = part._bidirectional
            rows._begins[places] = part._begins
            rows._sizes[places] = part._sizes
            rows._origins[places] = part._origins
        return rows

    def write(self, row: int, parts: Sequence[Part]) -> None:
        """Write parts of examples to a row, one after the other."""
        size, begins, origins = 0, [], self._origins[row]
        for examples, start, stop in parts:
            place = slice(size, size + stop - start)
            self._input_ids[row, place] = examples.input_ids[start:stop]
            self._labels[row, place] = examples.labels[start:stop]
            first, last = bisect_right(examples.borders, start), bisect_left(examples.borders, stop)
            begins += [size, *(size - start + border for border in examples.borders[first:last])]
            origins += examples.origins[first - 1 : last]
            if any(examples.bidirectional[first - 1 : last]):
                for number in range(first - 1, last):
                    begin = examples.borders[number]
                    end = min(stop, begin + examples.bidirectional[number])
                    self._bidirectional[row, size + max(0, begin - start) : size + max(0, end - start)] = True
            size = place.stop
        self._begins[row, begins] = True
        self._sizes[row] = size

    def batch(self, objective: Objective, rows: slice = slice(None), bookmark: dict[str, Any] | None = None) -> Batch:
        """Some of the rows as a batch."""
        labels, bidirectional = self._labels[rows].astype(np.int64), self._bidirectional[rows]
        along = np.arange(self.length)
        filled = along < self._sizes[rows, None]
        its_rows, places = np.nonzero(self._begins[rows])
        counts = np.diff(its_rows * self.length + places, append=labels.size)
        numbers = np.arange(1, len(counts) + 1) - np.searchsorted(its_rows, its_rows)
        segment_ids = np.repeat(numbers.astype(np.int32), counts).reshape(labels.shape)
        segment_ids *= filled
        positions = np.tile(along, (len(labels), 1))
        if objective.separate:
            positions -= np.repeat(places, counts).reshape(labels.shape)
            positions *= filled
        return Batch(
            input_ids=torch.from_numpy(self._input_ids[rows].astype(np.int64)),
            labels=torch.from_numpy(labels),
            positions=torch.from_numpy(positions),
            segment_ids=torch.from_numpy(segment_ids),
            separate=objective.separate,
            bidirectional=torch.from_numpy(bidirectional) if bidirectional.any() else None,
            bytes=objective.scored_bytes(labels),
            origins=tuple(self._origins[rows]),
            bookmark=bookmark or {},
        )


class Packer:
    """Fills row after row with examples.

    An example that does not fit into the rest of a row goes on in the next one, where it is a document of its own,
    since what stands before is out of sight. If it cannot be split, it moves to the next row as a whole.

    Args:
        take: gives the next examples, of so many tokens if there are; none: there are no more.
        report: counts examples that are longer than a row and cannot be split.
    """

    def __init__(self, take: Callable[[int], Iterable[Span]], report: StreamReport) -> None:
        self._take, self._report = take, report
        self._queue: deque[Part] = deque()

    @property
    def waiting(self) -> int:
        """Positions that were taken but are not in a row yet."""
        return sum([stop - start for _, start, stop in self._queue])

    def resume(self, span: Span, done: int) -> None:
        """Go on with examples of which the first `done` positions are in rows already."""
        examples, start, stop = _part_of(span)
        if start + done < stop:
            self._queue.append((examples, start + done, stop))

    def fill(self, rows: Rows, row: int) -> bool:
        """Fill one row. Returns whether there was anything to put into it."""
        parts: list[Part] = []
        room, queue = rows.length, self._queue
        while room:
            if not queue:
                queue.extend(map(_part_of, self._take(room)))
                if not queue:
                    break
            examples, start, stop = queue.popleft()
            end, following = self._fitting(examples, start, stop, room, not parts)
            if following < stop:
                queue.appendleft((examples, following, stop))
            if end == start:
                break
            parts.append((examples, start, end))
            room -= end - start
        if parts:
            rows.write(row, parts)
        return bool(parts)

    def _fitting(self, examples: Examples, start: int, stop: int, room: int, alone: bool) -> tuple[int, int]:
        """Up to where a part fits into the rest of a row, and from where it goes on. `alone`: the row is empty."""
        if stop - start <= room:
            return stop, stop
        number = bisect_right(examples.borders, start + room) - 1
        if examples.splittable[number]:
            return start + room, start + room
        begin = max(start, examples.borders[number])
        if begin > start or not alone:
            return begin, begin
        self._report.cut_examples += not examples.cut[number]
        return start + room, examples.borders[number + 1]


def _part_of(span: Span) -> Part:
    borders = span.examples.borders
    return span.examples, borders[span.first], borders[span.last]


class Lane:
    """One row of every global batch, with a place in every source of its own.

    state: the source of the document that is not finished (-1: none), the positions of it that are in rows, and the
    mixture's state, in which the place of that source is the place of the document itself.
    """

    def __init__(self, mixture: Mixture, report: StreamReport, state: Sequence[Any] = ()) -> None:
        self._mixture = mixture
        self._packer = Packer(mixture.take, report)
        if state and state[0] >= 0:
            mixture.last_source = state[0]
            self._packer.resume(mixture.cursors[state[0]].take()[0], state[1])

    def fill(self, rows: Rows, row: int) -> None:
        """Fill one row with the next examples."""
        self._packer.fill(rows, row)

    def state(self) -> list[Any]:
        """Where the lane is, as plain ints and short lists."""
        waiting = self._packer.waiting
        if not waiting:
            return [-1, 0, *self._mixture.state()]
        mixture = self._mixture
        done = mixture.cursors[mixture.last_source].last_size - waiting
        return [mixture.last_source, done, *mixture.state(unfinished=True)]
