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
    """

    def __init__(self, automaton: Automaton[State]) -> None:
        self.automaton = automaton
        self._length = 0
        self._states: dict[tuple[int, tuple[int, ...]], State] = {}

    def allowed(self, row: int, token_ids: tuple[int, ...]) -> Tensor:
        """[V] bool: what may follow these new tokens."""
        return self.automaton.allowed(self.state(row, token_ids))

    def state(self, row: int, token_ids: tuple[int, ...]) -> State:
        """The state after these new tokens, generated for prompt `row`."""
        key = row, token_ids
        if key not in self._states:
            found = self.automaton.start(row)
            if token_ids:
                found = self.automaton.after(self.state(row, token_ids[:-1]), token_ids[-1])
            if len(token_ids) > self._length:
                # All sequences of a search grow at once: what is shorter than by one is asked for no more.
                self._length = len(token_ids)
                self._states = {
                    known: state for known, state in self._states.items() if len(known[1]) >= self._length - 1
                }
            self._states[key] = found
        return self._states[key]


def mask_of(token_ids: Sequence[int], size: int) -> Tensor:
    """[V] bool: True for these tokens."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(token_ids)] = True
    return mask
