"""Blocks -> records: the bytes of a block as documents, pairs or conversations.

Text is UTF-8. Only a newline ends a line; a carriage return before it belongs to the line's end and is dropped, and
every other character is kept. What is blank is no record.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from txtgen.config.sources import ParallelSource, SourceConfig, TextSource
from txtgen.data.blocks import Block, Unit
from txtgen.data.files import TextFile
from txtgen.data.lines import line_records, pair
from txtgen.data.types import BadRecord, Origin, Record, TextRecord
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
        start, stop = self.spans.starts[unit], self.spans.stops[unit]
        source = self.source
        if start == stop and source.kind != "parallel":
            return []
        origin = Origin(self.number, self.files[self.block.file].path, self.block.start + start)
        if stop > MAX_RECORD_BYTES:
            raise BadRecord(f"the line is longer than {MAX_RECORD_BYTES // 1024**2} MiB", origin)
        text = _decode(self.data[start:stop], origin)
        if source.kind == "text":
            return self._document(text, unit, origin, source.documents)
        line = text.removesuffix("\r")
        if source.kind == "parallel":
            start, stop = self.target_spans.starts[unit], self.target_spans.stops[unit]
            target_origin = Origin(self.number, self.files[1].path, self.block.target_start + start)
            target = _decode(self.target_data[start:stop], target_origin).removesuffix("\r")
            return pair(line, target, origin, target_origin)
        return [] if not line or line.isspace() else line_records(source, line, origin)

    def _document(self, text: str, unit: int, origin: Origin, documents: str) -> list[Record]:
        """A document of plain text, or a piece of one at the borders of the block."""
        if "\r" in text:
            text = text.replace("\r\n", "\n")
            # The newline that ends a line or paragraph is not part of it, so neither is what was before it.
            text = text.removesuffix("\r") if documents in ("line", "paragraph") else text
        if not text or text.isspace():
            return []
        begins = documents != "continuous" and (self.block.begins or self.spans.starts[unit] > 0)
        ends = documents != "continuous" and (unit + 1 < len(self.spans) or self.block.ends)
        return [TextRecord(text, origin, begins, ends)]


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
    starts, stops = array("q"), array("q")
    start = 0
    for stop, following in _breaks(data, ends):
        blank = _BLANK_LINES.match(data, start, stop)
        begin = blank.end() if blank else start
        if begin < stop:
            starts.append(begin)
            stops.append(stop)
        start = following
    return Spans(starts, stops)


def _breaks(data: bytes, ends: bool) -> Iterator[tuple[int, int]]:
    """Where paragraphs end and the next begin; the end of the data is the last."""
    for found in _PARAGRAPH_BREAK.finditer(data):
        yield found.start(), found.end()
    filled = data.rstrip(b" \t\r")
    yield len(filled) - 1 if ends and filled.endswith(b"\n") else len(data), len(data)


def _decode(raw: bytes, origin: Origin) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8: byte 0x{raw[error.start]:02x}", origin, error.start) from error
