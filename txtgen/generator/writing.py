"""From tokens to text, and where it ends."""

from collections.abc import Sequence
from typing import assert_never

from txtgen.infilling import Gaps
from txtgen.tokenizer import Tokenizer, first_stop


class StopStrings:
    """Finds stop strings in what new tokens say. contexts: the tokens before them, for each row."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], contexts: Sequence[Sequence[int]]) -> None:
        self.tokenizer = tokenizer
        self.stops = [stop.encode() for stop in stops]
        self.longest = max(map(len, self.stops))
        self.begins = [tokenizer.leading_space and begins(tokenizer, context) for context in contexts]

    def __call__(self, row: int, token_ids: Sequence[int]) -> bool:
        """Whether a stop string ends in the last token, none having ended before."""
        recent = self.tokenizer.token_bytes(token_ids[-1])
        reach, start = len(recent) + self.longest - 1, len(token_ids) - 1
        while start and len(recent) <= reach:
            start -= 1
            recent = self.tokenizer.token_bytes(token_ids[start]) + recent
        if not start and self.begins[row]:
            recent = recent.removeprefix(b" ")
        return first_stop(recent, self.stops) is not None


def begins(tokenizer: Tokenizer, before: Sequence[int]) -> bool:
    """Whether no text stands in these tokens, so that it begins after them."""
    return not any(tokenizer.token_bytes(token) for token in before)


def filled_text(
    gaps: Gaps, token_ids: Sequence[int], written: str, tokenizer: Tokenizer
) -> tuple[str, tuple[str, ...]]:
    """The whole text of a prompt with gaps, and what stands in each of them. written: the text of the tokens."""
    decode = tokenizer.decode
    match gaps.kind:
        case "middle":
            prefix, suffix = map(decode, gaps.parts)
            return prefix + written + suffix, (written,)
        case "spans":
            return decode(gaps.filled(token_ids)), tuple(map(decode, gaps.fills(token_ids)))
        case "whole":
            return written, ()
        case _:
            assert_never(gaps.kind)
