"""The training stream: an endless row of batches in an order that only the configuration, seed and corpus decide."""

import logging
from collections.abc import Iterator, Sequence
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
    report: StreamReport | None = None,
) -> Iterator[Batch]:
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
        report: where records are counted and changed files are named.

    Raises:
        ConfigError: rows, ranks and batch_tokens do not fit together, or the bookmark is of another stream.
        DataError: the corpus cannot be read, is not what the bookmark is of, or holds nothing to learn; raised at
            once, except for what only reading on can find.
        CheckpointError: the bookmark is damaged.
    """
    report = report or StreamReport()
    rows = 0 if not objective.packed else rows_of_batch(batch_tokens, length, world_size)
    corpora = open_corpora(data.sources)
    fraction = data.validation.fraction
    split = Split(seed, fraction, held=False) if fraction else None
    policy = BadRecordPolicy(data, report)
    feeds = [Feed(corpus, objective, policy, seed, split) for corpus in corpora]
    shares = _shares(corpora)
    if objective.packed:
        _look_over_small_corpus(data, corpora, objective, split, length)
        header = Header("rows", seed, rows, corpora)
        _check(header, bookmark, accept_changes, report)
        lanes: dict[int, Lane] = {}
        for number in range(rank, rows, world_size):
            state = lane_state(bookmark, number) if bookmark else []
            mixture = Mixture(feeds, shares, number, rows, seed, state[2:] or None)
            lanes[number] = Lane(mixture, report, state)
        return _packed(lanes, length, objective, header.write())
    header = Header("windows", seed, batch_tokens, corpora)
    _check(header, bookmark, accept_changes, report)
    mixture = Mixture(feeds, shares, 0, 1, seed, bookmark["places"] if bookmark else None)
    start = (bookmark["window"], bookmark["used"]) if bookmark else (0, 0)
    return _pairs(mixture, start, objective, batch_tokens, seed, rank, world_size, header.write())


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


def _check(header: Header, bookmark: Bookmark | None, accept_changes: bool, report: StreamReport) -> None:
    report.changed_files = header.check(bookmark) if bookmark else []
    if not accept_changes:
        refuse_changes(report.changed_files)


def _shares(corpora: Sequence[Corpus]) -> list[float]:
    """The share of each source in the tokens: by the weights that are given, or else by size."""
    weights = [corpus.source.weight or float(corpus.num_bytes) for corpus in corpora]
    return [weight / sum(weights) for weight in weights]


def _look_over_small_corpus(
    data: DataConfig, corpora: Sequence[Corpus], objective: Objective, split: Split | None, length: int
) -> None:
    """Read a corpus that may be smaller than one row as a whole, and warn if it is.

    Raises:
        DataError: it holds too many bad records.
    """
    if sum(corpus.num_bytes for corpus in corpora) > length * BYTES_PER_TOKEN:
        return
    policy = BadRecordPolicy(data, StreamReport())
    feeds = [Feed(corpus, objective, policy, 0, split) for corpus in corpora]
    tokens = sum(example.size for feed in feeds for examples in feed.in_order() for example in examples)
    policy.check()
    if 0 < tokens < length:
        _log.warning("the corpus has only %d tokens, and a row holds %d: it repeats within a row", tokens, length)


def _packed(lanes: dict[int, Lane], length: int, objective: Objective, header: Bookmark) -> Iterator[Batch]:
    while True:
        rows = Rows(len(lanes), length, objective)
        for row, lane in enumerate(lanes.values()):
            lane.fill(rows, row)
        states: dict[str, Any] = {str(number): lane.state() for number, lane in lanes.items()}
        yield rows.batch(bookmark={**header, "lanes": states})


def _pairs(
    mixture: Mixture,
    start: tuple[int, int],
    objective: Objective,
    batch_tokens: int,
    seed: int,
    rank: int,
    world_size: int,
    header: Bookmark,
) -> Iterator[Batch]:
    number, used = start
    while True:
        places = mixture.state()
        batches = cut_window(read_window(mixture.take, mixture.epoch), batch_tokens, seed, number)
        for place in range(used, len(batches)):
            # After its last batch, a window is done with and need not be read again.
            done = place + 1 == len(batches)
            window = (
                {"window": number + 1, "used": 0, "places": mixture.state()}
                if done
                else {"window": number, "used": place + 1, "places": places}
            )
            yield pad_pairs(batches[place], objective, rank, world_size, {**header, **window})
        number, used = number + 1, 0
