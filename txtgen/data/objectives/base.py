"""What every objective is: a maker of examples, and the forms that an example has."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from txtgen.config.tokenizer import Framing
from txtgen.data.examples import Examples, Outcome
from txtgen.data.objectives.encoding import Encoder
from txtgen.data.types import IGNORE, BadRecord, Example, Origin, Record, Tokens
from txtgen.errors import ConfigError
from txtgen.tokenizer import Ids


@dataclass(frozen=True, slots=True)
class Room:
    """How long examples may be: `target` tokens of a row or a target, `source` tokens of a source; 0: there is none."""

    target: int
    source: int = 0


class Objective(ABC):
    """Makes examples of records.

    packed: examples share rows of a fixed length; if not, every row is one pair. separate: examples that share a row
    are hidden from one another. draws: whether anything is drawn at random. pad_id: fills up rows. token_bytes: [V]
    int64, the bytes of text that each token stands for.
    """

    def __init__(self, encode: Encoder, framing: Framing, *, packed: bool, separate: bool = False) -> None:
        self.encode, self.framing = encode, framing
        self.tokenizer = tokenizer = encode.tokenizer
        self.packed, self.separate = packed, separate
        self.draws = True
        self.pad_id = tokenizer.special.pad_id
        self.token_bytes = np.array([len(tokenizer.token_bytes(i)) for i in range(len(tokenizer))], np.int64)
        # IGNORE, which is negative, counts from the end, where there is nothing.
        self._label_bytes = np.concatenate([self.token_bytes, np.zeros(-IGNORE, np.int64)])

    @abstractmethod
    def batch(self, records: Sequence[Record], keys: Sequence[int]) -> list[Outcome]:
        """The outcome of each record; together they are tokenised faster than one by one.

        keys: for each record, below 2**63, what its random draws depend on.
        """

    def columns(self, records: Sequence[Record], keys: Sequence[int]) -> Examples:
        """`batch` in columns."""
        return Examples.of(self.batch(records, keys))

    def __call__(self, record: Record, key: int = 0) -> list[Example]:
        """The examples of one record.

        Raises:
            BadRecord: nothing can be learnt from it.
        """
        outcome = self.batch([record], [key])[0]
        if isinstance(outcome, BadRecord):
            raise outcome
        return outcome

    @property
    def parts(self) -> Mapping[str, "Objective"]:
        """The parts of a mixture by name, each as an objective of its own; empty if this is none."""
        return {}

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each part."""
        return {}

    def scored_bytes(self, labels: NDArray[np.int64]) -> int:
        """The bytes of text that scored labels stand for."""
        return int(self._label_bytes[labels].sum())


def tokens_of(ids: Sequence[int] | Ids) -> Tokens:
    """Token ids as an array, [T] int64."""
    return np.asarray(ids, np.int64)


def row(context: Sequence[Tokens], scored: Sequence[Tokens], origin: Origin) -> Example:
    """An example in one row: what is scored, after a context that is read in both directions and is not."""
    tokens = np.concatenate([*context, *scored])
    known = sum(map(len, context))
    labels = tokens[1:].copy()
    labels[: max(0, known - 1)] = IGNORE
    return Example(tokens[:-1], labels, origin, bidirectional=known)


def pair(framing: Framing, source: Tokens, target: Tokens, origin: Origin) -> Example:
    """An example of a source as the encoder reads it, and of a target that brings its own end."""
    start = framing.decoder_start
    tokens = np.concatenate([tokens_of([*start, *framing.prefix]), target])
    labels = tokens[1:].copy()
    labels[: len(start) - 1] = IGNORE  # the decoder is given all of its start
    return Example(tokens[:-1], labels, origin, source)


def framed_source(framing: Framing, source: Tokens) -> Tokens:
    """A source with the tokens that an encoder expects around it."""
    return np.concatenate([tokens_of(framing.prefix), source, tokens_of(framing.suffix)])


def require_room(size: int, least: int = 1) -> int:
    """The size of a piece of text.

    Raises:
        ConfigError: it is less than an objective can use.
    """
    if size < least:
        raise ConfigError(
            "no text fits into an example beside the tokens around it",
            "train.sequence_length, model.max_length, model.max_source_length",
            "raise them",
        )
    return size


def pieces(tokens: Tokens, size: int, least: int = 1) -> Iterator[Tokens]:
    """The tokens in pieces of `size`; the last is shorter, but no shorter than `least` if there are as many in all."""
    start = 0
    while start < len(tokens):
        stop = min(start + size, len(tokens))
        if 0 < len(tokens) - stop < least:
            stop = max(start + 1, len(tokens) - least)
        yield tokens[start:stop]
        start = stop


def misfit(records: str, objective: str, better: str) -> ConfigError:
    """The error for records that an objective cannot learn from."""
    return ConfigError(
        f"{records} cannot serve the objective {objective}", "data.objective.kind", f"set it to {better}"
    )
