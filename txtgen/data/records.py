"""Blocks -> records: the bytes of a block as documents, pairs or conversations.

Text is UTF-8. Only a newline ends a line; a carriage return before it belongs to the line's end and is dropped, and
every other character is kept. What is blank is no record.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np

from txtgen.config.sources import (
    ChatSource,
    JsonlPairsSource,
    JsonlSource,
    ParallelSource,
    PreferenceSource,
    SourceConfig,
    TextSource,
    TsvSource,
)
from txtgen.config.tokenizer import CHAT_ROLES
from txtgen.data.blocks import Block, Unit
from txtgen.data.files import TextFile
from txtgen.data.types import (
    BadRecord,
    ChatRecord,
    Message,
    Origin,
    PairRecord,
    PreferenceRecord,
    Record,
    TextRecord,
)
from txtgen.errors import DataError

MAX_RECORD_BYTES = 64 * 1024 * 1024
"""A line of JSON or tab-separated values that is longer than this is a bad record."""

PIECE_CHARACTERS = 256 * 1024
"""A text in JSON that is longer than this becomes several records, cut at white space."""

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
            return _pair(line, target, origin, target_origin)
        return [] if not line or line.isspace() else _line_records(source, line, origin)

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


def _pair(source: str, target: str, origin: Origin, target_origin: Origin | None = None) -> list[Record]:
    """A pair, or nothing if both sides are blank."""
    no_source, no_target = not source or source.isspace(), not target or target.isspace()
    if no_source and no_target:
        return []
    if no_source:
        raise BadRecord("the source is empty, but its target is not", origin)
    if no_target:
        raise BadRecord("the target is empty, but its source is not", target_origin or origin)
    return [PairRecord(source, target, origin)]


def _line_records(
    source: JsonlSource | TsvSource | JsonlPairsSource | ChatSource | PreferenceSource, line: str, origin: Origin
) -> list[Record]:
    """The records of a line that is not blank."""
    match source:
        case TsvSource(source_column=source_column, target_column=target_column):
            columns = line.split("\t")
            if len(columns) <= max(source_column, target_column):
                wanted = f"columns {source_column} and {target_column} (from 0)"
                raise BadRecord(f"the line has {len(columns)} columns, {wanted} are asked for", origin)
            return _pair(columns[source_column], columns[target_column], origin)
        case JsonlSource(text_field=name):
            return list(_text_pieces(_string(_parse(line, origin), name, origin), origin))
        case JsonlPairsSource(source_field=names, target_field=name):
            value = _parse(line, origin)
            parts = [_string(value, part, origin) for part in ([names] if isinstance(names, str) else names)]
            return _pair("\n".join(part for part in parts if part), _string(value, name, origin), origin)
        case ChatSource(messages_field=name):
            return [ChatRecord(tuple(_messages(_parse(line, origin), name, origin)), origin)]
        case PreferenceSource():
            return [_preference(source, _parse(line, origin), origin)]
        case _:
            assert_never(source)


def _parse(line: str, origin: Origin) -> dict[str, Any]:
    """The JSON object that a line holds."""
    try:
        value = json.loads(line, object_pairs_hook=lambda pairs: _distinct(pairs, origin))
    except json.JSONDecodeError as error:
        near = line[max(0, error.pos - 10) : error.pos + 20]
        raise BadRecord(f"not valid JSON at column {error.pos + 1}, near {near!r}", origin) from error
    except RecursionError as error:
        raise BadRecord("the JSON is nested too deeply", origin) from error
    except ValueError as error:
        raise BadRecord("the JSON holds a number with too many digits", origin) from error
    if not isinstance(value, dict):
        raise BadRecord(f"a line must hold a JSON object, not {_kind(value)}", origin)
    return value


def _distinct(pairs: list[tuple[str, Any]], origin: Origin) -> dict[str, Any]:
    """A JSON object whose keys are all different."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise BadRecord(f"the key {next(n for n in names if names.count(n) > 1)!r} is given twice", origin)
    return value


def _string(value: dict[str, Any], name: str, origin: Origin) -> str:
    """The text in a field."""
    if name not in value:
        fields = ", ".join(repr(field) for field in list(value)[:8])
        raise BadRecord(f"there is no field {name!r}; there are {fields or 'none'}", origin)
    text = value[name]
    if not isinstance(text, str):
        raise BadRecord(f"the field {name!r} must be a string, not {_kind(text)}", origin)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"the field {name!r} holds half of a surrogate pair", origin) from error
    return text


def _messages(value: dict[str, Any], name: str, origin: Origin) -> Iterable[Message]:
    """The turns of a conversation."""
    if name not in value:
        fields = ", ".join(repr(field) for field in list(value)[:8])
        raise BadRecord(f"there is no field {name!r}; there are {fields or 'none'}", origin)
    messages = value[name]
    if not isinstance(messages, list):
        raise BadRecord(f"the field {name!r} must be a list of messages, not {_kind(messages)}", origin)
    if not messages:
        raise BadRecord(f"the list {name!r} holds no message", origin)
    for message in messages:
        if not isinstance(message, dict):
            raise BadRecord(f"a message must be an object with role and content, not {_kind(message)}", origin)
        role = _string(message, "role", origin)
        if role not in CHAT_ROLES:
            raise BadRecord(f"unknown role {role!r}; the roles are {', '.join(CHAT_ROLES)}", origin)
        yield Message(role, _string(message, "content", origin))


def _preference(source: PreferenceSource, value: dict[str, Any], origin: Origin) -> PreferenceRecord:
    """A prompt and two answers that differ."""
    chosen, rejected = (_string(value, name, origin) for name in (source.chosen_field, source.rejected_field))
    for name, answer in ((source.chosen_field, chosen), (source.rejected_field, rejected)):
        if not answer or answer.isspace():
            raise BadRecord(f"the answer {name!r} is empty", origin)
    if chosen == rejected:
        raise BadRecord(f"{source.chosen_field!r} and {source.rejected_field!r} are the same answer", origin)
    name = source.prompt_field
    if name not in value and source.messages_field in value:
        name = source.messages_field
    if isinstance(value.get(name), list):
        messages = tuple(_messages(value, name, origin))
        if messages[-1].role == "assistant":
            raise BadRecord("the prompt ends with a turn of the assistant, which nothing can answer", origin)
        return PreferenceRecord(messages, chosen, rejected, origin)
    prompt = _string(value, name, origin)
    if not prompt or prompt.isspace():
        raise BadRecord(f"the prompt {name!r} is empty", origin)
    return PreferenceRecord(prompt, chosen, rejected, origin)


def _kind(value: object) -> str:
    """What JSON calls a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def _text_pieces(text: str, origin: Origin) -> Iterator[TextRecord]:
    """A text as one record, or as several if it is very long; none if it is blank."""
    start = len(text) if text.isspace() else 0
    while start < len(text):
        stop = start + PIECE_CHARACTERS
        if stop < len(text):
            after_line = text.rfind("\n", stop - 4096, stop) + 1
            before_word = text.rfind(" ", stop - 4096, stop)
            stop = after_line or (before_word if before_word > 0 else stop)
        stop = min(stop, len(text))
        yield TextRecord(text[start:stop], origin, start == 0, stop == len(text))
        start = stop
