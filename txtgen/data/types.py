"""What flows down the street: Record -> Example -> Batch, and the bookmark that travels with a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtgen.errors import DataError

IGNORE = -100
"""The label of a position that is not scored."""


class Origin(NamedTuple):
    """Where a record came from: the number of its source, its file, and the byte of the file's text where it begins.

    A byte, not a line: text is read from the middle of a file, where the number of the line is not known.
    `DataError`s name the line, which is counted when one is raised.
    """

    source: int
    path: str
    offset: int

    def __str__(self) -> str:
        """The file and the byte."""
        return f"{self.path} at byte {self.offset}"


@dataclass(slots=True, eq=False)
class Origins(Sequence[Origin]):
    """Origins in columns, for there may be more documents than anybody will ask for: source and path, and offset."""

    files: list[tuple[int, str]]
    offsets: list[int]

    @classmethod
    def of(cls, origins: Sequence[Origin]) -> "Origins":
        """Such as stand by themselves."""
        return cls([(source, path) for source, path, _ in origins], [origin.offset for origin in origins])

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.offsets)

    def __getitem__(self, place: Any) -> Any:
        """One, or some of them."""
        if isinstance(place, slice):
            return Origins(self.files[place], self.offsets[place])
        source, path = self.files[place]
        return Origin(source, path, self.offsets[place])

    def __iadd__(self, others: "Origins") -> "Origins":
        """Put others behind these."""
        self.files += others.files
        self.offsets += others.offsets
        return self

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same."""
        return isinstance(other, Sequence) and [*self] == [*other]


class BadRecord(DataError):
    """A record that cannot be used. `on_bad_record` decides whether it stops the run or is left out and counted.

    Args:
        what: what is wrong with it.
        origin: where it begins.
        column: the byte of the record where the fault is, from 0; None if it is not known.
    """

    def __init__(self, what: str, origin: Origin, column: int | None = None) -> None:
        super().__init__(what, str(origin))
        self.origin, self.column = origin, column


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(slots=True)
class TextRecord:
    """A document, or a piece of a long one: `begins` and `ends` tell whether its borders are the document's.

    As Example not frozen, although nobody changes one: frozen ones take three times as long to make.
    """

    text: str
    origin: Origin
    begins: bool = True
    ends: bool = True


@dataclass(slots=True, eq=False)
class TextRecords(Sequence[TextRecord]):
    """Text records in columns, for there may be many short ones."""

    texts: list[str]
    origins: Origins
    begins: list[bool]
    ends: list[bool]

    @classmethod
    def of(cls, records: Sequence[TextRecord]) -> "TextRecords":
        """Such as stand by themselves."""
        return cls(
            [record.text for record in records],
            Origins.of([record.origin for record in records]),
            [record.begins for record in records],
            [record.ends for record in records],
        )

    def __len__(self) -> int:
        """Number of records."""
        return len(self.texts)

    def __getitem__(self, place: Any) -> Any:
        """One, or some of them."""
        columns = self.texts[place], self.origins[place], self.begins[place], self.ends[place]
        return TextRecords(*columns) if isinstance(place, slice) else TextRecord(*columns)


@dataclass(frozen=True, slots=True)
class PairRecord:
    """A source and the target that belongs to it."""

    source: str
    target: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation."""

    messages: tuple[Message, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """A prompt, a text or the turns of a conversation, and two answers to it, of which the first is preferred."""

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    origin: Origin


Record = TextRecord | PairRecord | ChatRecord | PreferenceRecord

Tokens = NDArray[np.int64]
"""Token ids, [T] int64."""


@dataclass(slots=True, eq=False)
class Example:
    """One thing to learn, in token ids.

    input_ids, labels: [T] int64. `labels[t]` is the token to predict at position t, already shifted: the model never
    shifts. IGNORE is not scored. source_ids: [S] int64, what an encoder reads. The first `bidirectional` positions
    see one another in both directions. `splittable`: a row may end in the middle of it and the next go on with it.
    `cut` says that some of it was lost because it was too long. From position `rejected` on it is a second document,
    hidden from the first: the answer that is not preferred, after the prompt; 0: there is none.
    """

    input_ids: Tokens
    labels: Tokens
    origin: Origin
    source_ids: Tokens | None = None
    bidirectional: int = 0
    splittable: bool = False
    cut: bool = False
    rejected: int = 0

    @property
    def size(self) -> int:
        """Number of tokens, source included."""
        return len(self.input_ids) + (0 if self.source_ids is None else len(self.source_ids))


@dataclass(frozen=True, slots=True)
class Batch:
    """A block of examples as tensors.

    input_ids, labels, positions: [B,T] int64. segment_ids: [B,T] int32, 0 is padding, 1, 2, ... are the packed
    documents. bidirectional: [B,T] bool or None. source_ids: [B,S] int64 and source_mask: [B,S] bool (True is a
    token), or None for a decoder-only model. `separate` says that documents of a row are hidden from one another.
    `bytes` counts the UTF-8 bytes of the scored tokens, for bits per byte. `origins` names the documents in it, per
    row. `bookmark` is the place in the stream after this batch. `places`, [N] int64, tells which of the flattened
    labels count, once the batch was moved: a GPU that had to find them would keep the host waiting for their number.
    `reference`, [B,2] float32: where a row is a pair of answers, as documents 1 and 2, the log-probability that the
    base model gives to each; None: it is not known.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    segment_ids: Tensor
    separate: bool = False
    bidirectional: Tensor | None = None
    source_ids: Tensor | None = None
    source_mask: Tensor | None = None
    bytes: int = 0
    origins: tuple[Sequence[Origin], ...] = ()
    bookmark: dict[str, Any] = field(default_factory=dict)
    places: Tensor | None = None
    reference: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """As plain arrays to another process: torch would share the memory of each tensor with it."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        arrays = {name: value.numpy() for name, value in values.items() if isinstance(value, Tensor)}
        return _of_arrays, ({**values, **arrays},)

    @property
    def num_scored(self) -> int:
        """Number of labels that count."""
        return int((self.labels != IGNORE).sum())

    @property
    def num_scored_rows(self) -> int:
        """Number of rows in which any label counts."""
        return int((self.labels != IGNORE).any(-1).sum())

    @property
    def num_tokens(self) -> int:
        """Number of positions that are not padding, source included."""
        sources = 0 if self.source_mask is None else int(self.source_mask.sum())
        return int((self.segment_ids != 0).sum()) + sources

    @property
    def row_width(self) -> int:
        """Tokens of a row, source and padding included."""
        return self.input_ids.shape[1] + (0 if self.source_ids is None else self.source_ids.shape[1])

    def rows(self, start: int, stop: int) -> "Batch":
        """The rows from start up to stop, as a micro-batch; byte count and bookmark stay those of the whole."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[start:stop]

        return replace(
            self,
            input_ids=self.input_ids[start:stop],
            labels=self.labels[start:stop],
            positions=self.positions[start:stop],
            segment_ids=self.segment_ids[start:stop],
            bidirectional=cut(self.bidirectional),
            source_ids=cut(self.source_ids),
            source_mask=cut(self.source_mask),
            origins=self.origins[start:stop],
            places=None,
            reference=cut(self.reference),
        )

    def unscored(self) -> "Batch":
        """The first row with nothing to learn from it: for a rank that must compute although it has no rows left."""
        row = self.rows(0, 1)
        return replace(row, labels=torch.full_like(row.labels, IGNORE), origins=((),))

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; to a GPU it is on its way when this returns."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else self._moved(tensor, device)

        return replace(
            self,
            input_ids=self._moved(self.input_ids, device),
            labels=self._moved(self.labels, device),
            positions=self._moved(self.positions, device),
            segment_ids=self._moved(self.segment_ids, device),
            bidirectional=move(self.bidirectional),
            source_ids=move(self.source_ids),
            source_mask=move(self.source_mask),
            places=move(self.places if self.places is not None else scored_places(self.labels)),
            reference=move(self.reference),
        )

    @staticmethod
    def _moved(tensor: Tensor, device: torch.device) -> Tensor:
        # Only from pinned memory does a copy to a GPU not wait.
        pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
        return pinned.to(device, non_blocking=True)


def _of_arrays(values: dict[str, Any]) -> Batch:
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return Batch(**{**values, **tensors})


def scored_places(labels: Tensor) -> Tensor:
    """Which of the flattened labels count, [N] int64."""
    return labels.flatten().ne(IGNORE).nonzero().flatten()


class StreamOptions(TypedDict):
    """The shape of global batches, what keys their order, and which rows of them are this rank's: all if not said."""

    batch_tokens: int
    length: int
    seed: int
    rank: NotRequired[int]
    world_size: NotRequired[int]
