"""Constraints that read tokens one by one."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


class Row(NamedTuple):
    """What a constraint must know of a prompt: whether text begins after it, and how many tokens may follow."""

    begins: bool
    limit: int


class Automaton(Protocol[State]):
    """Reads tokens one by one. A state is never changed, for several sequences may go on from it."""

    def start(self, row: int) -> State:
        """Before any token that is generated for prompt `row`."""

    def after(self, state: State, token_id: int) -> State:
        """After one token more."""

    def allowed(self, state: State) -> Tensor:
        """The tokens that may follow, [V] bool."""


class Tracked(Generic[State]):
    """An automaton as a constraint: remembers the state of each sequence, made from that of the one a token shorter.

    So beams may be reordered, copied and dropped, and nobody needs to tell.

    Args:
        automaton: what reads the tokens.
        in_step: whether all sequences of a search grow at once, so that what is shorter than the longest one by two is
            asked for no more. Otherwise that is true of what one sequence itself has outgrown by two.
    """

    def __init__(self, automaton: Automaton[State], in_step: bool = True) -> None:
        self.automaton, self.in_step = automaton, in_step
        self._length = 0
        self._states: dict[tuple[int, tuple[int, ...]], State] = {}

    def allowed(self, row: int, token_ids: tuple[int, ...]) -> Tensor:
        """[V] bool: what may follow these new tokens."""
        return self.automaton.allowed(self.state(row, token_ids))

    def state(self, row: int, token_ids: tuple[int, ...]) -> State:
        """The state after these new tokens, generated for prompt `row`."""
        counts = range(len(token_ids), -1, -1)
        known = next((count for count in counts if (row, token_ids[:count]) in self._states), None)
        if known == len(token_ids):
            return self._states[row, token_ids]
        found = self.automaton.start(row) if known is None else self._states[row, token_ids[:known]]
        for token_id in token_ids[known or 0 :]:
            found = self.automaton.after(found, token_id)
        self._forget(row, token_ids)
        self._states[row, token_ids] = found
        return found

    def _forget(self, row: int, token_ids: tuple[int, ...]) -> None:
        """Drop the states that nobody asks for any more, once these tokens are known."""
        if not self.in_step:
            self._states.pop((row, token_ids[:-2]), None)
        elif len(token_ids) > self._length:
            self._length = len(token_ids)
            kept = self._length - 1
            self._states = {known: state for known, state in self._states.items() if len(known[1]) >= kept}


def mask_of(token_ids: Sequence[int], size: int) -> Tensor:
    """[V] bool: True for these tokens."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(token_ids)] = True
    return mask
