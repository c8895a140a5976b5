"""YAML as people mean it: a small, safe part of the language, read with the place of every value.

Plain scalars follow the core rules of YAML 1.2, so `3e-4` is a number and `no` is text. One deviation: a
whole number with a leading zero, such as `010`, is text, because versions of YAML disagree on its value.
Anchors, aliases, tags, duplicate keys, keys that are not text and further documents are mistakes; size and
depth are bounded.
"""

import codecs
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from txtgen.config.mistakes import KeyPath, Mistake, Place, config_error, printable, shown
from txtgen.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 20_000

_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"), None)
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MAX_DIGITS = 40
"""A longer whole number is as good as infinite, and would take long to convert."""

_PLAIN_WORDS = (
    (r"found character '\\t'", "a tab cannot begin a value", "indent with spaces"),
    (r"found character '(.)'", r"a value cannot begin with \1", "put the text in quotes"),
    (
        r"mapping values",
        "a colon stands where no key can be",
        "check the indentation; quote text with ': ' in it",
    ),
    (r"could not find expected ':'", "a key has no colon after it", "write key: value"),
    (r"found unexpected end of stream", "a quoted text is never closed", "add the closing quote"),
    (r"expected ',' or '[]}]'", "brackets are not closed, or lack a comma", "check the brackets"),
    (r"expected the node content", "a value is missing here", "check brackets and commas"),
    (r"expected '<document start>'", "text stands after the end of the configuration", "remove it"),
    (r"expected <block end>", "the indentation does not fit the lines above", "align the keys of a section"),
    (r"expected alphabetic or numeric", "text cannot begin with & or *", "put the text in quotes"),
)


@dataclass(frozen=True, slots=True)
class Document:
    """A mapping of plain dicts, lists and scalars, and where each of its values was written."""

    tree: dict[str, Any]
    places: dict[KeyPath, Place]


def scalar(text: str) -> str | int | float | bool | None:
    """What an unquoted scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            return -math.inf if text.startswith("-") else math.inf
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def read_yaml_file(path: Path) -> Document:
    """Read a configuration file.

    Raises:
        ConfigError: the file cannot be read, is not text, or is not the YAML that is understood here.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("there is no such configuration file", str(path), "check the path") from None
    except IsADirectoryError:
        raise ConfigError("a folder was given as the configuration", str(path), "name a YAML file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the path is not valid"
        raise ConfigError(f"the configuration cannot be read: {reason}", str(path), "check the path") from None
    return read_yaml(data, str(path))


def read_yaml(data: bytes | str, source: str) -> Document:
    """Read one YAML document whose top is a mapping. `source` names it in errors.

    Raises:
        ConfigError: one error for all mistakes that do not end the reading, or for the one that does.
    """
    parser = _Reader(_text(data, source), source)
    tree = parser.document()
    if not isinstance(tree, dict):
        got = "nothing" if tree is None else shown(tree)
        parser.complain(Place(source, 1, 1), (), f"expected keys and values at the top, got {got}")
    if parser.mistakes:
        raise config_error(parser.mistakes, source)
    return Document(tree, parser.places)


def read_value(text: str, source: str) -> Any:
    """A value from the command line: a list, mapping or quoted text in YAML's flow style, else one scalar.

    Raises:
        ConfigError: brackets or quotes are open, or the value is not the YAML that is understood here.
    """
    if not text.strip().startswith(("[", "{", '"', "'")):
        return scalar(text.strip())
    parser = _Reader(_text(text, source), source, numbered=False)
    value = parser.document()
    if parser.mistakes:
        raise config_error(parser.mistakes, source)
    return value


def _text(data: bytes | str, source: str) -> str:
    """The text of a file, after the checks that need no parser."""
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    if data.startswith((b"PK\x03\x04", b"\x80")):
        raise ConfigError("this is a checkpoint or an archive, not YAML", source, "name a YAML file")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError("the text is UTF-16", source, "save it as UTF-8")
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the configuration is larger than {MAX_BYTES:,} bytes", source, "name a YAML file")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place_at(data[: error.start].decode("utf-8"), source)
        what = f"byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8"
        raise ConfigError(what, str(place), "save the file as UTF-8") from None
    if odd := yaml.reader.Reader.NON_PRINTABLE.search(text):
        what = f"the character U+{ord(odd.group()):04X} cannot stand in a configuration"
        raise ConfigError(what, str(_place_at(text[: odd.start()], source)), "remove it; is this a text file?")
    return text


def _place_at(before: str, source: str) -> Place:
    """The place right after some text."""
    line = before.count("\n") + 1
    return Place(source, line, len(before) - (before.rfind("\n") + 1) + 1)


class _Reader:
    """Builds plain values from the parser's events, so that bounds hold before anything is built."""

    def __init__(self, text: str, source: str, numbered: bool = True) -> None:
        self.source, self.numbered = source, numbered
        self.events = yaml.parse(text, Loader=yaml.SafeLoader)
        self.num_values = 0
        self.mistakes: list[Mistake] = []
        self.last = Place(source, 1, 1) if numbered else Place(source)
        self.places: dict[KeyPath, Place] = {(): self.last}

    def complain(self, place: Place, path: KeyPath, complaint: str, hint: str = "") -> None:
        """Note a mistake that need not end the reading."""
        self.mistakes.append(Mistake(place, path, complaint, hint))

    def document(self) -> Any:
        """The value of the only document; None if there is none."""
        value = None
        self.next()  # the start of the stream
        event = self.next()
        if isinstance(event, yaml.DocumentStartEvent):
            value = self.value(self.next(), (), 0)
            self.next()  # the end of the document
            event = self.next()
        if not isinstance(event, yaml.StreamEndEvent):
            self.complain(self.place(event.start_mark), (), "a second document starts here", "keep one; remove the ---")
        return value

    def value(self, event: yaml.Event, path: KeyPath, depth: int) -> Any:
        """The value that begins with an event, whose children are read on the way."""
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            self.stop(event, path, f"the configuration holds more than {MAX_VALUES:,} values")
        self.check_node(event, path)
        match event:
            case yaml.ScalarEvent():
                return _joined(event.value) if event.style else scalar(event.value)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                if depth == MAX_DEPTH:
                    self.stop(event, path, f"values are nested deeper than {MAX_DEPTH} levels")
                sequence = isinstance(event, yaml.SequenceStartEvent)
                return self.items(path, depth + 1) if sequence else self.entries(path, depth + 1)
            case _:
                return None  # an alias, complained of already

    def items(self, path: KeyPath, depth: int) -> list[Any]:
        """The rest of a list."""
        found: list[Any] = []
        while not isinstance(event := self.next(), yaml.SequenceEndEvent):
            here = (*path, str(len(found)))
            self.places[here] = self.place(event.start_mark)
            found.append(self.value(event, here, depth))
        return found

    def entries(self, path: KeyPath, depth: int) -> dict[str, Any]:
        """The rest of a mapping."""
        found: dict[str, Any] = {}
        while not isinstance(event := self.next(), yaml.MappingEndEvent):
            place, key = self.place(event.start_mark), self.value(event, path, depth)
            if not isinstance(key, str):
                self.complain(place, path, f"a key must be text, got {shown(key)}", "put it in quotes")
                key = str(len(found))
            here = (*path, key)
            if key in found:
                self.complain(
                    place, here, f"the key is given twice, first in line {self.places[here].line}", "keep one"
                )
            self.places.setdefault(here, place)
            found[key] = self.value(self.next(), here, depth)
        return found

    def check_node(self, event: yaml.Event, path: KeyPath) -> None:
        """Refuse what lets a value be more than it looks."""
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            mark = f"{'*' if isinstance(event, yaml.AliasEvent) else '&'}{printable(event.anchor)}"
            what = f"anchors and aliases are not supported, got {mark}"
            self.complain(self.place(event.start_mark), path, what, "write the value out, or put the text in quotes")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            tag = printable(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self.complain(self.place(event.start_mark), path, f"tags are not supported, got {tag}", "remove the tag")

    def next(self) -> yaml.Event:
        """The next event of the parser, its errors in plain words."""
        try:
            event = next(self.events)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self.place(mark)
            what, hint = _in_plain_words(error.problem or error.context or "no reason given")
        except (ValueError, OverflowError):  # an escape beyond Unicode
            place, what, hint = self.last, "an escape names no character", "escapes end at \\U0010FFFF"
        else:
            self.last = self.place(event.start_mark)
            return event
        raise config_error([*self.mistakes, Mistake(place, (), what, hint)], self.source)

    def stop(self, event: yaml.Event, path: KeyPath, complaint: str) -> NoReturn:
        """Raise at once what makes further reading too dear."""
        raise config_error([*self.mistakes, Mistake(self.place(event.start_mark), path, complaint)], self.source)

    def place(self, mark: Any) -> Place:
        """The place of one of the parser's marks, which count from 0."""
        if mark is None or not self.numbered:
            return self.last
        return Place(self.source, mark.line + 1, mark.column + 1)


def _in_plain_words(problem: str) -> tuple[str, str]:
    """A complaint of the parser, and a hint."""
    for pattern, words, hint in _PLAIN_WORDS:
        if found := re.match(pattern, problem):
            return found.expand(words), hint
    return f"this is not YAML: {printable(problem)}", ""


def _joined(text: str) -> str:
    r"""Quoted text in which pairs of escapes like `\ud83d\ude00`, as JSON writes them, are one character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


class _Dumper(yaml.SafeDumper):
    """Writes what both this reader and other YAML readers take for the same values."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Always: equal parts are written out."""
        return True


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Line breaks are escaped; whatever an old or new YAML reader takes for something else is quoted."""
    odd = any(char in text for char in "\n\r\t\x85\u2028\u2029")
    style = '"' if odd else "'" if not isinstance(scalar(text), str) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Plain dicts, lists and scalars as YAML that reads back equal. Text must hold no lone surrogate."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
