"""The objective of an encoder-decoder that learns from pairs and conversations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np

from txtgen.chat import encode_chat
from txtgen.config.chat_formats import ChatFormat
from txtgen.config.tokenizer import Framing
from txtgen.data.examples import Outcome
from txtgen.data.objectives.base import Objective, Room, framed_source, misfit, pair, tokens_of
from txtgen.data.objectives.conversations import Turns, first_of_latest, since
from txtgen.data.objectives.encoding import Encoder
from txtgen.data.types import (
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
from txtgen.tokenizer import Ids


class Seq2Seq(Objective):
    """Predict a target from its source; of a conversation, every assistant turn from the turns before it.

    Source and target have the framing's tokens around them; the target ends, unless it is cut. Of a source that is
    too long the end is cut off; of a history the oldest turns are left out, and where even the last one is too long,
    its beginning is cut off.
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
                case TextRecord() | PreferenceRecord():
                    raise misfit("plain text and preferences", "seq2seq", "span_corruption or dpo")
                case _:
                    assert_never(record)
        return outcomes

    def _replies(self, record: ChatRecord) -> Outcome:
        examples: list[Example] = []
        turns = [(message.role, message.content) for message in record.messages]
        for turn, message in enumerate(record.messages):
            if turn and message.role == "assistant":
                try:
                    source, cut = self._fitting(turns[:turn])
                except DataError as error:
                    return BadRecord(error.what, record.origin)
                target = tokens_of(self.tokenizer.encode(message.content))
                examples.append(self._example(source, target, record, cut))
        return examples or BadRecord("nothing to learn: no assistant turn after another turn", record.origin)

    def _fitting(self, turns: Turns) -> tuple[Tokens, bool]:
        """What the encoder reads of the turns before a reply, and whether that is not all of them."""
        source = self._history(turns)
        if cut := not self._fits(source):
            start = first_of_latest(turns, lambda left: self._fits(self._history(left)))
            source = self._history(since(start, turns))
        return tokens_of(source[-self._max_source_length :]), cut

    def _fits(self, source: Sequence[int]) -> bool:
        return len(source) <= self._max_source_length

    def _history(self, turns: Turns) -> list[int]:
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
