"""Texts that must occur in what is generated."""

from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from txtgen.generator.constraints.automata import Row, Tracked, mask_of
from txtgen.generator.constraints.token_texts import TokenTexts
from txtgen.generator.constraints.wording import Forbidden, TextEnd

Spelling = tuple[int, ...]


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

    What remains to be said is counted in the tokens that the tokenizer writes the parts in, at once or after a space.

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
        self.spellings = [self._spellings(part) for part in parts]
        self.shortest = [min(map(len, spellings)) for spellings in self.spellings]
        self._stops = Forbidden(texts, stops, [row.begins for row in rows]) if stops else None
        self._reach = max(len(text.encode()) for text in (*parts, *stops)) - 1
        self._longest = max(len(spelling) for spellings in self.spellings for spelling in spellings) - 1
        self._strips = texts.tokenizer.leading_space
        self._not_end = ~mask_of(list(end), texts.size)
        self._remaining = cache(self._count)

    def _spellings(self, part: str) -> list[Spelling]:
        written = [part] if part[0].isspace() else [part, f" {part}"]
        return sorted({self.texts.spell(text, begins=False) for text in written})

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
        return Progress(room - 1, missing, end, recent[max(0, len(recent) - self._longest) :])

    def allowed(self, state: Progress) -> Tensor:
        """No end before all is said, and no token after which too little room would be left for the rest."""
        if not state.missing:
            return torch.ones(self.texts.size, dtype=torch.bool)
        allowed = self._not_end if self._stops is None else self._not_end & self._stops.allowed(state.end)
        room = state.room - 1
        if self.remaining(state._replace(recent=())) <= room:
            return allowed
        tokens = {token for number in state.missing for spelling in self.spellings[number] for token in spelling}
        fitting = [token for token in tokens if self.remaining(self.after(state, token)) <= room]
        return allowed & mask_of(fitting, self.texts.size)

    def remaining(self, state: Progress) -> int:
        """How many tokens it takes at most to say the rest, if nothing else is said."""
        spare = bool(state.missing) and self._strips and state.end.begins
        return self._remaining(state.missing, state.recent) + spare

    def _count(self, missing: frozenset[int], recent: Spelling) -> int:
        whole = sum(self.shortest[number] for number in missing)
        # One part may have been begun.
        saved = [
            self.shortest[number] - len(spelling) + begun(spelling, recent)
            for number in missing
            for spelling in self.spellings[number]
        ]
        return whole - max(0, *saved) if saved else 0

    def helpful(self, state: Progress) -> set[int]:
        """The next token of every missing part, and its first."""
        spellings = [spelling for number in state.missing for spelling in self.spellings[number]]
        return {spelling[place] for spelling in spellings for place in (0, begun(spelling, state.recent))}


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
