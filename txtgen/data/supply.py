"""Corpora -> examples in training order: a keyed order of blocks and documents, and sources mixed by weight."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from txtgen.data.corpora import Corpus, Split, records_of
from txtgen.data.examples import Documents, Examples, Span
from txtgen.data.objectives import Objective
from txtgen.data.order import Use, keyed_permutation, keyed_share, keyed_word
from txtgen.data.records import BlockUnits
from txtgen.data.report import BadRecordPolicy
from txtgen.data.types import Record
from txtgen.errors import DataError

TOGETHER_BYTES = 64 * 1024
"""Documents of one block are tokenised together until they have this many bytes."""

Place = tuple[int, int]
"""A block, counted on through all epochs, and the next document in it, in the order in which they are read."""


@dataclass(frozen=True, slots=True)
class OpenBlock:
    """The units of a block, the order in which they are read, and the epoch in which they are."""

    units: BlockUnits
    order: Sequence[int]
    epoch: int = 0

    def following(self, start: int, size: int) -> Sequence[int]:
        """The next units from place `start` of the order on, until they have `size` bytes."""
        stop, starts, stops = start, self.units.spans.starts, self.units.spans.stops
        while size > 0 and stop < len(self.order):
            unit = self.order[stop]
            size -= stops[unit] - starts[unit]
            stop += 1
        return self.order[start:stop]


class Feed:
    """The examples of one corpus.

    Blocks are counted on through all epochs: block g belongs to epoch g // N, if there are N, and is place g mod N
    of the order of that epoch.
    """

    def __init__(
        self,
        corpus: Corpus,
        objective: Objective,
        policy: BadRecordPolicy,
        seed: int,
        split: Split | None = None,
    ) -> None:
        self.corpus = corpus
        self._objective, self._policy = objective, policy
        self._seed, self._split = seed, split
        self._opened = 0
        self._is_usable = False
        # Lanes are seldom more than an epoch apart, unless the corpus is tiny.
        self._epoch_order = lru_cache(maxsize=4)(self._make_epoch_order)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.corpus.blocks)

    def _make_epoch_order(self, epoch: int) -> NDArray[np.int64]:
        return keyed_permutation(len(self), Use.BLOCKS, self._seed, self.corpus.number, epoch)

    def open(self, number: int) -> OpenBlock:
        """Read a block, counted on through all epochs, its units in the order of that epoch.

        Raises:
            DataError: it cannot be read, or an epoch has gone by with too many bad records.
        """
        if self._opened and self._opened % len(self) == 0:
            self._policy.check()
        self._opened += 1
        epoch, place = divmod(number, len(self))
        block = int(self._epoch_order(epoch)[place])
        self._policy.report.reading = self.corpus.files[self.corpus.blocks[block].file].path
        units = self.corpus.units(block)
        key = (Use.UNITS, self._seed, self.corpus.number, epoch, block)
        return OpenBlock(units, keyed_permutation(len(units), *key).tolist(), epoch)

    def in_order(self) -> Iterator[Documents]:
        """Every document once, in the order of the files."""
        for block in range(len(self)):
            units = self.corpus.units(block)
            opened, start = OpenBlock(units, range(len(units))), 0
            while start < len(units):
                found = self.read(opened, start)
                start = found.stop
                if found:
                    yield found

    def read(self, opened: OpenBlock, start: int) -> Documents:
        """The documents of the next few units from `start` on, in order, without those that are left out.

        Raises:
            DataError: one is bad, and bad records are not to be skipped.
        """
        chosen = opened.following(start, TOGETHER_BYTES)
        _, places, examples = self.examples(opened, chosen)
        return Documents(examples, [start + places[record] for record in examples.records], start + len(chosen))

    def examples(self, opened: OpenBlock, chosen: Sequence[int]) -> tuple[Sequence[Record], list[int], Examples]:
        """The records of these units without those that are left out, for each the place in `chosen` of its unit, and
        the examples of all of them.

        Raises:
            DataError: one is bad, and bad records are not to be skipped.
        """
        records, places = records_of(opened.units, chosen, self._split, self._policy)
        keys = [0] * len(records)
        if self._objective.draws:
            counts = [(chosen[place], len([*its])) for place, its in groupby(places)]
            keys = [key for unit, count in counts for key in self._keys(opened, unit, count)]
        examples = self._objective.columns(records, keys)
        for bad in examples.bad.values():
            self._policy.refuse(bad)
        self._policy.report.cut_examples += sum(examples.cut)
        return records, places, examples

    def _keys(self, opened: OpenBlock, unit: int, count: int) -> Iterator[int]:
        """What the random draws for each record of a unit depend on: its place and the epoch, not the run so far."""
        units = opened.units
        place = (self.corpus.number, units.block.file, units.offset(unit), opened.epoch)
        return (keyed_word(Use.RECORD, self._seed, *place, number) >> 1 for number in range(count))

    def require_usable(self) -> None:
        """Make sure that there is any example at all.

        Raises:
            DataError: there is none.
        """
        self._is_usable = self._is_usable or next(self.in_order(), None) is not None
        if not self._is_usable:
            report = self._policy.report
            raise DataError(
                f"there is nothing to learn: {report.records} records, {report.bad_records} of them bad, "
                f"{report.held_out} documents held out",
                self.corpus.name,
                "check the files, the source's kind and data.validation",
            )


class Cursor:
    """A reader of one feed that takes every `stride`-th block. `place` is that of the next document to take."""

    def __init__(self, feed: Feed, stride: int, place: Place) -> None:
        self.place = self.last_place = place
        self.last_size = 0
        self._feed, self._stride = feed, stride
        self._block = place[0]
        self._open: OpenBlock | None = None
        self._ready, self._next = Documents(Examples.of([]), [], place[1]), 0

    @property
    def epoch(self) -> int:
        """The epoch of the document that `take` gives next."""
        self._make_ready()
        return self._block // len(self._feed)

    def size(self) -> int:
        """The tokens of the document that `take` gives next."""
        self._make_ready()
        return self._ready.size(self._next, self._next + 1)

    def take(self, tokens: int = 1) -> tuple[Span, int]:
        """The next documents that have any examples, until they have `tokens` or no more are at hand, but at least one;
        and the tokens that they have. The last one's place and tokens become `last_place` and `last_size`."""
        self._make_ready()
        first, ready = self._next, self._ready
        self._next = ready.reaching(first, tokens)
        number = ready.number(self._next - 1)
        self.last_place, self.place = (self._block, number), (self._block, number + 1)
        self.last_size = ready.size(self._next - 1, self._next)
        return ready.span(first, self._next), ready.size(first, self._next)

    def _make_ready(self) -> None:
        """Read on until there is a document, for ever if need be, but not without knowing that there is one."""
        blocks_without = 0
        while self._next == len(self._ready):
            start = self._ready.stop
            if self._open is None:
                self._open = self._feed.open(self._block)
            if start >= len(self._open.order):
                blocks_without += not self._ready
                if blocks_without == len(self._feed):
                    self._feed.require_usable()
                    blocks_without = 0
                self._block, start = self._block + self._stride, 0
                self._open = self._feed.open(self._block)
            self._ready, self._next = self._feed.read(self._open, start), 0


class Mixture:
    """Documents of several feeds, so that each has its share of the tokens.

    The next document is taken from the source that has had the fewest tokens for its share. Each lane starts as if a
    part of the first document of every source, drawn by key, had been taken already: without it, all lanes would take
    the same turns at the same time, and a rare source would fill the first batch. With it, every source has its share
    of the first batches on average. Source: start-time fair queueing, Goyal et al. 1996, with random phases.

    Args:
        feeds: one for each source.
        shares: of the tokens, for each source.
        lane: number of this lane.
        stride: number of lanes.
        seed: of the keyed draws.
        state: what `state` gave; None: the beginning.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        shares: Sequence[float],
        lane: int,
        stride: int,
        seed: int,
        state: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._shares = shares
        self.last_source = 0
        if state is not None:
            self.cursors = [
                Cursor(feed, stride, (block, number)) for feed, (block, number, _) in zip(feeds, state, strict=True)
            ]
            self._tokens = [tokens for _, _, tokens in state]
            return
        self.cursors = [Cursor(feed, stride, (lane, 0)) for feed in feeds]
        self._tokens = [0] * len(feeds)
        if len(feeds) > 1:
            for source, cursor in enumerate(self.cursors):
                self._tokens[source] = int(keyed_share(Use.HEAD_START, seed, source, lane) * cursor.size())

    def take(self, tokens: int = 1) -> list[Span]:
        """The examples of the next documents: of one, or of as many as come before there are `tokens`."""
        taken: list[Span] = []
        while tokens > 0:
            if len(self._shares) > 1:
                ratios = [had / share for had, share in zip(self._tokens, self._shares, strict=True)]
                self.last_source = ratios.index(min(ratios))
            span, size = self.cursors[self.last_source].take(tokens if len(self._shares) == 1 else 1)
            self._tokens[self.last_source] += size
            tokens -= size
            taken.append(span)
        return taken

    def epoch(self) -> int:
        """The epoch of the next document, of the source that is furthest behind."""
        return min(cursor.epoch for cursor in self.cursors)

    def state(self, unfinished: bool = False) -> list[list[int]]:
        """For each source the place (block, document) and the tokens so far.

        `unfinished`: the place of the document that was taken last, not the one after it.
        """
        places = [cursor.place for cursor in self.cursors]
        if unfinished:
            places[self.last_source] = self.cursors[self.last_source].last_place
        return [[*place, tokens] for place, tokens in zip(places, self._tokens, strict=True)]
