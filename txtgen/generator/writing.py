"""From tokens to text, and where it ends."""

from collections.abc import Sequence
from typing import assert_never

from txtgen.infilling import Gaps
from txtgen.tokenizer import Tokenizer


class StopStrings:
    """Finds stop strings in the text of new tokens. contexts: the tokens before them, for each row."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], contexts: Sequence[Sequence[int]]) -> None:
        self.tokenizer, self.stops, self.contexts = tokenizer, stops, contexts
        # Every token that can be generated has a byte at least, so that no stop string spans more tokens.
        self.reach = max(len(stop.encode()) for stop in stops)

    def __call__(self, row: int, token_ids: Sequence[int]) -> bool:
        """Whether a stop string ends in the last token, none having ended before."""
        start = max(0, len(token_ids) - self.reach)
        before = token_ids[start - 1 : start] if start else self.contexts[row][-1:]
        text = new_text(self.tokenizer, before, token_ids[start:])
        return any(stop in text for stop in self.stops)


def new_text(tokenizer: Tokenizer, before: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text that tokens add to the text of those before them."""
    return tokenizer.decode([*before, *token_ids])[len(tokenizer.decode(before)) :]


def safe_length(text: str, stops: Sequence[str]) -> int:
    """How much of the text neither is nor may become a part of a stop string."""
    ends = [text.index(stop) for stop in stops if stop in text]
    if ends:
        return min(ends)
    longest = max(map(len, stops), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return start
    return len(text)


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
