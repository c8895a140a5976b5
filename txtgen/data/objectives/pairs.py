"""Objectives that learn from pairs and conversations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np

from txtgen.chat import encode_chat
from txtgen.config.data import ChatFormat, ChatObjective, TokensChatFormat
from txtgen.config.tokenizer import Framing
from txtgen.data.examples import Outcome
from txtgen.data.objectives.base import Objective, Room, framed_source, misfit, pair, tokens_of
from txtgen.data.objectives.encoding import Encoder
from txtgen.data.types import IGNORE, BadRecord, ChatRecord, Example, Message, PairRecord, Record, TextRecord, Tokens
from txtgen.errors import DataError
from txtgen.tokenizer import Ids


class Chat(Objective):
    """Predict the turns of the chosen roles from all that stands before them."""

    def __init__(self, config: ChatObjective, encode: Encoder, framing: Framing, room: Room) -> None:
        super().__init__(encode, framing, packed=True, separate=config.separate_documents)
        self.draws = False
        self._format, self._roles = config.format or TokensChatFormat(), config.roles
        self._max_length = room.target

    def batch(self, records: Sequence[Record], _keys: Sequence[int]) -> list[Outcome]:
        """One example a conversation."""
        return [self._outcome(record) for record in records]

    def _outcome(self, record: Record) -> Outcome:
        match record:
            case ChatRecord():
                messages = [(message.role, message.content) for message in record.messages]
            case PairRecord():
                messages = [("user", record.source), ("assistant", record.target)]
            case TextRecord():
                raise misfit("plain text", "chat", "causal_lm")
            case _:
                assert_never(record)
        try:
            ids, scored = encode_chat(messages, self._format, self.tokenizer, self._roles)
        except DataError as error:
            return BadRecord(error.what, record.origin)
        prefix = () if self._format.complete else self.framing.prefix
        tokens = tokens_of([*prefix, *ids])
        learnt = np.array([*[False] * len(prefix), *scored], np.bool_)
        labels = np.where(learnt[1:], tokens[1:], IGNORE)[: self._max_length]
        cut = len(tokens) - 1 > self._max_length
        if not (labels != IGNORE).any():
            roles = " or ".join(self._roles)
            within = f" within the first {self._max_length} tokens" if cut else ""
            return BadRecord(f"nothing to learn: no turn of {roles}{within}", record.origin)
        inputs = tokens[:-1][: self._max_length]
        return [Example(inputs, labels, record.origin, cut=cut)]


class Seq2Seq(Objective):
    """Predict a target from its source; of a conversation, every assistant turn from the turns before it.

    Source and target have the framing's tokens around them; the target ends, unless it is cut. Of a source that is
    too long the end is cut off, of a history the beginning.
    """

    def __init__(
        self, format: ChatFormat, encode: Encoder, encode_source: Encoder, framing: Framing, room: Room
    ) -> None:
        super().__init__(encode, framing, packed=False)
        self.draws = encode.draws or encode_source.draws
        self.encode_source, self.source_tokenizer = encode_source, encode_source.tokenizer
        self._format = format
        self._max_length, self._max_source_length = room.target, room.source

    def batch(self, records: Sequence[Record], keys: Sequence[int]) -> list[Outcome]:
        """One example a pair, and one for every assistant turn that answers something."""
        pairs = [record for record in records if isinstance(record, PairRecord)]
        pair_keys = [key for record, key in zip(records, keys, strict=True) if isinstance(record, PairRecord)]
        sources = self.encode_source([each.source for each in pairs], pair_keys)
        targets = self.encode([each.target for each in pairs], pair_keys)
        encoded = zip(sources, targets, strict=True)
        outcomes: list[Outcome] = []
        for record in records:
            match record:
                case PairRecord():
                    source, target = next(encoded)
                    room = self._max_source_length - len(self.framing.prefix) - len(self.framing.suffix)
                    framed = framed_source(self.framing, tokens_of(source[:room]))
                    outcomes.append([self._example(framed, target, record, len(source) > room)])
                case ChatRecord():
                    outcomes.append(self._replies(record))
                case TextRecord():
                    raise misfit("plain text", "seq2seq", "causal_lm")
                case _:
                    assert_never(record)
        return outcomes

    def _replies(self, record: ChatRecord) -> Outcome:
        examples: list[Example] = []
        for turn, message in enumerate(record.messages):
            if turn and message.role == "assistant":
                try:
                    source = tokens_of(self.history_ids(record.messages[:turn]))
                except DataError as error:
                    return BadRecord(error.what, record.origin)
                cut = len(source) > self._max_source_length
                target = tokens_of(self.tokenizer.encode(message.content))
                examples.append(self._example(source[-self._max_source_length :], target, record, cut))
        return examples or BadRecord("nothing to learn: no assistant turn after another turn", record.origin)

    def history_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the encoder reads of the turns before a reply."""
        turns = [(message.role, message.content) for message in messages]
        ids, _ = encode_chat(turns, self._format, self.source_tokenizer, reply=True)
        prefix = () if self._format.complete else self.framing.prefix
        return [*prefix, *ids, *self.framing.suffix]

    def _example(self, source: Tokens, target: Ids | Tokens, record: Record, source_cut: bool) -> Example:
        whole = pair(self.framing, source, tokens_of(np.append(target, self.framing.end[0])), record.origin)
        return replace(
            whole,
            input_ids=whole.input_ids[: self._max_length],
            labels=whole.labels[: self._max_length],
            cut=source_cut or len(whole.labels) > self._max_length,
        )
