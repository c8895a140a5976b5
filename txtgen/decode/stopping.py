"""When a sequence ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from txtgen.decode.types import FinishReason


class StopCheck(Protocol):
    """Knows the text behind the tokens, which search does not."""

    def __call__(self, row: int, token_ids: Sequence[int]) -> bool:
        """Whether the text of these new tokens, generated for prompt `row`, now ends by a stop string."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """The three ways to end; the first that applies is the reason given.

    eos_ids: tokens that end a sequence. limits: new tokens at most, per prompt. check: finds stop strings.
    """

    eos_ids: frozenset[int]
    limits: tuple[int, ...]
    check: StopCheck | None = None

    def reason(self, row: int, previous: Sequence[int], token_id: int) -> FinishReason | None:
        """Why the new tokens `previous` end with `token_id`, or None if they go on."""
        if token_id in self.eos_ids:
            return "eos"
        if self.check is not None and self.check(row, [*previous, token_id]):
            return "stop"
        if len(previous) + 1 >= self.limits[row]:
            return "length"
        return None
