"""What training would see of a corpus, counted: the very examples that the stream makes in its first epoch."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from txtgen.config.data import DataConfig
from txtgen.data.corpora import Split, open_corpora
from txtgen.data.examples import Examples
from txtgen.data.objectives import Objective
from txtgen.data.report import BadRecordPolicy, StreamReport, locate
from txtgen.data.supply import TOGETHER_BYTES, Feed, OpenBlock
from txtgen.data.types import (
    IGNORE,
    ChatRecord,
    Example,
    Message,
    PairRecord,
    PreferenceRecord,
    Record,
    TextRecord,
    Tokens,
)
from txtgen.data.validation import held_out
from txtgen.tokenizer import Ids, Tokenizer

MAX_HASHES = 1 << 19
"""Records whose hashes are kept, some 50 MB of them: of more records, these are a fair sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An example as the model sees it: where it is from, what an encoder reads of it, and its row or target; each token
    as it is displayed, its id, and whether it is to be predicted."""

    place: str
    source: list[tuple[str, int]]
    tokens: list[tuple[str, int, bool]]


@dataclass
class Survey:
    """What was found in one part of a corpus.

    num_bytes: of its files. read_bytes: those looked at, in an order that makes them a fair sample. report: as of a
    stream. blank: units without any text. examples: made of the records. ending: those whose last token to predict is
    the end. tokens: that the model reads, of them byte_tokens that stand for single bytes and unknown_tokens.
    scored_tokens: to predict. lengths, source_lengths: how many examples have up to so many tokens, and more than half
    as many. repeated, compared: records that were there before, of so many whose hash is kept. shared, sought: records
    that are in the training text too, of so many.
    """

    num_bytes: int = 0
    read_bytes: int = 0
    report: StreamReport = field(default_factory=StreamReport)
    blank: int = 0
    examples: int = 0
    ending: int = 0
    tokens: int = 0
    byte_tokens: int = 0
    unknown_tokens: int = 0
    scored_tokens: int = 0
    longest: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    source_lengths: dict[int, int] = field(default_factory=dict)
    repeated: int = 0
    compared: int = 0
    shared: int = 0
    sought: int = 0
    samples: list[Sample] = field(default_factory=list)


def survey(
    data: DataConfig,
    training: Objective,
    validation: Objective,
    *,
    source_tokenizer: Tokenizer | None,
    seed: int,
    max_bytes: int,
    num_samples: int,
) -> tuple[Survey, Survey | None]:
    """Look over the training text and the held-out text, None if none is held out. Bad records are counted, never
    raised.

    Args:
        data: the corpus.
        training: makes examples of what is trained on.
        validation: makes examples of what is held out.
        source_tokenizer: of what an encoder reads; None: the same.
        seed: the run's.
        max_bytes: of either, to look at; what is larger is sampled.
        num_samples: examples to show.

    Raises:
        DataError: a source cannot be read or holds no text.
        TxtgenError: what an objective cannot do with any record.
    """
    fraction = data.validation.fraction
    corpora, split = open_corpora(data.training_sources), Split(seed, fraction, held=False) if fraction else None
    seen = Hashes()
    found = _Surveyor(data, training, source_tokenizer, seen, num_samples)
    found.look_at([Feed(corpus, training, found.policy, seed, split) for corpus in corpora], max_bytes)
    if not (data.validation.sources or fraction):
        return found.finished(), None
    corpora, split = held_out(data, seed)
    held = _Surveyor(data, validation, source_tokenizer, Hashes(), num_samples, known=seen)
    held.look_at([Feed(corpus, validation, held.policy, seed, split) for corpus in corpora], max_bytes)
    if fraction:
        held.found.blank = 0  # the blank units of these files are counted already
    return found.finished(), held.finished()


class Hashes:
    """Distinct hashes of 64 bits and how often each was met, or where there are many, of a share of all hashes.

    Source: distinct sampling, Gibbons 2001.
    """

    def __init__(self, most: int = MAX_HASHES) -> None:
        self.counts: dict[int, int] = {}
        self._most, self._mask = most, 0

    def keeps(self, value: int) -> bool:
        """Whether this hash is one of those that are kept."""
        return not value & self._mask

    def add(self, value: int) -> None:
        """Take up a hash."""
        if self.keeps(value):
            self.counts[value] = self.counts.get(value, 0) + 1
            if len(self.counts) > self._most:
                self._mask = 2 * self._mask + 1
                self.counts = {value: count for value, count in self.counts.items() if self.keeps(value)}


def _texts_of(messages: Sequence[Message]) -> list[str]:
    """The roles and contents of turns, in order."""
    return [text for message in messages for text in (message.role, message.content)]


def hash_of(record: Record) -> int:
    """64 bits that tell a record from others, wherever it stands."""
    match record:
        case TextRecord():
            texts = [record.text]
        case PairRecord():
            texts = [record.source, record.target]
        case ChatRecord():
            texts = _texts_of(record.messages)
        case PreferenceRecord(prompt, chosen, rejected):
            texts = [*([prompt] if isinstance(prompt, str) else _texts_of(prompt)), chosen, rejected]
        case _:
            assert_never(record)
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True)
class _Kinds:
    """What each token of a vocabulary is, a bool each: a single byte, unknown, an end, white space. IGNORE is none."""

    is_byte: NDArray[np.bool_]
    is_unknown: NDArray[np.bool_]
    is_end: NDArray[np.bool_]
    is_space: NDArray[np.bool_]

    @classmethod
    def of(cls, tokenizer: Tokenizer, ends: Sequence[int] = ()) -> "_Kinds":
        size = len(tokenizer)
        spaces = [number for number in range(size) if tokenizer.token_bytes(number).isspace()]

        def marked(ids: Iterable[int]) -> NDArray[np.bool_]:
            marks = np.zeros(size - IGNORE, np.bool_)  # IGNORE counts from the end, where there is nothing
            marks[list(ids)] = True
            return marks

        return cls(marked(tokenizer.byte_ids), marked([tokenizer.special.unk_id]), marked(ends), marked(spaces))


class _Surveyor:
    """Counts one part of a corpus. known: the hashes of the training text, for what validates."""

    def __init__(
        self,
        data: DataConfig,
        objective: Objective,
        source_tokenizer: Tokenizer | None,
        seen: Hashes,
        num_samples: int,
        known: Hashes | None = None,
    ) -> None:
        self.found = Survey()
        counting = data.model_copy(update={"on_bad_record": "skip", "max_bad_fraction": 1.0})
        self.policy = BadRecordPolicy(counting, self.found.report)
        self._tokenizer = objective.tokenizer
        self._source_tokenizer = source_tokenizer or objective.tokenizer
        self._kinds = _Kinds.of(self._tokenizer, [*objective.framing.end, self._tokenizer.special.eos_id])
        self._source_kinds = self._kinds if source_tokenizer is None else _Kinds.of(source_tokenizer)
        self._seen, self._known, self._num_samples = seen, known, num_samples
        self._lengths: Counter[int] = Counter()
        self._source_lengths: Counter[int] = Counter()
        self._drawn: list[tuple[int, int, Example]] = []
        """A heap of examples of the records with the lowest hashes, each with its hash below zero."""
        self._order = count()

    def look_at(self, feeds: Sequence[Feed], max_bytes: int) -> None:
        """Take up the blocks of each source in the order of the first epoch, until it has its share of the bytes."""
        total = sum(feed.corpus.num_bytes for feed in feeds)
        self.found.num_bytes = total
        for feed in feeds:
            size, most = 0, max_bytes * feed.corpus.num_bytes // max(total, max_bytes)
            blocks = iter(range(len(feed)))
            while size < most and (block := next(blocks, None)) is not None:
                size += self._look_at_block(feed, feed.open(block), most - size)
            self.found.read_bytes += feed.corpus.num_bytes if next(blocks, None) is None else size

    def _look_at_block(self, feed: Feed, opened: OpenBlock, most: int) -> int:
        """The bytes that were looked at."""
        start = size = 0
        while start < len(opened.order) and size < most:
            chosen = opened.following(start, TOGETHER_BYTES)
            records, _, examples = feed.examples(opened, chosen)
            self._count_records(records, examples)
            self._count_examples(examples)
            self.found.blank += sum(map(opened.units.is_blank, chosen))
            size += sum(map(opened.units.size, chosen))
            start += len(chosen)
        return size

    def _count_records(self, records: Sequence[Record], examples: Examples) -> None:
        first: dict[int, int] = {}
        for number, place in enumerate(examples.records):
            first.setdefault(place, number)
        for place, record in enumerate(records):
            value = hash_of(record)
            self._seen.add(value)
            if self._known is not None and self._known.keeps(value):
                self.found.sought += 1
                self.found.shared += value in self._known.counts
            if place in first:
                self._draw(-value, examples, first[place])

    def _draw(self, rank: int, examples: Examples, number: int) -> None:
        """Keep an example if its record is one of those with the lowest hashes."""
        if any(rank == other for other, *_ in self._drawn):
            return
        if len(self._drawn) < self._num_samples:
            heapq.heappush(self._drawn, (rank, next(self._order), examples[number]))
        elif self._drawn and rank > self._drawn[0][0]:
            heapq.heapreplace(self._drawn, (rank, next(self._order), examples[number]))

    def _count_examples(self, examples: Examples) -> None:
        found, kinds = self.found, self._kinds
        starts, stops = np.array(examples.borders[:-1], np.int64), np.array(examples.borders[1:], np.int64)
        found.examples += len(examples)
        scored = examples.labels != IGNORE
        found.scored_tokens += int(scored.sum())
        self._count_tokens(examples.input_ids, kinds)
        lengths = stops - starts
        for ids in examples.source_ids:
            if ids is not None:
                self._count_tokens(ids, self._source_kinds)
                self._source_lengths[bin_of(len(ids))] += 1
        self._lengths.update(map(bin_of, lengths.tolist()))
        found.longest = max(found.longest, int(lengths.max(initial=0)))
        # The last token to predict, but for white space, which templates write after the end of a turn.
        counts = scored & ~kinds.is_space[examples.labels]
        last = np.maximum.accumulate(np.where(counts, np.arange(len(counts)), -1))
        ends = last[stops - 1]
        found.ending += int((kinds.is_end[examples.labels[ends]] & (ends >= starts)).sum())

    def _count_tokens(self, ids: Ids | Tokens, kinds: _Kinds) -> None:
        self.found.tokens += len(ids)
        self.found.byte_tokens += int(kinds.is_byte[ids].sum())
        self.found.unknown_tokens += int(kinds.is_unknown[ids].sum())

    def finished(self) -> Survey:
        """All that was found."""
        found, counts = self.found, self._seen.counts
        found.lengths, found.source_lengths = dict(self._lengths), dict(self._source_lengths)
        found.compared = sum(counts.values())
        found.repeated = found.compared - len(counts)
        found.samples = [self._shown(example) for *_, example in sorted(self._drawn, key=lambda each: -each[0])]
        return found

    def _shown(self, example: Example) -> Sample:
        source = example.source_ids
        first = example.input_ids[:1]
        following = np.where(example.labels == IGNORE, np.append(example.input_ids[1:], IGNORE), example.labels)
        ids = [token for token in np.concatenate([first, following]).tolist() if token != IGNORE]
        scored = [False, *(example.labels != IGNORE).tolist()]
        source_ids = [] if source is None else source.tolist()
        return Sample(
            locate(example.origin),
            list(zip(self._source_tokenizer.pieces(source_ids), source_ids, strict=True)),
            list(zip(self._tokenizer.pieces(ids), ids, scored[: len(ids)], strict=True)),
        )


def bin_of(length: int) -> int:
    """The power of two up to which a length is counted."""
    return 1 << max(0, length - 1).bit_length()
