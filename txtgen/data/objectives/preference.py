"""The objective that learns which of two answers is preferred."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from txtgen.chat import encode_chat
from txtgen.config.chat_formats import ChatFormat, TokensChatFormat
from txtgen.config.tokenizer import Framing
from txtgen.data.examples import Outcome
from txtgen.data.objectives.base import Objective, Room, misfit, tokens_of
from txtgen.data.objectives.conversations import Encoded, Turns, first_of_latest, since
from txtgen.data.objectives.encoding import Encoder
from txtgen.data.objectives.pairs import Seq2Seq
from txtgen.data.types import (
    IGNORE,
    BadRecord,
    ChatRecord,
    Example,
    Message,
    PairRecord,
    PreferenceRecord,
    Record,
    Tokens,
)
from txtgen.errors import ConfigError, DataError


class Preference(Objective):
    """A prompt with either answer, as two documents of one row, of which only the answers are scored.

    So a pair is never torn apart, whatever rank or micro-batch it goes to, and an encoder reads its source once. Both
    documents have the same prompt: of what the longer answer leaves no room for, the oldest turns are left out, and
    then the beginning is cut off. An answer that does not fit even so loses its end.

    Raises:
        BadRecord: nothing distinguishes the answers within the length of a row.
    """

    def __init__(
        self, format: ChatFormat | None, encode: Encoder, encode_source: Encoder, framing: Framing, room: Room
    ) -> None:
        super().__init__(encode, framing, packed=False, separate=True)
        self.draws = False
        self._format, self._row_format = format, format or TokensChatFormat()
        self._seq2seq = Seq2Seq(self._row_format, encode, encode_source, framing, room)
        self._has_source, self._max_length = bool(room.source), room.target

    def batch(self, records: Sequence[Record], _keys: Sequence[int]) -> list[Outcome]:
        """One example a pair."""
        return [self._outcome(record) for record in records]

    def _outcome(self, record: Record) -> Outcome:
        if not isinstance(record, PreferenceRecord):
            raise misfit("texts, pairs and conversations", "dpo", "causal_lm, seq2seq or chat")
        try:
            chosen, rejected = self._from_source(record) if self._has_source else self._in_one_row(record)
        except DataError as error:
            return BadRecord(error.what, record.origin)
        if np.array_equal(chosen.labels, rejected.labels):
            within = f" within the first {self._max_length} tokens" if chosen.cut or rejected.cut else ""
            return BadRecord(f"the two answers are the same{within}", record.origin)
        return [joined(chosen, rejected)]

    def _from_source(self, record: PreferenceRecord) -> list[Example]:
        """Both answers as targets of the same source."""
        if self._format is None and not isinstance(record.prompt, str):
            raise ConfigError(
                "prompts are conversations, and the base model reads none",
                "data.objective.format",
                "set its kind to tokens or text, or make every prompt one text",
            )
        answers = record.chosen, record.rejected
        if self._format is None and isinstance(record.prompt, str):
            pairs = [PairRecord(record.prompt, answer, record.origin) for answer in answers]
            return [self._seq2seq(each)[-1] for each in pairs]
        turns = [Message(*turn) for turn in turns_of(record)]
        whole = [ChatRecord((*turns, Message("assistant", answer)), record.origin) for answer in answers]
        return [self._seq2seq(each)[-1] for each in whole]

    def _in_one_row(self, record: PreferenceRecord) -> list[Example]:
        """Both answers after the same prompt."""
        prefix = () if self._row_format.complete else self.framing.prefix
        turns, answers = turns_of(record), (record.chosen, record.rejected)

        def room(both: list[Encoded]) -> int:
            """What the longer answer leaves for the prompt."""
            return self._max_length + 1 - len(prefix) - max(len(ids) for ids, _ in both)

        def fits(turns: Turns) -> bool:
            prompt, both = self._encoded(turns, answers)
            return len(prompt) <= room(both)

        start = first_of_latest(turns, fits)
        prompt, both = self._encoded(since(start, turns), answers)
        left = max(1, room(both))
        context = tokens_of([*prefix, *prompt[-left:]])
        sides = [self._side(context, answer, record) for answer in both]
        return [replace(side, cut=start > 0 or len(prompt) > left) for side in sides]

    def _encoded(self, turns: Turns, answers: Sequence[str]) -> tuple[list[int], list[Encoded]]:
        """The tokens of turns that are open for an answer, and those of each answer."""
        format = self._row_format
        prompt, _ = encode_chat(turns, format, self.tokenizer, reply=True)
        both = [encode_chat([*turns, ("assistant", answer)], format, self.tokenizer) for answer in answers]
        return prompt, [
            (tokens_of(ids[len(prompt) :]), np.array(scored[len(prompt) :], np.bool_)) for ids, scored in both
        ]

    def _side(self, context: Tokens, answer: Encoded, record: PreferenceRecord) -> Example:
        tokens = np.concatenate([context, answer[0]])
        scored = np.concatenate([np.zeros(len(context), np.bool_), answer[1]])
        labels = np.where(scored, tokens, IGNORE)
        return Example(tokens[:-1][: self._max_length], labels[1:][: self._max_length], record.origin)


def turns_of(record: PreferenceRecord) -> Turns:
    """Role and content of the turns that are answered."""
    match record.prompt:
        case str(text):
            return [("user", text)]
        case messages:
            return [(message.role, message.content) for message in messages]


def joined(chosen: Example, rejected: Example) -> Example:
    """Two examples of one source as the two documents of a row."""
    return replace(
        chosen,
        input_ids=np.concatenate([chosen.input_ids, rejected.input_ids]),
        labels=np.concatenate([chosen.labels, rejected.labels]),
        cut=chosen.cut or rejected.cut,
        rejected=len(chosen.input_ids),
    )
