"""A line of a file as records: JSON, tab-separated values, and the pairs, conversations and preferences in them."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, assert_never

from txtgen.config.sources import ChatSource, JsonlPairsSource, JsonlSource, PreferenceSource, TsvSource
from txtgen.config.tokenizer import CHAT_ROLES
from txtgen.data.types import BadRecord, ChatRecord, Message, Origin, PairRecord, PreferenceRecord, Record, TextRecord

PIECE_CHARACTERS = 256 * 1024
"""A text in JSON that is longer than this becomes several records, cut at white space."""


def pair(source: str, target: str, origin: Origin, target_origin: Origin | None = None) -> list[Record]:
    """A pair, or nothing if both sides are blank."""
    no_source, no_target = not source or source.isspace(), not target or target.isspace()
    if no_source and no_target:
        return []
    if no_source:
        raise BadRecord("the source is empty, but its target is not", origin)
    if no_target:
        raise BadRecord("the target is empty, but its source is not", target_origin or origin)
    return [PairRecord(source, target, origin)]


def line_records(
    source: JsonlSource | TsvSource | JsonlPairsSource | ChatSource | PreferenceSource, line: str, origin: Origin
) -> list[Record]:
    """The records of a line that is not blank."""
    match source:
        case TsvSource(source_column=source_column, target_column=target_column):
            columns = line.split("\t")
            if len(columns) <= max(source_column, target_column):
                wanted = f"columns {source_column} and {target_column} (from 0)"
                raise BadRecord(f"the line has {len(columns)} columns, {wanted} are asked for", origin)
            return pair(columns[source_column], columns[target_column], origin)
        case JsonlSource(text_field=name):
            return list(_text_pieces(_string(_parse(line, origin), name, origin), origin))
        case JsonlPairsSource(source_field=names, target_field=name):
            value = _parse(line, origin)
            parts = [_string(value, part, origin) for part in ([names] if isinstance(names, str) else names)]
            return pair("\n".join(part for part in parts if part), _string(value, name, origin), origin)
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


def _field(value: dict[str, Any], name: str, origin: Origin) -> Any:
    """What is in a field, which must be there."""
    if name not in value:
        fields = ", ".join(repr(field) for field in list(value)[:8])
        raise BadRecord(f"there is no field {name!r}; there are {fields or 'none'}", origin)
    return value[name]


def _string(value: dict[str, Any], name: str, origin: Origin) -> str:
    """The text in a field."""
    text = _field(value, name, origin)
    if not isinstance(text, str):
        raise BadRecord(f"the field {name!r} must be a string, not {_kind(text)}", origin)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"the field {name!r} holds half of a surrogate pair", origin) from error
    return text


def _messages(value: dict[str, Any], name: str, origin: Origin) -> Iterable[Message]:
    """The turns of a conversation."""
    messages = _field(value, name, origin)
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
