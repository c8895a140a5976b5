"""Beams for every part of what must be said: dynamic beam allocation.

Source: Post & Vilar 2018, arXiv 1804.06609; the order in which banks take turns is that of Hu et al. 2019, NAACL.
"""

from collections.abc import Iterable, Sequence
from itertools import count as numbers
from typing import Protocol

import torch
from torch import Tensor

from txtgen.decode.beam import Search, Selection
from txtgen.decode.constraint import Constraint
from txtgen.decode.filters import FORBIDDEN


class Inclusion(Constraint, Protocol):
    """Says what must be said. It allows no token that would leave too little room for it, and no end before it."""

    def remaining(self, row: int, token_ids: tuple[int, ...]) -> int:
        """How many tokens it takes to say what these new tokens, generated for prompt `row`, have not said."""

    def helpful(self, row: int, token_ids: tuple[int, ...]) -> Iterable[int]:
        """The tokens that say more."""


class Banks:
    """Shares the beams out among banks: for continuations in one bank, equally much remains to be said.

    Beside the continuations that another selection chooses, every beam offers its best token and all helpful ones.
    Banks take turns, the one that is furthest first, each with its best continuation that is left.
    """

    def __init__(self, selection: Selection, inclusion: Inclusion) -> None:
        self.selection, self.inclusion = selection, inclusion

    def shaped(self, scores: Tensor, prompts: Sequence[int]) -> Tensor:
        """As the other selection shapes them."""
        return self.selection.shaped(scores, prompts)

    def chosen(self, sums: Tensor, searches: Sequence[Search], count: int) -> Tensor:
        """All that are offered, turn by turn."""
        others = self.selection.chosen(sums, searches, count).tolist()
        best = sums.view(len(searches), len(searches[0].running), -1).argmax(-1).tolist()
        rows = [
            self._turns(search, scores, [*other, *self._offers(search, tokens, len(scores))])
            for search, scores, other, tokens in zip(searches, sums, others, best, strict=True)
        ]
        width = max(map(len, rows))
        return torch.tensor([row + [-1] * (width - len(row)) for row in rows], device=sums.device)

    def _offers(self, search: Search, best: Sequence[int], size: int) -> Iterable[int]:
        """Numbers of the best continuation of each beam, and of the helpful ones."""
        vocabulary = size // len(search.running)
        for number, beam in enumerate(search.running):
            for token in (best[number], *self.inclusion.helpful(search.prompt, beam.token_ids)):
                yield number * vocabulary + token

    def _turns(self, search: Search, scores: Tensor, offers: Sequence[int]) -> list[int]:
        """The possible ones among these numbers of continuations, in the order in which the banks take them."""
        offered = list(dict.fromkeys(offer for offer in offers if offer >= 0))
        found = zip(offered, scores[offered].tolist(), strict=True)
        possible = sorted((-score, offer) for offer, score in found if score != FORBIDDEN)
        vocabulary = len(scores) // len(search.running)
        turns: dict[int, numbers[int]] = {}
        order: list[tuple[int, int, int]] = []
        for _, offer in possible:
            beam, token = search.running[offer // vocabulary], offer % vocabulary
            bank = self.inclusion.remaining(search.prompt, (*beam.token_ids, token))
            order.append((next(turns.setdefault(bank, numbers())), bank, offer))
        return [offer for _, __, offer in sorted(order)]
