"""Objectives that go on from a text: causal and prefix language models, and texts whose middle is written last."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from txtgen.config.objectives import CausalLmObjective, FillInMiddleObjective
from txtgen.config.tokenizer import Framing
from txtgen.data.examples import Examples, Outcome
from txtgen.data.objectives.base import (
    Objective,
    Room,
    framed_source,
    misfit,
    pair,
    pieces,
    require_room,
    row,
    tokens_of,
)
from txtgen.data.objectives.encoding import Encoder
from txtgen.data.order import Draws, Use
from txtgen.data.types import IGNORE, Example, Origins, Record, TextRecord, TextRecords, Tokens
from txtgen.tokenizer import Ids


class TextObjective(Objective):
    """Makes examples of the tokens of a text."""

    name: str

    def batch(self, records: Sequence[Record], keys: Sequence[int]) -> list[Outcome]:
        """The examples of each text."""
        texts = text_records(records, self.name)
        encoded = self.encode(texts.texts, keys)
        return [
            list(self.examples(tokens_of(ids), record, Draws(Use.NOISE, key)))
            for record, ids, key in zip(texts, encoded, keys, strict=True)
        ]

    @abstractmethod
    def examples(self, tokens: Tokens, record: TextRecord, draws: Draws) -> Iterator[Example]:
        """The examples of one text, given as tokens."""


def text_records(records: Sequence[Record], objective: str) -> TextRecords:
    """The records, all of them plain text."""
    if isinstance(records, TextRecords):
        return records
    texts = [record for record in records if isinstance(record, TextRecord)]
    if len(texts) < len(records):
        raise misfit("pairs, conversations and preferences", objective, "chat, seq2seq or dpo")
    return TextRecords.of(texts)


class CausalLm(Objective):
    """Predict every next token of a document, its end included.

    A document stands between the framing's prefix and its end. Where a piece of a long document does not begin or end
    with the document, its first token is not predicted and nothing follows its last.
    """

    def __init__(self, config: CausalLmObjective, encode: Encoder, framing: Framing) -> None:
        super().__init__(encode, framing, packed=True, separate=config.separate_documents)
        self.draws = encode.draws

    def batch(self, records: Sequence[Record], keys: Sequence[int]) -> list[Outcome]:
        """One example a record; none of a single token in the middle of a document."""
        return self.columns(records, keys).outcomes(len(records))

    def columns(self, records: Sequence[Record], keys: Sequence[int]) -> Examples:
        """`batch` in columns."""
        texts = text_records(records, "causal_lm")
        encoded = self.encode(texts.texts, keys)
        return continued(texts, encoded, self.framing)


def continued(texts: TextRecords, encoded: Sequence[Ids], framing: Framing) -> Examples:
    """For each text, the example that predicts all of its tokens."""
    prefix, end = np.array(framing.prefix, np.int32), np.array(framing.end[:1], np.int32)
    before = [prefix if begins else prefix[:0] for begins in texts.begins]
    behind = [end if ends else end[:0] for ends in texts.ends]
    # Joined as bytes: np.concatenate takes six times as long for so many short arrays.
    parts: Iterator[Any] = chain.from_iterable(zip(before, encoded, behind, strict=True))
    tokens: Ids = np.frombuffer(b"".join(parts), np.int32)
    counts = np.array([[*map(len, column)] for column in (before, encoded, behind)], np.int64).sum(0)
    # Every token but the last of its text is read, and the one after it is predicted.
    is_read = np.ones(len(tokens), np.bool_)
    is_read[np.cumsum(counts)[counts > 0] - 1] = False
    found = np.flatnonzero(counts > 1).tolist()
    return Examples(
        tokens[is_read],
        tokens[1:][is_read[:-1]],
        [0, *np.cumsum(counts[found] - 1).tolist()],
        found,
        texts.origins if len(found) == len(texts) else Origins.of([texts.origins[number] for number in found]),
        bidirectional=[0] * len(found),
        splittable=[True] * len(found),
        cut=[False] * len(found),
        source_ids=[None] * len(found),
        rejected=[0] * len(found),
    )


class PrefixLm(TextObjective):
    """Predict the rest of a text from its beginning; every place where it can be cut is equally likely.

    A text that is too long for one example gives several. An encoder reads the beginning where there is one, or else
    it is the bidirectional part of a row.
    """

    name = "prefix_lm"

    def __init__(self, encode: Encoder, framing: Framing, room: Room) -> None:
        super().__init__(encode, framing, packed=not room.source, separate=True)
        begin, end = len(framing.prefix), len(framing.suffix)
        # Of a pair, either side has at least one token of the piece.
        sides = (room.source - begin - end, room.target - len(framing.decoder_start) - begin + 1)
        self._size = require_room(1 + (min(sides) if room.source else room.target), least=2)

    def examples(self, tokens: Tokens, record: TextRecord, draws: Draws) -> Iterator[Example]:
        """An example for every piece of at least two tokens, beginning and end included."""
        framing = self.framing
        prefix = framing.prefix if record.begins and self.packed else ()
        end = framing.end[:1] if record.ends else ()
        whole = np.concatenate([tokens_of(prefix), tokens, tokens_of(end)])
        for number, piece in enumerate(pieces(whole, self._size, least=2)):
            given = max(1, len(prefix)) if not number else 1
            if len(piece) > given:
                cut = given + draws.below(len(piece) - given)
                if self.packed:
                    yield row([piece[:cut]], [piece[cut:]], record.origin)
                else:
                    yield pair(framing, framed_source(framing, piece[:cut]), piece[cut:], record.origin)


class FillInMiddle(Objective):
    """As CausalLm, but some documents stand in a row as prefix, suffix and then the middle, or suffix, prefix, middle.

    The cuts fall between any two characters, wherever tokens of the parts fit. The tokens that announce the parts are
    not predicted. Source: Bavarian et al. 2022, arXiv 2207.14255; a long document is cut first, section 4.5.
    """

    def __init__(
        self,
        config: FillInMiddleObjective,
        encode: Encoder,
        framing: Framing,
        room: Room,
        ids: tuple[int, int, int],
    ) -> None:
        super().__init__(encode, framing, packed=True, separate=config.separate_documents)
        self._rate, self._spm_rate = config.rate, config.spm_rate
        self._ids = tokens_of(ids)
        self._size = require_room(room.target - len(framing.prefix) - len(ids))

    def batch(self, records: Sequence[Record], keys: Sequence[int]) -> list[Outcome]:
        """One example of each text that stays as it is; of the others, one for every piece that fits a row."""
        texts = text_records(records, "fill_in_middle")
        encoded = self.encode(texts.texts, keys)
        outcomes = continued(texts, encoded, self.framing).outcomes(len(texts))
        for number, (record, ids, key) in enumerate(zip(texts, encoded, keys, strict=True)):
            draws = Draws(Use.NOISE, key)
            if draws.shares(1)[0] < self._rate:
                cut = [self._rearranged(piece, record, draws) for piece in pieces(tokens_of(ids), self._size)]
                outcomes[number] = cut
        return outcomes

    def _rearranged(self, piece: Tokens, record: TextRecord, draws: Draws) -> Example:
        prefix, middle, suffix = self._parts(piece, draws)
        before, behind, between = np.split(self._ids, 3)
        if draws.shares(1)[0] < self._spm_rate:
            parts = [before, behind, suffix, between, prefix, middle]
        else:
            parts = [before, prefix, behind, suffix, between, middle]
        tokens = np.concatenate([tokens_of(self.framing.prefix), *parts, tokens_of(self.framing.end[:1])])
        labels = np.where(np.isin(tokens[1:], self._ids), IGNORE, tokens[1:])
        return Example(tokens[:-1], labels, record.origin)

    def _parts(self, piece: Tokens, draws: Draws) -> list[Tokens]:
        """Prefix, middle and suffix of a piece, cut at two random places."""
        text = self.tokenizer.decode(piece.tolist())
        first, second = sorted(draws.below(len(text) + 1) for _ in range(2))
        # A tokenizer that puts a space before a text would put one into the middle of a word.
        if not self.tokenizer.leading_space and "\ufffd" not in text:
            keys = [draws.below(2**53) for _ in range(3)]
            found = self.encode([text[:first], text[first:second], text[second:]], keys)
            if sum(map(len, found)) <= self._size:
                return [tokens_of(ids) for ids in found]
        cuts = sorted(draws.below(len(piece) + 1) for _ in range(2))
        return np.split(piece, cuts)
