"""The training stream: an endless row of batches in an order that only the configuration, seed and corpus decide."""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from txtgen.config.data import DataConfig
from txtgen.data.bookmarks import Bookmark, Header, lane_state, refuse_changes
from txtgen.data.buckets import cut_window, pad_pairs, read_window
from txtgen.data.corpora import Corpus, Split, open_corpora
from txtgen.data.objectives import Objective
from txtgen.data.packing import Lane, Rows
from txtgen.data.report import BadRecordPolicy, StreamReport
from txtgen.data.supply import Feed, Mixture
from txtgen.data.types import Batch
from txtgen.data.workers import Share, work_ahead
from txtgen.errors import ConfigError

BYTES_PER_TOKEN = 64
"""More than a token has on average in any language: a larger corpus need not be counted to know that it is enough."""

_log = logging.getLogger(__name__)


def train_stream(
    data: DataConfig,
    objective: Objective,
    *,
    batch_tokens: int,
    length: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    bookmark: Bookmark | None = None,
    accept_changes: bool = False,
    workers: int = 0,
    report: StreamReport | None = None,
) -> Generator[Batch]:
    """Endless training batches: the rows of each global batch that belong to one rank.

    Packed rows: a global batch has B = batch_tokens / length rows, and row b goes to the rank r for which b mod
    world_size is r. Row b of every batch comes from lane b, which reads every B-th block; so the global batches are
    the same for every world_size, and no rank reads what another trains on. Pairs: batch_tokens bounds the padded
    size of a global batch, its rows go to the ranks in turn, and `length` is not used.

    Args:
        data: the corpus.
        objective: makes examples of it.
        batch_tokens: tokens of a global batch.
        length: T, positions of a packed row.
        seed: of every order and draw.
        rank: of this process.
        world_size: number of ranks.
        bookmark: of the batch after which to go on, merged over all ranks; None or empty: from the beginning.
        accept_changes: go on although files are not what they were when the bookmark was made: from the same places in
            the order of the new text. Otherwise that is an error.
        workers: processes that read and tokenise ahead; the batches are the same for every number. 0: this one does it.
        report: where records are counted and changed files are named.

    Raises:
        ConfigError: rows, ranks and batch_tokens do not fit together, or the bookmark is of another stream.
        DataError: the corpus cannot be read, is not what the bookmark is of, or holds nothing to learn; raised at
            once, except for what only reading on can find.
        CheckpointError: the bookmark is damaged.
        DistributedError: while reading on, a worker was killed.
    """
    report = report or StreamReport()
    rows = rows_of_batch(batch_tokens, length, world_size) if objective.packed else 0
    corpora = open_corpora(data.training_sources)
    header = Header("rows", seed, rows, corpora) if rows else Header("windows", seed, batch_tokens, corpora)
    report.changed_files = header.check(bookmark) if bookmark else []
    if not accept_changes:
        refuse_changes(report.changed_files)
    plan = Plan(data, corpora, objective, batch_tokens, length, seed, rank, world_size, rows, bookmark or {})
    if rows:
        _look_over_small_corpus(plan)
    shares = plan.shares(workers)
    found = work_ahead(shares, report) if workers else ([part] for part in shares[0](report))
    return _batches(plan, found, header.write())


def _batches(plan: "Plan", found: Generator[list[Any]], header: Bookmark) -> Generator[Batch]:
    with closing(found):
        for parts in found:
            batch = plan.batch(parts)
            yield replace(batch, bookmark={**header, **batch.bookmark})


@dataclass(frozen=True)
class Plan:
    """All that decides on the batches of one rank; it can be sent to another process.

    rows: of a global batch of packed rows; 0: pairs. bookmark: of the batch after which to go on, or empty. The batches
    have bookmarks without a header.
    """

    data: DataConfig
    corpora: Sequence[Corpus]
    objective: Objective
    batch_tokens: int
    length: int
    seed: int
    rank: int
    world_size: int
    rows: int
    bookmark: Bookmark

    def shares(self, workers: int) -> list[Share]:
        """The work shared out to so many workers: lanes are dealt to them in turn, windows are all one's."""
        if not self.rows:
            return [self.pairs]
        lanes = range(self.rank, self.rows, self.world_size)
        # Checked here, where the bookmark can still be refused at once.
        states = {lane: lane_state(self.bookmark, lane) if self.bookmark else [] for lane in lanes}
        count = max(1, min(workers, len(lanes)))
        return [partial(self.packed, {lane: states[lane] for lane in lanes[number::count]}) for number in range(count)]

    def batch(self, parts: Sequence[Any]) -> Batch:
        """The batch of which the shares have made these parts."""
        if not self.rows:
            (batch,) = parts
            assert isinstance(batch, Batch)
            return batch
        rows, lanes = zip(*parts, strict=True)
        bookmark = {"lanes": {lane: state for states in lanes for lane, state in states.items()}}
        return (rows[0] if len(rows) == 1 else Rows.dealt(rows)).batch(self.objective, bookmark=bookmark)

    def packed(self, states: dict[int, list[Any]], report: StreamReport) -> Generator[tuple[Rows, dict[str, Any]]]:
        """The rows of some lanes, each from its state on, and the states after them."""
        feeds, shares = self.feeds(report), _shares(self.corpora, self.data)
        lanes: dict[int, Lane] = {}
        for number, state in states.items():
            mixture = Mixture(feeds, shares, number, self.rows, self.seed, state[2:] or None)
            lanes[number] = Lane(mixture, report, state)
        while True:
            rows = Rows(len(lanes), self.length, self.objective.pad_id)
            for row, lane in enumerate(lanes.values()):
                lane.fill(rows, row)
            yield rows, {str(number): lane.state() for number, lane in lanes.items()}

    def pairs(self, report: StreamReport) -> Generator[Batch]:
        """The rank's rows of every batch of pairs."""
        number, used = (self.bookmark["window"], self.bookmark["used"]) if self.bookmark else (0, 0)
        places = self.bookmark["places"] if self.bookmark else None
        mixture = Mixture(self.feeds(report), _shares(self.corpora, self.data), 0, 1, self.seed, places)
        while True:
            places = mixture.state()
            window = read_window(lambda: mixture.take()[0].each(), mixture.epoch)
            batches = cut_window(window, self.batch_tokens, self.seed, number)
            for place in range(used, len(batches)):
                # After its last batch, a window is done with and need not be read again.
                done = place + 1 == len(batches)
                reached = (
                    {"window": number + 1, "used": 0, "places": mixture.state()}
                    if done
                    else {"window": number, "used": place + 1, "places": places}
                )
                yield pad_pairs(batches[place], self.objective, self.rank, self.world_size, reached)
            number, used = number + 1, 0

    def feeds(self, report: StreamReport) -> list[Feed]:
        """A new reader of each source."""
        fraction = self.data.validation.fraction
        split = Split(self.seed, fraction, held=False) if fraction else None
        policy = BadRecordPolicy(self.data, report)
        return [Feed(corpus, self.objective, policy, self.seed, split) for corpus in self.corpora]


def rows_of_batch(batch_tokens: int, length: int, world_size: int) -> int:
    """Rows of a global batch of packed rows.

    Raises:
        ConfigError: batch_tokens is not a number of whole rows, or the rows cannot be shared out evenly.
    """
    rows, rest = divmod(batch_tokens, length)
    if rest or rows % world_size or not rows:
        step = length * world_size
        below, above = batch_tokens // step * step, (batch_tokens // step + 1) * step
        near = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"batch_tokens {batch_tokens} cannot be shared out as rows of {length} tokens to {world_size} ranks",
            "train.batch_tokens",
            f"set it to {near}",
        )
    return rows


def _shares(corpora: Sequence[Corpus], data: DataConfig) -> list[float]:
    """The share of each source in the tokens: by the weights that are given, or else by size; of those that are
    replayed, so that they have theirs together."""
    count, replayed = len(data.sources), data.replay.share if data.replay else 0.0
    return [
        whole * weight / sum(weights)
        for whole, group in ((1.0 - replayed, corpora[:count]), (replayed, corpora[count:]))
        for weights in [[corpus.source.weight or float(corpus.num_bytes) for corpus in group]]
        for weight in weights
    ]


def _look_over_small_corpus(plan: Plan) -> None:
    """Read a corpus that may be smaller than one row as a whole, and warn if it is.

    Raises:
        DataError: it holds too many bad records.
    """
    if sum(corpus.num_bytes for corpus in plan.corpora) > plan.length * BYTES_PER_TOKEN:
        return
    report = StreamReport()
    tokens = sum(found.size(0, len(found)) for feed in plan.feeds(report) for found in feed.in_order())
    BadRecordPolicy(plan.data, report).check()
    if 0 < tokens < plan.length:
        _log.warning("the corpus has only %d tokens, and a row holds %d: it repeats within a row", tokens, plan.length)
