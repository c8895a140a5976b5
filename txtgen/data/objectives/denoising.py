"""Objectives that mend a text: hidden spans, and texts that are spoilt in several ways."""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from txtgen.config.objectives import DenoisingObjective, SpanCorruptionObjective
from txtgen.config.tokenizer import Framing
from txtgen.data.objectives.base import Room, framed_source, pair, pieces, require_room, row, tokens_of
from txtgen.data.objectives.encoding import Encoder
from txtgen.data.objectives.noise import (
    Mask,
    cut_spans,
    delete_tokens,
    longest,
    mask_spans,
    permute_sentences,
    span_counts,
    span_mask,
)
from txtgen.data.objectives.texts import TextObjective
from txtgen.data.order import Draws
from txtgen.data.types import Example, TextRecord, Tokens
from txtgen.errors import ConfigError

_ENDS_SENTENCE = re.compile(r"""[.!?…]["'”’»)\]]*$""")
_ENDS_WITHOUT_SPACE = re.compile(r"[。！？][”’」』）]*$|[\n。！？]\s*$|[।۔؟]\s*$")
"""Ends of a sentence, or a line, after which no space need follow."""


class SpanCorruption(TextObjective):
    """Predict the hidden spans of a text, each after its sentinel.

    A text is cut into pieces as long as allows both the piece with its gaps and the spans to fit. An encoder reads
    the former where there is one, or else it is the bidirectional part of a row.

    Raises:
        ConfigError: a piece that fills an example would need more sentinels than there are, or nothing fits.
    """

    name = "span_corruption"

    def __init__(
        self, config: SpanCorruptionObjective, encode: Encoder, framing: Framing, room: Room, sentinels: list[int]
    ) -> None:
        super().__init__(encode, framing, packed=not room.source, separate=True)
        self._sentinels = tokens_of(sentinels)
        self._density, self._mean_span = config.noise_density, config.mean_span_length
        self._size = require_room(longest(lambda length: self._fits(length, room), 2 * (room.source + room.target)))
        spans = span_counts(self._size, self._density, self._mean_span)[1]
        if spans > len(sentinels):
            raise ConfigError(
                f"a text of {self._size} tokens has {spans} hidden spans, and there are {len(sentinels)} sentinels",
                "data.objective.num_sentinels",
                f"set it to {spans} or more where the tokenizer has as many, raise mean_span_length, or lower "
                "train.sequence_length or the model's max_source_length",
            )

    def _fits(self, length: int, room: Room) -> bool:
        """Whether the two parts of a text of this length fit. Source: Raffel et al. 2019, as released."""
        hidden, spans = span_counts(length, self._density, self._mean_span)
        framing = self.framing
        source, target = length - hidden + spans, hidden + spans + 1  # the end
        if self.packed:
            return len(framing.prefix) + source + target - 1 <= room.target
        around = len(framing.prefix)
        return (
            around + source + len(framing.suffix) <= room.source
            and len(framing.decoder_start) + around + target - 1 <= room.target
        )

    def examples(self, tokens: Tokens, record: TextRecord, draws: Draws) -> Iterator[Example]:
        """An example for every piece."""
        framing, end = self.framing, tokens_of(self.framing.end[:1])
        for piece in pieces(tokens, self._size):
            hidden = span_mask(len(piece), self._density, self._mean_span, draws)
            source, target = cut_spans(piece, hidden, self._sentinels)
            if self.packed:
                yield row([tokens_of(framing.prefix), source], [target, end], record.origin)
            else:
                target = np.concatenate([target, end])
                yield pair(framing, framed_source(framing, source), target, record.origin)


class Denoising(TextObjective):
    """Predict a text from what is left of it: its sentences are permuted, then tokens deleted, then spans masked.

    A text that is too long gives several examples.
    """

    name = "denoising"

    def __init__(self, config: DenoisingObjective, encode: Encoder, framing: Framing, room: Room, mask_id: int) -> None:
        super().__init__(encode, framing, packed=False)
        self._config, self._mask_id = config, mask_id
        around = len(framing.prefix)
        self._source_size = room.source - around - len(framing.suffix)
        self._size = require_room(min(self._source_size, room.target - around - len(framing.decoder_start)))
        tokenizer = encode.tokenizer
        texts = [tokenizer.token_bytes(token).decode(errors="replace") for token in range(len(tokenizer))]
        self._ends = np.array([bool(_ENDS_SENTENCE.search(text)) for text in texts], np.bool_)
        self._ends_anyway = np.array([bool(_ENDS_WITHOUT_SPACE.search(text)) for text in texts], np.bool_)
        self._is_apart = np.array([not text or text[0].isspace() for text in texts], np.bool_)

    def examples(self, tokens: Tokens, record: TextRecord, draws: Draws) -> Iterator[Example]:
        """An example for every piece."""
        end = tokens_of(self.framing.end[:1])
        for piece in pieces(tokens, self._size):
            source = self.spoilt(piece, draws)
            framed = framed_source(self.framing, source[: self._source_size])
            example = pair(self.framing, framed, np.concatenate([piece, end]), record.origin)
            # Masks that hide nothing may make a piece longer.
            yield replace(example, cut=len(source) > self._source_size)

    def spoilt(self, piece: Tokens, draws: Draws) -> Tokens:
        """What is left of a piece of text."""
        config, source = self._config, piece
        if config.permute_sentences:
            source = permute_sentences(source, self.sentence_ends(source), draws)
        if config.delete_ratio:
            source = delete_tokens(source, config.delete_ratio, draws)
        if config.mask_ratio:
            source = mask_spans(source, config.mask_ratio, config.mean_span_length, self._mask_id, draws)
        return source

    def sentence_ends(self, tokens: Tokens) -> Mask:
        """Whether each token ends a sentence, [T] bool: by a stop before a space, or one that needs no space."""
        ends: Mask = self._ends_anyway[tokens] | (self._ends[tokens] & np.append(self._is_apart[tokens[1:]], True))
        return ends
