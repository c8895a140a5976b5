"""What tokens say: which of them begin with given bytes, and which spell a text."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cache

from txtgen.errors import UsageError
from txtgen.tokenizer import Tokenizer

NEUTRAL = ("\n", ".")
"""Texts to write before another one, so that no space of the tokenizer's own comes between them."""


class TokenTexts:
    """The UTF-8 of every token of a vocabulary, which is none for those that stand for no text.

    Where a text begins, a space that the tokenizer itself puts before every text is none of it.

    Args:
        tokenizer: of the text that is generated.
        size: of the vocabulary, which the tokenizer need not fill.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        inside = [tokenizer.token_bytes(token) if token < len(tokenizer) else b"" for token in range(size)]
        first = [text.removeprefix(b" ") for text in inside] if tokenizer.leading_space else inside
        self._texts = {False: inside, True: first}
        self._silent = frozenset(token for token, text in enumerate(inside) if not text)
        self._sorted = cache(self._sort)

    def is_silent(self, token_id: int) -> bool:
        """Whether a token stands for no text."""
        return token_id in self._silent

    def all(self, begins: bool) -> Sequence[bytes]:
        """What each token says, at the beginning of a text or within it: [V]."""
        return self._texts[begins]

    def said(self, token_ids: Sequence[int], begins: bool) -> bytes:
        """What tokens say in a row."""
        text = b""
        for token in token_ids:
            text += self._texts[begins][token]
            begins = begins and self.is_silent(token)
        return text

    def beginning_with(self, start: bytes, begins: bool) -> Sequence[int]:
        """The tokens whose text begins with these bytes."""
        texts, token_ids = self._sorted(begins)
        lowest = bisect_left(texts, start)
        return token_ids[lowest : bisect_right(texts, start, lo=lowest, key=lambda text: text[: len(start)])]

    def _sort(self, begins: bool) -> tuple[Sequence[bytes], Sequence[int]]:
        """The texts in order, and their tokens."""
        texts = self._texts[begins]
        order = sorted((token for token, text in enumerate(texts) if text), key=texts.__getitem__)
        return [texts[token] for token in order], order

    def spell(self, text: str | bytes, begins: bool) -> tuple[int, ...]:
        """The tokens that say exactly this: as the tokenizer writes it, or else as few as possible.

        Raises:
            UsageError: no tokens do.
        """
        wanted = text.encode() if isinstance(text, str) else text
        written = wanted.decode(errors="replace")
        for before in ("",) if begins else ("", *NEUTRAL):
            context, token_ids = self.tokenizer.encode(before), self.tokenizer.encode(before + written)
            rest = token_ids[len(context) :]
            if token_ids[: len(context)] == context and self.said(rest, begins) == wanted:
                return tuple(rest)
        # A space that does not count has to be said all the same.
        found = self._fewest(b" " + wanted if begins and self.tokenizer.leading_space else wanted)
        if found is None:
            told = f"the tokenizer has no tokens for {written!r:.80}"
            raise UsageError(told, "generation options", "write it otherwise")
        return found

    def _fewest(self, wanted: bytes) -> tuple[int, ...] | None:
        """The fewest tokens that say this within a text, the longest one first; None: no tokens do."""
        texts, order = self._sorted(False)
        known = dict(zip(texts, order, strict=True))
        longest = max(map(len, texts), default=0)
        rests: list[tuple[int, ...] | None] = [None] * len(wanted) + [()]
        for place in range(len(wanted) - 1, -1, -1):
            for end in range(min(place + longest, len(wanted)), place, -1):
                rest, token, best = rests[end], known.get(wanted[place:end]), rests[place]
                if rest is not None and token is not None and (best is None or len(rest) + 1 < len(best)):
                    rests[place] = (token, *rest)
        return rests[0]
