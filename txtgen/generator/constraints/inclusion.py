"""Texts that must occur in what is generated."""

import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from txtgen.generator.constraints.automata import Row, Tracked, mask_of
from txtgen.generator.constraints.token_texts import TokenTexts
from txtgen.generator.constraints.wording import Forbidden, TextEnd

Spelling = tuple[int, ...]

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
"""Characters of scripts that do not part words by spaces: Thai, Lao, Burmese, Khmer, Chinese, Japanese."""


class Progress(NamedTuple):
    """What was said so far.

    room: how many tokens may follow. missing: the numbers of the parts that were not said yet. end: the end of the
    text. recent: the last tokens, as many as matter.
    """

    room: int
    missing: frozenset[int]
    end: TextEnd
    recent: Spelling


class Parts:
    """Some parts are said, in any order and whatever tokens spell them, before the text ends.

    What remains to be said is counted in the tokens that the tokenizer writes the parts in. They are helpful after a
    space, or at once where that makes no longer word: at the beginning, and in scripts without spaces.

    Args:
        texts: of the vocabulary.
        parts: what is said.
        stops: stop strings, which are not said before.
        rows: for each prompt, whether text begins after it, and how many tokens may follow.
        end: the end tokens.

    Raises:
        UsageError: no tokens spell a part.
    """

    def __init__(
        self, texts: TokenTexts, parts: Sequence[str], stops: Sequence[str], rows: Sequence[Row], end: Collection[int]
    ) -> None:
        self.texts, self.rows = texts, rows
        self.parts = [part.encode() for part in parts]
        self._at_once = [texts.spell(part, begins=False) for part in parts]
        self._spaced = [
            spelling if part[0].isspace() or UNSPACED.match(part) else texts.spell(f" {part}", begins=False)
            for part, spelling in zip(parts, self._at_once, strict=True)
        ]
        self._longest = [max(map(len, pair)) for pair in zip(self._at_once, self._spaced, strict=True)]
        self._stops = Forbidden(texts, stops, [row.begins for row in rows]) if stops else None
        self._reach = max(1, *(len(text.encode()) - 1 for text in (*parts, *stops)))
        self._strips = texts.tokenizer.leading_space
        self._not_end = ~mask_of(list(end), texts.size)
        self._remaining = cache(self._count)

    @property
    def tokens(self) -> set[int]:
        """Those that spell the parts."""
        return {token for pair in (self._at_once, self._spaced) for spelling in pair for token in spelling}

    def start(self, row: int) -> Progress:
        """Nothing was said."""
        begins, limit = self.rows[row]
        return Progress(limit, frozenset(range(len(self.parts))), TextEnd(b"", begins), ())

    def after(self, state: Progress, token_id: int) -> Progress:
        """A part is said when the text holds it."""
        room, missing, (tail, begins), recent = state
        text = tail + self.texts.all(begins)[token_id]
        missing = frozenset(number for number in missing if self.parts[number] not in text)
        end = TextEnd(text[max(0, len(text) - self._reach) :], begins and self.texts.is_silent(token_id))
        # A first token that has lost its space may not have begun what it seems to.
        recent = () if self._strips and begins else (*recent, token_id)
        return Progress(room - 1, missing, end, recent[max(0, len(recent) - max(self._longest) + 1) :])

    def allowed(self, state: Progress) -> Tensor:
        """No end before all is said, and no token after which too little room would be left for the rest."""
        if not state.missing:
            return torch.ones(self.texts.size, dtype=torch.bool)
        allowed = self._not_end if self._stops is None else self._not_end & self._stops.allowed(state.end)
        room = state.room - 1
        if self.remaining(state._replace(recent=())) <= room:
            return allowed
        spellings = (pair[number] for pair in (self._at_once, self._spaced) for number in state.missing)
        tokens = {token for spelling in spellings for token in spelling}
        fitting = [token for token in tokens if self.remaining(self.after(state, token)) <= room]
        return allowed & mask_of(fitting, self.texts.size)

    def remaining(self, state: Progress) -> int:
        """How many tokens it takes at most to say the rest, if nothing else is said."""
        spare = bool(state.missing) and self._strips and state.end.begins
        return self._remaining(state.missing, state.recent) + spare

    def _count(self, missing: frozenset[int], recent: Spelling) -> int:
        whole = sum(self._longest[number] for number in missing)
        # One part may have been begun.
        saved = 0
        for number in missing:
            for spelling in (self._at_once[number], self._spaced[number]):
                if count := begun(spelling, recent):
                    saved = max(saved, self._longest[number] - len(spelling) + count)
        return whole - saved

    def helpful(self, state: Progress) -> set[int]:
        """The next token of every missing part, and its first."""
        tokens = {self._spaced[number][0] for number in state.missing}
        if not state.end.tail or state.end.tail[-1:].isspace():
            tokens |= {self._at_once[number][0] for number in state.missing}
        for number in state.missing:
            for spelling in (self._at_once[number], self._spaced[number]):
                if count := begun(spelling, state.recent):
                    tokens.add(spelling[count])
        return tokens


def begun(spelling: Spelling, recent: Spelling) -> int:
    """How many of its tokens, but not all, stand at the end of the recent ones."""
    longest = min(len(spelling) - 1, len(recent))
    return next((count for count in range(longest, 0, -1) if recent[-count:] == spelling[:count]), 0)


class Included(Tracked[Progress]):
    """Parts to be said, as search wants to know them."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.parts = parts

    def remaining(self, row: int, token_ids: tuple[int, ...]) -> int:
        """How many tokens it takes to say the rest of what must be said."""
        return self.parts.remaining(self.state(row, token_ids))

    def helpful(self, row: int, token_ids: tuple[int, ...]) -> Iterable[int]:
        """The tokens that say more of it."""
        return self.parts.helpful(self.state(row, token_ids))
