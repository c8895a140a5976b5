"""IBM model 1: how likely each target token is where a source token stands, by expectation maximisation over pairs.

Every target token is thought to come from one token of its source, or from none of them, and before anything is learnt
from each alike. Source: Brown et al. 1993, "The Mathematics of Statistical Machine Translation", model 1.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NONE: Ints = np.zeros(0, dtype=np.int64)


class Pairs(NamedTuple):
    """Pairs of texts, one after the other: the tokens of the sources and of the targets, and how many each text has."""

    sources: Ints
    source_lengths: Ints
    targets: Ints
    target_lengths: Ints

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.source_lengths)

    def each(self) -> Iterator[tuple[Ints, Ints]]:
        """The source and the target of every pair."""
        sources = np.split(self.sources, np.cumsum(self.source_lengths)[:-1])
        return zip(sources, np.split(self.targets, np.cumsum(self.target_lengths)[:-1]), strict=True)


class Translations(NamedTuple):
    """Source tokens and target tokens that were seen in one pair, [N] in ascending order, and how likely each target
    token is where the source token stands. The number of source tokens stands for none of them."""

    sources: Ints
    targets: Ints
    probabilities: Floats

    def likeliest(self, count: int, num_sources: int, beside: Ints = NONE) -> NDArray[np.int32]:
        """The likeliest target tokens of each source token, [num_sources,count], best first; then -1.

        None of those that stand in all lists anyhow, `beside`, takes the place of another one.
        """
        others = np.flatnonzero(~np.isin(self.targets, beside))
        order = others[np.lexsort((-self.probabilities[others], self.sources[others]))]
        sources = self.sources[order]
        ranks = np.arange(len(order)) - np.searchsorted(sources, sources)
        kept = (ranks < count) & (sources < num_sources)
        table = np.full((num_sources, count), -1, dtype=np.int32)
        table[sources[kept], ranks[kept]] = self.targets[order[kept]]
        return table


class _Meetings(NamedTuple):
    """Every target token of some pairs beside every token of its source: the number of each such couple in the table,
    [N] int32; where those of each target token begin, and how many they are, [T]."""

    entries: NDArray[np.int32]
    firsts: Ints
    counts: Ints


def learn_translations(blocks: Iterable[Pairs], num_sources: int, num_targets: int, rounds: int = 5) -> Translations:
    """What pairs of texts tell of their tokens; rounds: of expectation maximisation.

    It takes 4 bytes for every two tokens that meet in a pair.
    """
    found, keys = [], []
    for pairs in blocks:
        couples, firsts, counts = _meetings(pairs, num_sources, num_targets)
        own, entries = np.unique(couples, return_inverse=True)
        found.append(_Meetings(entries.astype(np.int32), firsts, counts))
        keys.append(own)
    table = np.unique(np.concatenate(keys))
    meetings = [
        each._replace(entries=np.searchsorted(table, own).astype(np.int32)[each.entries])
        for each, own in zip(found, keys, strict=True)
    ]
    sources, targets = np.divmod(table, num_targets)
    probabilities = np.ones(len(table))
    for _ in range(rounds):
        expected = np.zeros(len(table))
        for each in meetings:
            likely = probabilities[each.entries]
            shares = likely / np.repeat(np.add.reduceat(likely, each.firsts), each.counts)
            expected += np.bincount(each.entries, shares, minlength=len(table))
        probabilities = expected / np.bincount(sources, expected)[sources]
    return Translations(sources, targets, probabilities)


def _meetings(pairs: Pairs, nothing: int, num_targets: int) -> tuple[Ints, Ints, Ints]:
    """A number for every target token beside every token of its source and beside `nothing`; and as in `_Meetings`."""
    sources = np.insert(pairs.sources, np.cumsum(pairs.source_lengths), nothing)
    lengths = pairs.source_lengths + 1
    pair_of = np.repeat(np.arange(len(pairs)), pairs.target_lengths)
    counts = lengths[pair_of]
    firsts = np.cumsum(counts) - counts
    # A couple's source token: how far it stands behind the first of its target token, behind the first of its pair.
    places = np.arange(counts.sum()) + np.repeat((np.cumsum(lengths) - lengths)[pair_of] - firsts, counts)
    return sources[places] * num_targets + np.repeat(pairs.targets, counts), firsts, counts
