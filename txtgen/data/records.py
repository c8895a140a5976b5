"""Blocks -> records: the bytes of a block as documents, pairs or conversations.

Text is UTF-8. Only a newline ends a line; a carriage return before it belongs to the line's end and is dropped, and
every other character is kept. What is blank is no record.
"""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import assert_never

import numpy as np

from txtgen.config.sources import ParallelSource, SourceConfig, TextSource
from txtgen.data.blocks import Block, Unit
from txtgen.data.files import TextFile
from txtgen.data.lines import line_records, pair
from txtgen.data.types import BadRecord, Origin, Origins, Record, TextRecords
from txtgen.errors import DataError

MAX_RECORD_BYTES = 64 * 1024 * 1024
"""A line of JSON or tab-separated values that is longer than this is a bad record."""

_PARAGRAPH_BREAK = re.compile(rb"\n(?:[ \t\r]*\n)+")
_BLANK_LINES = re.compile(rb"(?:[ \t\r]*\n)+")


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the units of a block begin and end, in bytes of the block. Kept small: a block may have many units."""

    starts: "array[int]"
    stops: "array[int]"

    def __len__(self) -> int:
        """Number of units."""
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class BlockUnits:
    """The units of one block, a line or a document each, made into records only when asked for."""

    source: SourceConfig
    number: int
    files: Sequence[TextFile]
    block: Block
    data: bytes
    spans: Spans
    target_data: bytes
    target_spans: Spans

    def __len__(self) -> int:
        """Number of units, blank ones included."""
        return len(self.spans)

    def offset(self, unit: int) -> int:
        """Where a unit begins in its file."""
        return self.block.start + self.spans.starts[unit]

    def size(self, unit: int) -> int:
        """Length of a unit in bytes, of a pair's source only."""
        return self.spans.stops[unit] - self.spans.starts[unit]

    def is_blank(self, unit: int) -> bool:
        """Whether there is nothing but white space in a unit, so that it gives no record."""
        parts = [self.data[self.spans.starts[unit] : self.spans.stops[unit]]]
        if self.source.kind == "parallel":
            parts.append(self.target_data[self.target_spans.starts[unit] : self.target_spans.stops[unit]])
        return not any(part.strip() for part in parts)

    def records(self, unit: int) -> list[Record]:
        """The records of one unit: none if it is blank, several if it is a long text in JSON.

        Raises:
            BadRecord: the unit is not what its source should hold.
        """
        source = self.source
        if source.kind == "text":
            text = self.document(unit)
            return [*self.documents([unit], [text])] if text else []
        line, origin = self._decoded(unit).removesuffix("\r"), self._origin(unit)
        if source.kind == "parallel":
            start, stop = self.target_spans.starts[unit], self.target_spans.stops[unit]
            target_origin = Origin(self.number, self.files[1].path, self.block.target_start + start)
            try:
                target = self.target_data[start:stop].decode().removesuffix("\r")
            except UnicodeDecodeError as error:
                raise _not_utf8(error, target_origin) from error
            return pair(line, target, origin, target_origin)
        return [] if not line or line.isspace() else line_records(source, line, origin)

    def document(self, unit: int) -> str:
        """A document of plain text, or a piece of one at the borders of the block; "" if it is blank.

        Raises:
            BadRecord: it is not UTF-8.
        """
        text = self._decoded(unit)
        if "\r" in text:
            text = text.replace("\r\n", "\n")
            # The newline that ends a line or paragraph is not part of it, so neither is what was before it.
            text = text.removesuffix("\r") if unit_of(self.source) in ("line", "paragraph") else text
        return "" if text.isspace() else text

    def documents(self, units: Sequence[int], texts: list[str]) -> TextRecords:
        """The records of units of plain text, given what `document` makes of each."""
        starts, block, last = self.spans.starts, self.block, len(self.spans) - 1
        whole = unit_of(self.source) != "continuous"
        return TextRecords(
            texts,
            Origins([(self.number, self.files[block.file].path)] * len(units), [*map(self.offset, units)]),
            begins=[whole and (block.begins or starts[unit] > 0) for unit in units],
            ends=[whole and (block.ends or unit < last) for unit in units],
        )

    def _origin(self, unit: int) -> Origin:
        return Origin(self.number, self.files[self.block.file].path, self.offset(unit))

    def _decoded(self, unit: int) -> str:
        start, stop = self.spans.starts[unit], self.spans.stops[unit]
        if stop > MAX_RECORD_BYTES:
            raise BadRecord(f"the line is longer than {MAX_RECORD_BYTES // 1024**2} MiB", self._origin(unit))
        try:
            return self.data[start:stop].decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(error, self._origin(unit)) from error


def unit_of(source: SourceConfig) -> Unit:
    """What a block of a source is made of."""
    return source.documents if isinstance(source, TextSource) else "record"


def read_units(source: SourceConfig, number: int, files: Sequence[TextFile], block: Block) -> BlockUnits:
    """Read one block of a source. Of a longer line than MAX_RECORD_BYTES, only that much is read.

    Raises:
        DataError: the file cannot be read any more.
    """
    data = files[block.file].read(block.start, min(block.stop - block.start, MAX_RECORD_BYTES + 1))
    target_data, target_spans = b"", _line_spans(b"")
    spans = _unit_spans(data, unit_of(source), block.ends)
    if isinstance(source, ParallelSource):
        target_size = block.target_stop - block.target_start
        if max(target_size, block.stop - block.start) > MAX_RECORD_BYTES:
            where = f"{files[0].path} at byte {block.start}, {files[1].path} at byte {block.target_start}"
            raise DataError(
                "lines of these parallel files are far too long", where, "are they text, a sentence a line?"
            )
        target_data = files[1].read(block.target_start, target_size)
        target_spans = _line_spans(target_data)
    return BlockUnits(source, number, files, block, data, spans, target_data, target_spans)


def _unit_spans(data: bytes, unit: Unit, ends: bool) -> Spans:
    match unit:
        case "file" | "continuous":
            return Spans(array("q", [0]), array("q", [len(data)]))
        case "paragraph":
            return _paragraph_spans(data, ends)
        case "line" | "record":
            return _line_spans(data)
        case _:
            assert_never(unit)


def _line_spans(data: bytes) -> Spans:
    """The lines, without their newline. Only a newline ends a line."""
    newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")).astype(np.int64)
    starts, stops = array("q", [0]), array("q")
    starts.frombytes((newlines + 1).tobytes())
    stops.frombytes(newlines.tobytes())
    if starts[-1] == len(data):
        starts.pop()
    else:
        stops.append(len(data))
    return Spans(starts, stops)


def _paragraph_spans(data: bytes, ends: bool) -> Spans:
    """The runs of lines between blank lines, without the newline that ends them.

    `ends`: the last one ends with the data, instead of going on in the next block.
    """
    filled = data.rstrip(b" \t\r")
    end = len(filled) - 1 if ends and filled.endswith(b"\n") else len(data)
    places = [0, *chain.from_iterable(found.span() for found in _PARAGRAPH_BREAK.finditer(data)), end]
    if blank := _BLANK_LINES.match(data, 0, places[1]):
        places[0] = blank.end()
    starts, stops = np.array(places, np.int64).reshape(-1, 2).T
    filled_ones = starts < stops
    return Spans(array("q", starts[filled_ones].tobytes()), array("q", stops[filled_ones].tobytes()))


def _not_utf8(error: UnicodeDecodeError, origin: Origin) -> BadRecord:
    return BadRecord(f"not UTF-8: byte 0x{error.object[error.start]:02x}", origin, error.start)
