"""How text becomes tokens."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from txtgen.config.base import Config, Count, NonNegative

CHAT_ROLES = ("system", "user", "assistant")
"""The roles of a conversation."""

SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>")
"""Padding, unknown, beginning and end, in the order of their ids from 0."""


class SentencePieceConfig(Config):
    """A SentencePiece model: loaded from `path`, or trained on a sample of the corpus."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    path: str | None = None
    """A .model file to use as it is, whatever else is said here; None: train one."""
    algorithm: Literal["unigram", "bpe", "char"] = "unigram"
    vocab_size: Annotated[int, Field(ge=8, le=1_000_000)] = 8_000
    """Pieces in all, the special ones included. With `char` it is an upper bound."""
    exact_vocab_size: bool = False
    """Refuse a corpus that is too small for vocab_size, instead of taking what it supports."""
    character_coverage: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9995
    """Share of the characters that get a piece of their own; the rest goes through byte pieces."""
    byte_fallback: bool = True
    """256 byte pieces, so that every text can be encoded. Without them an unknown one decodes to U+FFFD."""
    split_digits: bool = True
    normalization: Literal["identity", "nfkc"] = "identity"
    """identity loses nothing; nfkc folds compatible characters and cannot be undone."""
    control_symbols: tuple[str, ...] = ("<|system|>", "<|user|>", "<|assistant|>")
    """Tokens that no text can produce; inserted by id only."""
    sample_bytes: Count = 20_000_000
    """At most this much of the corpus is read for training the tokenizer."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Room for pieces of text must be left, and no control symbol may be mistaken for another piece."""
        if self.path is None and self.vocab_size <= self.num_reserved:
            yield (
                "vocab_size",
                f"is {self.vocab_size}, not more than {self.num_reserved} special, control and byte pieces",
            )
        yield from control_symbol_problems(self.control_symbols)

    def reserving(self, symbols: Sequence[str]) -> "SentencePieceConfig":
        """The same with these control symbols too, unless the model is there already."""
        together = tuple(dict.fromkeys((*self.control_symbols, *symbols)))
        return self if self.path else self.model_copy(update={"control_symbols": together})

    @property
    def num_reserved(self) -> int:
        """Pieces that are there whatever the corpus: special, newline, control and byte pieces."""
        return len(SPECIAL_PIECES) + 1 + len(self.control_symbols) + (256 if self.byte_fallback else 0)


TokenizerConfig = SentencePieceConfig


def control_symbol_problems(symbols: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What keeps control symbols from being told from other pieces, as (key, complaint)."""
    for symbol in symbols:
        if not re.fullmatch(r"[^\s\x00\u2581]{2,100}", symbol):
            yield "control_symbols", f"{symbol!r} must be 2 to 100 characters without spaces, like <|name|>"
        elif symbol in SPECIAL_PIECES or re.fullmatch(r"<0x[0-9A-F]{2}>", symbol):
            yield "control_symbols", f"{symbol!r} is already the name of a special or byte piece"
    if len(set(symbols)) < len(symbols):
        yield "control_symbols", "the same symbol is named twice"


class VocabularyConfig(Config):
    """The tokenizer of a finetuned model, where it is not just the base model's own."""

    path: str | None = None
    """Another tokenizer: a .model file, a model or a run folder. Rows of pieces that both have are taken over, those of
    others begin as the mean of the pieces that spelled their text before. None: the base model's own."""
    control_symbols: tuple[str, ...] = ()
    """New tokens that no text can produce, such as a role; inserted by id only."""
    pieces: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = ()
    """New tokens of text, found wherever a text has it, such as a term that is many tokens long."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Control symbols are named as in a new tokenizer; a piece is text, and new once."""
        yield from control_symbol_problems(self.control_symbols)
        for piece in self.pieces:
            if "\u2581" in piece or "\x00" in piece:
                yield "pieces", f"{piece!r} holds a character that no piece can have; a space is written as a space"
        if len({*self.pieces, *self.control_symbols}) < len(self.pieces) + len(set(self.control_symbols)):
            yield "pieces", "the same piece is named twice"


class Framing(Config):
    """The tokens, by id, that a model expects around its texts, and those that end them.

    A decoder reads `prefix` and a text. An encoder reads `prefix`, the source and `suffix`; its decoder begins with
    `decoder_start` and writes a target after `prefix`.
    """

    prefix: tuple[NonNegative, ...] = ()
    suffix: tuple[NonNegative, ...] = ()
    decoder_start: tuple[NonNegative, ...] = ()
    end: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    """Tokens that end a generated text; training writes the first of them."""
