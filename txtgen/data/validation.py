"""Held-out text: read once, in order, the same every time."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Unpack

from txtgen.config.data import DataConfig
from txtgen.data.buckets import cut_window, pad_pairs, read_window
from txtgen.data.corpora import Corpus, Split, open_corpora, usable_records
from txtgen.data.examples import Documents
from txtgen.data.objectives import Objective
from txtgen.data.packing import Packer, Rows
from txtgen.data.report import BadRecordPolicy, StreamReport
from txtgen.data.supply import Feed
from txtgen.data.types import Batch, PairRecord, Record, StreamOptions
from txtgen.errors import ConfigError, DataError


class ValidationBatches:
    """The held-out text as batches. Every iteration is one pass: the same batches each time, as many on each rank."""

    def __init__(
        self,
        feeds: Sequence[Feed],
        objective: Objective,
        batch_tokens: int,
        length: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._feeds, self._objective = feeds, objective
        self._batch_tokens, self._length, self._seed = batch_tokens, length, seed
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the held-out text."""
        return self._packed() if self._objective.packed else self._pairs()

    @property
    def num_units(self) -> int:
        """Lines, pairs or documents, blank ones included, before any is left out."""
        return sum(len(feed.corpus.units(block)) for feed in self._feeds for block in range(len(feed)))

    def documents(self) -> Iterator[Documents]:
        """The held-out documents, some at a time."""
        return itertools.chain.from_iterable(feed.in_order() for feed in self._feeds)

    def _packed(self) -> Iterator[Batch]:
        spans = (found.span(0, len(found)) for found in self.documents())
        packer = Packer(lambda _tokens: itertools.islice(spans, 1), StreamReport())
        most = self._batch_tokens // self._length
        count = max(1, most // self._world_size) * self._world_size
        filled = count
        while filled == count:
            rows = Rows(count, self._length, self._objective.pad_id)
            filled = sum(itertools.takewhile(bool, (packer.fill(rows, row) for row in range(count))))
            # In the last batch a rank may have a row of padding, none has a row more than another.
            stop = -(-filled // self._world_size) * self._world_size
            if filled:
                yield rows.batch(self._objective, slice(self._rank, stop, self._world_size))

    def _pairs(self) -> Iterator[Batch]:
        each = (found.span(number, number + 1).each() for found in self.documents() for number in range(len(found)))
        for number in itertools.count():
            window = read_window(lambda: next(each, []))
            if not window:
                return
            for examples in cut_window(window, self._batch_tokens, self._seed, number):
                yield pad_pairs(examples, self._objective, self._rank, self._world_size)


def validation_batches(
    data: DataConfig,
    objective: Objective,
    *,
    batch_tokens: int,
    length: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    report: StreamReport | None = None,
) -> ValidationBatches:
    """The held-out text as batches: an iterable of which every iteration is one pass.

    The text is packed in the order of the files, the last row is filled up with padding. Pairs are sorted by length
    in windows as in training, and the order of the batches is keyed, so that the first few are a fair sample. What an
    objective draws at random is the same in every pass.

    Args:
        data: the corpus and what of it is held out.
        objective: makes examples of it.
        batch_tokens: tokens of a global batch at most, but at least a row for each rank.
        length: T, positions of a packed row.
        seed: the run's, which decides what is held out.
        rank: of this process; it gets every world_size-th row.
        world_size: number of ranks.
        report: where records are counted.

    Raises:
        ConfigError: nothing is configured to be held out.
        DataError: the held-out text cannot be read, or there is none.
    """
    report = report or StreamReport()
    corpora, split = held_out(data, seed)
    policy = BadRecordPolicy(data, report)
    feeds = [Feed(corpus, objective, policy, seed, split) for corpus in corpora]
    batches = ValidationBatches(feeds, objective, batch_tokens, length, seed, rank, world_size)
    if next(batches.documents(), None) is None:
        raise _nothing_held_out(data, corpora, report)
    return batches


def every_batch(data: DataConfig, objective: Objective, **options: Unpack[StreamOptions]) -> ValidationBatches:
    """All that a run may read, held out or not, once, as `validation_batches` gives what is held out.

    Raises:
        DataError: it cannot be read.
    """
    corpora = [*open_corpora(data.sources), *open_corpora(data.validation.sources)]
    policy = BadRecordPolicy(data, StreamReport())
    feeds = [Feed(corpus, objective, policy, options["seed"]) for corpus in corpora]
    rank, world_size = options.get("rank", 0), options.get("world_size", 1)
    return ValidationBatches(
        feeds, objective, options["batch_tokens"], options["length"], options["seed"], rank, world_size
    )


def validation_parts(
    data: DataConfig,
    objective: Objective,
    **options: Unpack[StreamOptions],
) -> dict[str, ValidationBatches]:
    """`validation_batches` for each part of a mixture that can read any of the held-out text, by the part's name; of
    an objective that is no mixture under "".

    Raises:
        ConfigError, DataError: as for `validation_batches`.
    """
    parts: dict[str, ValidationBatches] = {}
    for name, part in (objective.parts or {"": objective}).items():
        try:
            parts[name] = validation_batches(data, part, **options)
        except NothingHeldOut as nothing:
            error = nothing
    if not parts:
        raise error
    return parts


def validation_pairs(data: DataConfig, *, seed: int) -> Iterator[PairRecord]:
    """The held-out pairs, in the order of the files. Conversations and plain text are left out.

    Raises:
        ConfigError, DataError: as for `validation_records`.
    """
    return (record for record in validation_records(data, seed=seed) if isinstance(record, PairRecord))


def validation_records(data: DataConfig, *, seed: int, report: StreamReport | None = None) -> Iterator[Record]:
    """What is held out, in the order of the files.

    Raises:
        ConfigError: nothing is configured to be held out.
        DataError: the held-out text cannot be read.
    """
    corpora, split = held_out(data, seed)
    policy = BadRecordPolicy(data, report or StreamReport())
    return (
        record
        for corpus in corpora
        for block in range(len(corpus.blocks))
        for units in [corpus.units(block)]
        for unit in range(len(units))
        for record in usable_records(units, unit, split, policy)
    )


def held_out(data: DataConfig, seed: int) -> tuple[list[Corpus], Split | None]:
    """The sources of the held-out text, and which of their documents are.

    Raises:
        ConfigError: nothing is configured to be held out.
        DataError: they cannot be read.
    """
    validation = data.validation
    if validation.sources:
        return open_corpora(validation.sources), None
    if validation.fraction:
        return open_corpora(data.sources), Split(seed, validation.fraction, held=True)
    raise ConfigError(
        "there is no validation data",
        "data.validation",
        "set data.validation.fraction or data.validation.sources",
    )


class NothingHeldOut(DataError):
    """There is nothing to validate on."""


def _nothing_held_out(data: DataConfig, corpora: Sequence[Corpus], report: StreamReport) -> NothingHeldOut:
    found = f"{report.records} records, {report.bad_records} of them bad"
    if data.validation.sources:
        names = "; ".join(corpus.name for corpus in corpora)
        return NothingHeldOut(f"the validation sources hold nothing to learn from: {found}", names, "check the files")
    documents = sum(len(corpus.units(block)) for corpus in corpora for block in range(len(corpus.blocks)))
    return NothingHeldOut(
        f"fraction {data.validation.fraction} holds out nothing usable of {documents} documents: {found}",
        "data.validation.fraction",
        "raise it, or name data.validation.sources",
    )
