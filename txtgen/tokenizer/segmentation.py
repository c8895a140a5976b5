"""Segmentations of a text, drawn: from a SentencePiece model's pieces and scores, by random numbers of Python's own.

SentencePiece draws as well, but salts its generator anew in every process, so that a seed repeats nothing there.

Text is cut first wherever no piece has the two characters side by side. Nothing crosses such a border, so what lies
between two of them, mostly a word, is segmented by itself, and what there is to know of it is kept for the next time.
"""

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from itertools import accumulate, groupby, pairwise
from operator import add
from random import Random
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from txtgen.tokenizer.sentencepiece_proto import BPE, BYTE, NORMAL, UNIGRAM, UNUSED, USER_DEFINED, ModelContent, Piece

_MOST_WORDS, _LONGEST_WORD = 16384, 32
"""How many words are kept, and of how many characters at most: some 50 MB."""

_UNKNOWN_PENALTY = 10.0
"""How much less than the unlikeliest piece of a model a character without a piece scores."""

Edge: TypeAlias = tuple[int, float]
"""A piece that ends at some place of a text: where it begins, and its score, a natural logarithm."""

Way: TypeAlias = "tuple[Way, str] | None"
"""A segmentation: all but its last part, and that; None: of nothing."""


class Unigram:
    """Draws paths of the lattice of all pieces that a text can be made of.

    Source: Kudo 2018, arXiv 1804.10959; scores of unknown characters and of user-defined pieces: SentencePiece 0.2.3.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._scores = {piece.text: piece.score for piece in pieces if piece.type == NORMAL}
        self._unknown = min(self._scores.values(), default=0.0) - _UNKNOWN_PENALTY
        own = [piece.text for piece in pieces if piece.type == USER_DEFINED]
        self._scores |= {text: 0.1 * (len(text) - 1) for text in own}
        self._longest = max(map(len, self._scores), default=1)
        self._words = _Words(self._scores)
        self._spelling = _Spelling(pieces)
        self._kept_lattice = lru_cache(_MOST_WORDS)(self._lattice)
        self._kept_best = lru_cache(_MOST_WORDS // 4)(self._best)

    def draw(self, text: str, chance: Random, alpha: float) -> list[str]:
        """A segmentation, as pieces, with its probability to the power of alpha. text: normalised by the model."""
        parts: list[str] = []
        for word in self._words(text):
            lattice = (self._kept_lattice if len(word) <= _LONGEST_WORD else self._lattice)(word, alpha)
            backwards, end = [], len(word)
            while end:
                bounds, starts = lattice[end]
                start = starts[bisect_right(bounds, chance.random())]
                backwards.append(word[start:end])
                end = start
            parts += reversed(backwards)
        return self._spelling(parts)

    def _lattice(self, word: str, alpha: float) -> list[tuple[tuple[float, ...], tuple[int, ...]]]:
        """For each place of a word, how to draw where the piece that ends there begins.

        That is the bounds between the shares of all places but the last, and these places.
        """
        forward = [0.0]  # the logarithm of the sum over all segmentations so far
        lattice: list[tuple[tuple[float, ...], tuple[int, ...]]] = [((), ())]
        for edges in self._edges(word):
            logs = [forward[start] + alpha * score for start, score in edges]
            largest = max(logs)
            sums = [*accumulate(math.exp(one - largest) for one in logs)]
            forward.append(largest + math.log(sums[-1]))
            lattice.append((tuple(one / sums[-1] for one in sums[:-1]), tuple(start for start, _ in edges)))
        return lattice

    def draw_of_best(self, text: str, chance: Random, alpha: float, size: int) -> list[str]:
        """As `draw`, but only among the `size` likeliest of all the text."""
        rows, columns = _pairs_in_reach(size)
        scores = np.zeros(1)
        steps: list[tuple[NDArray[np.int16], NDArray[np.int16], list[Way]]] = []
        for word in self._words(text):
            its_scores, its_ways = (self._kept_best if len(word) <= _LONGEST_WORD else self._best)(word, size)
            (fit,) = ((rows < len(scores)) & (columns < len(its_scores))).nonzero()
            sums = scores[rows[fit]] + its_scores[columns[fit]]
            order = (-sums).argsort(kind="stable")[:size]
            scores, chosen = sums[order], fit[order]
            steps.append((rows[chosen], columns[chosen], its_ways))
        shares = [*accumulate(math.exp(alpha * one) for one in (scores - scores[0]).tolist())]
        number = bisect_right(shares[:-1], chance.random() * shares[-1])
        backwards = []
        for before, last, ways in reversed(steps):
            way: Way = ways[last[number]]
            while way is not None:
                way, part = way
                backwards.append(part)
            number = before[number]
        return self._spelling(reversed(backwards))

    def _best(self, word: str, size: int) -> tuple[NDArray[np.float64], list[Way]]:
        """The `size` likeliest segmentations of a word, the likeliest first: their scores, and themselves."""
        scores = [np.zeros(1)]
        ways: list[list[Way]] = [[None]]
        for end, edges in enumerate(self._edges(word), 1):
            sums = np.concatenate([scores[start] + score for start, score in edges])
            order = (-sums).argsort(kind="stable")[:size]
            scores.append(sums[order])
            found = [(way, word[start:end]) for start, _ in edges for way in ways[start]]
            ways.append([found[number] for number in order.tolist()])
        return scores[-1], ways[-1]

    def _edges(self, text: str) -> Iterator[list[Edge]]:
        """The pieces that end at each place but the first; a character without a piece is unknown."""
        scores, longest, unknown = self._scores, self._longest, self._unknown
        for end in range(1, len(text) + 1):
            found = ((start, scores.get(text[start:end])) for start in range(max(0, end - longest), end))
            edges = [(start, score) for start, score in found if score is not None]
            if not edges or edges[-1][0] < end - 1:
                edges.append((end - 1, unknown))
            yield edges


class Bpe:
    """Merges pairs of neighbours, the best first, but leaves out each with a given probability.

    As in SentencePiece, a pair that was left out is met again only when one of the two has grown.

    Source: Provilkov et al. 2019, arXiv 1910.13267.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._scores = {piece.text: piece.score for piece in pieces if piece.type in (NORMAL, USER_DEFINED, UNUSED)}
        self._unused = {piece.text for piece in pieces if piece.type == UNUSED}
        self._own = {piece.text for piece in pieces if piece.type == USER_DEFINED}
        self._lengths = sorted({*map(len, self._own)}, reverse=True)
        self._words = _Words(self._scores)
        self._spelling = _Spelling(pieces)
        self._kept_whole = lru_cache(_MOST_WORDS)(self._whole)

    def draw(self, text: str, chance: Random, alpha: float) -> list[str]:
        """A segmentation, as pieces, without this share of the merges. text: normalised by the model."""
        rate = math.log1p(-min(alpha, 1 - 2**-53))

        def next_gap() -> int:
            """How many merges come before one that is left out."""
            return int(min(math.log(1 - chance.random()) / rate, sys.maxsize))

        gap = next_gap()
        parts: list[str] = []
        for word in self._words(text):
            if len(word) <= _LONGEST_WORD:
                merges, whole = self._kept_whole(word)
                if merges <= gap:
                    parts += whole
                    gap -= merges
                    continue
            found, gap = self._merged(word, gap, next_gap)
            parts += found
        return self._spelling(parts)

    def _whole(self, word: str) -> tuple[int, list[str]]:
        """How many merges a word takes when none is left out, and its parts after them."""
        parts, left = self._merged(word, sys.maxsize, lambda: 0)
        return sys.maxsize - left, parts

    def _merged(self, word: str, gap: int, next_gap: Callable[[], int]) -> tuple[list[str], int]:
        """The parts of a word after all merges but those that are left out, and the gap that remains."""
        symbols = [*self._symbols(word)]
        ends = {start: end for start, end, _ in symbols}
        starts = {end: start for start, end, _ in symbols}
        frozen = {start for start, _, whole in symbols if whole}
        halves: dict[str, tuple[str, str]] = {}  # of pieces that only lead to others
        agenda: list[tuple[float, int, int, int]] = []

        def meet(start: int, middle: int) -> None:
            """Two neighbours may become one, if that is a piece."""
            piece = word[start : ends[middle]]
            if piece in self._scores and start not in frozen and middle not in frozen:
                heappush(agenda, (-self._scores[piece], start, middle, ends[middle]))
                if piece in self._unused:
                    halves[piece] = (word[start:middle], word[middle : ends[middle]])

        for start, middle in pairwise([*ends]):
            meet(start, middle)
        while agenda:
            _, start, middle, end = heappop(agenda)
            if ends.get(start) != middle or ends.get(middle) != end:
                continue
            if not gap:
                gap = next_gap()
                continue
            gap -= 1
            del ends[middle], starts[middle]
            ends[start], starts[end] = end, start
            if start in starts:
                meet(starts[start], start)
            if end in ends:
                meet(start, end)
        undone = [word[start:end] for start, end in reversed(ends.items())]
        parts = []
        while undone:
            part = undone.pop()
            if part in halves:
                undone += reversed(halves[part])
            else:
                parts.append(part)
        return parts, gap

    def _symbols(self, word: str) -> Iterator[tuple[int, int, bool]]:
        """What merging begins with: where each begins and ends, and whether it stays as it is."""
        start = 0
        while start < len(word):
            length = next((length for length in self._lengths if word[start : start + length] in self._own), 0)
            yield start, start + (length or 1), length > 0
            start += length or 1


class _Words:
    """Cuts text wherever none of the pieces crosses."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._neighbours = frozenset(one + other for piece in pieces for one, other in pairwise(piece))

    def __call__(self, text: str) -> list[str]:
        neighbours = self._neighbours
        cuts = [place for place, pair in enumerate(map(add, text, text[1:]), 1) if pair not in neighbours]
        return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


class _Spelling:
    """Parts of a text -> what SentencePiece gives for them: pieces, with those that are unknown as bytes or joined."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._known = frozenset(piece.text for piece in pieces if piece.type in (NORMAL, USER_DEFINED))
        self._has_bytes = any(piece.type == BYTE for piece in pieces)

    def __call__(self, parts: Iterable[str]) -> list[str]:
        pieces: list[str] = []
        for known, run in groupby(parts, self._known.__contains__):
            if known:
                pieces += run
            elif self._has_bytes:
                pieces += [f"<0x{byte:02X}>" for byte in "".join(run).encode()]
            else:
                pieces.append("".join(run))
        return pieces


def segmentations(content: ModelContent) -> Unigram | Bpe | None:
    """Those that a model knows; None where a text has but one, as for models of characters and of words."""
    kinds: Mapping[int, type[Unigram | Bpe]] = {UNIGRAM: Unigram, BPE: Bpe}
    kind = kinds.get(content.type)
    return kind(content.pieces) if kind is not None else None


@lru_cache(4)
def _pairs_in_reach(size: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Where, of two lists in descending order, the summands of the `size` largest sums can be: [N] int16 each."""
    pairs = [(row, column) for row in range(size) for column in range(size // (row + 1))]
    rows, columns = np.array(pairs, np.int16).T
    return rows, columns
