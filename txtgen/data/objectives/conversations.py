"""The objective that learns from conversations in one row, and what becomes of conversations that are too long."""

from collections.abc import Callable, Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from txtgen.chat import encode_chat
from txtgen.config.chat_formats import TokensChatFormat
from txtgen.config.objectives import ChatObjective
from txtgen.config.tokenizer import Framing
from txtgen.data.examples import Outcome
from txtgen.data.objectives.base import Objective, Room, misfit, tokens_of
from txtgen.data.objectives.encoding import Encoder
from txtgen.data.types import (
    IGNORE,
    BadRecord,
    ChatRecord,
    Example,
    PairRecord,
    PreferenceRecord,
    Record,
    TextRecord,
    Tokens,
)
from txtgen.errors import DataError

Turns = Sequence[tuple[str, str]]
"""Role and content of each turn."""

Encoded = tuple[Tokens, NDArray[np.bool_]]
"""The tokens of turns, and whether each is scored."""


def first_of_latest(turns: Turns, fits: Callable[[Turns], bool]) -> int:
    """The turn from which on a conversation fits; 0: as it is, or nothing of it can be left out.

    It is one of the user, or what is left would begin with an answer to nothing: the oldest from which on it fits, or
    else the last one. A system message at the beginning stays: see `since`.
    """
    found = 0
    for turn in range(len(turns) - 1, _has_system(turns), -1):
        if turns[turn][0] == "user":
            if not fits(since(turn, turns)):
                return found or turn
            found = turn
    return 0 if fits(turns) else found


def since(turn: int, turns: Turns) -> Turns:
    """A conversation without the turns before this one, but for a system message at the beginning."""
    return [*turns[: _has_system(turns)], *turns[turn:]] if turn else turns


def _has_system(turns: Turns) -> bool:
    return bool(turns) and turns[0][0] == "system"


class Chat(Objective):
    """Predict the turns of the chosen roles from all that stands before them."""

    def __init__(self, config: ChatObjective, encode: Encoder, framing: Framing, room: Room) -> None:
        super().__init__(encode, framing, packed=True, separate=config.separate_documents)
        self.draws = False
        self._format, self._roles = config.format or TokensChatFormat(), config.roles
        self._when_long = config.long_conversations
        self._max_length = room.target

    def batch(self, records: Sequence[Record], _keys: Sequence[int]) -> list[Outcome]:
        """One example a conversation, or several of one that is too long."""
        return [self._outcome(record) for record in records]

    def _outcome(self, record: Record) -> Outcome:
        match record:
            case ChatRecord():
                turns = [(message.role, message.content) for message in record.messages]
            case PairRecord():
                turns = [("user", record.source), ("assistant", record.target)]
            case TextRecord() | PreferenceRecord():
                raise misfit("plain text and preferences", "chat", "causal_lm or dpo")
            case _:
                assert_never(record)
        try:
            examples = self._parts(turns, record)
        except DataError as error:
            return BadRecord(error.what, record.origin)
        learnt = [example for example in examples if (example.labels != IGNORE).any()]
        if not learnt:
            roles = " or ".join(self._roles)
            within = f" within the first {self._max_length} tokens" if any(each.cut for each in examples) else ""
            return BadRecord(f"nothing to learn: no turn of {roles}{within}", record.origin)
        learnt[0].cut = any(example.cut for example in examples)
        return learnt

    def _parts(self, turns: Turns, record: Record) -> list[Example]:
        """A conversation in one example, or in several. However many, only the first says that it is cut."""
        whole = self._encoded(turns)
        if self._fits(whole) or self._when_long == "cut_end":
            return [self._example(whole, record, cut=not self._fits(whole))]
        examples: list[Example] = []
        # Nothing is learnt from what is said after the last turn that counts.
        while stop := self._end_of_scored(turns):
            turns = turns[:stop]
            start = first_of_latest(turns, lambda left: self._fits(self._encoded(left)))
            part, before = since(start, turns), turns[:start] if self._when_long == "split" else []
            # A system message that stands before every part is learnt in the first one, and makes none by itself.
            turns = before if self._end_of_scored(before) > _has_system(before) else []
            examples.append(self._example(self._encoded(part, told=_has_system(part) if turns else 0), record))
        examples = examples[::-1] or [self._example(whole, record)]
        examples[0].cut = True
        return examples

    def _end_of_scored(self, turns: Turns) -> int:
        """The number of turns up to the last one that is learnt."""
        return next((stop for stop in range(len(turns), 0, -1) if turns[stop - 1][0] in self._roles), 0)

    def _example(self, encoded: Encoded, record: Record, cut: bool = False) -> Example:
        tokens, scored = encoded
        labels = np.where(scored[1:], tokens[1:], IGNORE)
        return Example(tokens[:-1][: self._max_length], labels[: self._max_length], record.origin, cut=cut)

    def _fits(self, encoded: Encoded) -> bool:
        return len(encoded[0]) - 1 <= self._max_length

    def _encoded(self, turns: Turns, told: int = 0) -> Encoded:
        """The first `told` turns are not scored."""
        ids, scored = encode_chat(turns, self._format, self.tokenizer, self._roles)
        if told:
            known = len(encode_chat(turns[:told], self._format, self.tokenizer)[0])
            scored = [*[False] * known, *scored[known:]]
        prefix = () if self._format.complete else self.framing.prefix
        return tokens_of([*prefix, *ids]), np.array([*[False] * len(prefix), *scored], np.bool_)
