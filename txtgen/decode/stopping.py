"""When a sequence ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from txtgen.config.decoding_values import LoopStop
from txtgen.decode.types import FinishReason


class StopCheck(Protocol):
    """Knows the text behind the tokens, which search does not."""

    def __call__(self, row: int, token_ids: Sequence[int]) -> bool:
        """Whether the text of these new tokens, generated for prompt `row`, now ends by a stop string."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """The ways to end; the first that applies is the reason given.

    eos_ids: tokens that end a sequence. limits: new tokens at most, per prompt. check: finds stop strings. loop: how
    often what may repeat itself.
    """

    eos_ids: frozenset[int]
    limits: tuple[int, ...]
    check: StopCheck | None = None
    loop: LoopStop | None = None

    def reason(self, row: int, previous: Sequence[int], token_id: int) -> FinishReason | None:
        """Why the new tokens `previous` end with `token_id`, or None if they go on."""
        if token_id in self.eos_ids:
            return "eos"
        full = len(previous) + 1 >= self.limits[row]
        if self.check is None and self.loop is None:
            return "length" if full else None
        token_ids = [*previous, token_id]
        if self.check is not None and self.check(row, token_ids):
            return "stop"
        if self.loop is not None and ends_in_loop(token_ids, self.loop.max_block, self.loop.times):
            return "loop"
        return "length" if full else None


def ends_in_loop(token_ids: Sequence[int], max_block: int, times: int) -> bool:
    """Whether the last tokens are a block of up to `max_block` tokens, `times` times in a row."""
    length = len(token_ids)
    for size in range(1, min(max_block, length // times) + 1):
        # Most sizes are ruled out by their first comparison.
        if all(token_ids[place] == token_ids[place - size] for place in range(-1, -1 - size * (times - 1), -1)):
            return True
    return False
