"""How a text begins, and what it does not say."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from txtgen.generator.constraints.automata import mask_of
from txtgen.generator.constraints.token_texts import TokenTexts


class Beginning:
    """The text begins with a prefix, in the tokens that the tokenizer writes it in; one of them may say more.

    A state is whether the text begins there, and how many of these tokens were said; None: all of the prefix was.

    Args:
        texts: of the vocabulary.
        prefix: the text.
        begins: for each prompt, whether text begins after it.
    """

    def __init__(self, texts: TokenTexts, prefix: str, begins: Sequence[bool]) -> None:
        self.texts, self.begins = texts, begins
        self.spellings = {begin: texts.spell(prefix, begin) for begin in {*begins}}
        self._masks = cache(self._mask)

    def start(self, row: int) -> tuple[bool, int | None]:
        """Nothing was said."""
        return self.begins[row], 0

    def after(self, state: tuple[bool, int | None], token_id: int) -> tuple[bool, int | None]:
        """A token that is not the next one holds all that was left."""
        begins, count = state
        if count is None or self.texts.is_silent(token_id):
            return state
        spelling = self.spellings[begins]
        goes_on = token_id == spelling[count] and count + 1 < len(spelling)
        return begins, count + 1 if goes_on else None

    def allowed(self, state: tuple[bool, int | None]) -> Tensor:
        """The next token, and every other one that begins with all that is left."""
        return self._masks(state)

    def _mask(self, state: tuple[bool, int | None]) -> Tensor:
        begins, count = state
        if count is None:
            return torch.ones(self.texts.size, dtype=torch.bool)
        left, first = self.spellings[begins][count:], begins and count == 0
        return mask_of([left[0], *self.texts.beginning_with(self.texts.said(left, first), first)], self.texts.size)


class TextEnd(NamedTuple):
    """The last bytes of a text, as many as matter; and whether it has no text yet."""

    tail: bytes
    begins: bool


class Forbidden:
    """Some texts are not said, whatever tokens spell them.

    Args:
        texts: of the vocabulary.
        parts: what is not said.
        begins: for each prompt, whether text begins after it.
    """

    def __init__(self, texts: TokenTexts, parts: Sequence[str], begins: Sequence[bool]) -> None:
        self.texts, self.begins = texts, begins
        self.parts = [part.encode() for part in parts]
        self._reach = max(map(len, self.parts)) - 1
        self._masks = cache(self._mask)

    def start(self, row: int) -> TextEnd:
        """Nothing was said."""
        return TextEnd(b"", self.begins[row])

    def after(self, state: TextEnd, token_id: int) -> TextEnd:
        """Whatever may be the beginning of a part."""
        text = state.tail + self.texts.all(state.begins)[token_id]
        return TextEnd(text[max(0, len(text) - self._reach) :], state.begins and self.texts.is_silent(token_id))

    def allowed(self, state: TextEnd) -> Tensor:
        """The tokens that neither hold a part nor end one."""
        tail, begins = state
        ends = {part[size:] for part in self.parts for size in range(1, len(part)) if tail.endswith(part[:size])}
        return self._masks(frozenset(ends), begins)

    def _mask(self, ends: frozenset[bytes], begins: bool) -> Tensor:
        """The tokens that hold no part and begin with none of these."""
        if not ends:
            texts = self.texts.all(begins)
            return ~mask_of([token for token, text in enumerate(texts) if self._is_held(text)], self.texts.size)
        ending = [token for end in ends for token in self.texts.beginning_with(end, begins)]
        return self._masks(frozenset(), begins) & ~mask_of(ending, self.texts.size)

    def _is_held(self, text: bytes) -> bool:
        return any(part in text for part in self.parts)
