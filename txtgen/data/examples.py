"""Examples in columns: a thousand short ones are made and packed as fast as a few long ones."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np

from txtgen.data.types import BadRecord, Example, Origins, Tokens
from txtgen.tokenizer import Ids

Outcome = list[Example] | BadRecord
"""What becomes of a record: its examples, or what is wrong with it."""


@dataclass(slots=True, eq=False)
class Examples:
    """The examples of some records, one after the other.

    input_ids, labels: [N] of all of them together. borders: number i is from borders[i] up to borders[i + 1]. records:
    the number of the record that each is of, ascending. origins, bidirectional, splittable, cut, source_ids, rejected:
    as in Example. bad: the records that cannot be used.
    """

    input_ids: Ids | Tokens
    labels: Ids | Tokens
    borders: list[int]
    records: list[int]
    origins: Origins
    bidirectional: list[int]
    splittable: list[bool]
    cut: list[bool]
    source_ids: list[Tokens | None]
    rejected: list[int]
    bad: dict[int, BadRecord] = field(default_factory=dict)

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Examples":
        """The outcomes of records in columns."""
        made = [(record, found) for record, found in enumerate(outcomes) if not isinstance(found, BadRecord)]
        examples = [example for _, found in made for example in found]
        none = np.zeros(0, np.int64)
        return cls(
            np.concatenate([none, *(example.input_ids for example in examples)]),
            np.concatenate([none, *(example.labels for example in examples)]),
            list(accumulate((len(example.input_ids) for example in examples), initial=0)),
            [record for record, found in made for _ in found],
            Origins.of([example.origin for example in examples]),
            [example.bidirectional for example in examples],
            [example.splittable for example in examples],
            [example.cut for example in examples],
            [example.source_ids for example in examples],
            [example.rejected for example in examples],
            {record: found for record, found in enumerate(outcomes) if isinstance(found, BadRecord)},
        )

    def outcomes(self, count: int) -> list[Outcome]:
        """The outcome of each record, of which there are `count`."""
        made: list[list[Example]] = [[] for _ in range(count)]
        for number, record in enumerate(self.records):
            made[record].append(self[number])
        return [self.bad.get(record, examples) for record, examples in enumerate(made)]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.records)

    def __getitem__(self, number: int) -> Example:
        """One of them by itself."""
        place = slice(self.borders[number], self.borders[number + 1])
        return Example(
            self.input_ids[place].astype(np.int64),
            self.labels[place].astype(np.int64),
            self.origins[number],
            self.source_ids[number],
            self.bidirectional[number],
            self.splittable[number],
            self.cut[number],
            self.rejected[number],
        )

    @property
    def tokens(self) -> list[int]:
        """The tokens before each example and behind the last one, sources included."""
        sources = accumulate([0 if ids is None else len(ids) for ids in self.source_ids], initial=0)
        return [own + other for own, other in zip(self.borders, sources, strict=True)]


class Span(NamedTuple):
    """Some examples: from number `first` up to `last`."""

    examples: Examples
    first: int
    last: int

    def each(self) -> list[Example]:
        """The examples one by one."""
        return [self.examples[number] for number in range(self.first, self.last)]


class Documents:
    """Documents of a block that are tokenised, and have examples.

    stop: the place after the last one that was read, whether it has any or not.

    Args:
        examples: of all of them.
        numbers: the place in the order of the block of the document that each example is of, ascending.
        stop: as above.
    """

    def __init__(self, examples: Examples, numbers: Sequence[int], stop: int) -> None:
        self.stop = stop
        pairs = zip(chain([-1], numbers), numbers, strict=False)
        firsts = [first for first, (before, number) in enumerate(pairs) if number != before]
        self._examples, self._firsts = examples, [*firsts, len(examples)]
        self._numbers = [numbers[first] for first in firsts]
        tokens = examples.tokens
        self._tokens = [tokens[first] for first in self._firsts]

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._numbers)

    def number(self, document: int) -> int:
        """The place of a document in the order of the block."""
        return self._numbers[document]

    def span(self, first: int, last: int) -> Span:
        """The examples of documents from `first` up to `last`."""
        return Span(self._examples, self._firsts[first], self._firsts[last])

    def size(self, first: int, last: int) -> int:
        """The tokens of documents from `first` up to `last`."""
        return self._tokens[last] - self._tokens[first]

    def reaching(self, first: int, tokens: int) -> int:
        """The document before which, from `first` on, there are so many tokens; the end if there are fewer."""
        return min(bisect_left(self._tokens, self._tokens[first] + tokens, first + 1), len(self._numbers))
