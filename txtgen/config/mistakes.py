"""A user's mistakes in a configuration: where each one stands, and one error that tells them all."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from txtgen.errors import ConfigError

KeyPath = tuple[str, ...]
"""The way to a value from the top: keys, and indices of lists as decimal text."""

MAX_LISTED = 50
"""Mistakes told in full; the others are only counted."""

LARGE_INT = 2**63
"""Whole numbers from here on fit nowhere."""


class Place(NamedTuple):
    """Where something was written: line and column of a file, from 1; or only a source, such as a flag."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        """``source:line:column``, or just the source."""
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Mistake(NamedTuple):
    """One thing that is wrong. The hint says what to do about it, where that can be known."""

    place: Place
    key: KeyPath
    complaint: str
    hint: str = ""

    def __str__(self) -> str:
        """``file:line:column: dotted.key: complaint; hint``."""
        head = [str(self.place)] if self.place.source else []
        tail = f"{self.complaint}; {self.hint}" if self.hint else self.complaint
        return ": ".join([*head, *([dotted(self.key)] if self.key else []), tail])


def config_error(mistakes: Iterable[Mistake], source: str) -> ConfigError:
    """One error that tells all mistakes (at least one), in the order of their lines; flags come last."""
    ordered = sorted(mistakes, key=lambda mistake: (not mistake.place.line, mistake.place[1:]))
    if len(ordered) == 1:
        only = ordered[0]
        what = f"{dotted(only.key)}: {only.complaint}" if only.key else only.complaint
        return ConfigError(what, str(only.place), only.hint)
    lines = [f"{len(ordered)} mistakes in {source}:", *map(str, ordered[:MAX_LISTED])]
    if len(ordered) > MAX_LISTED:
        lines.append(f"and {len(ordered) - MAX_LISTED} more")
    return ConfigError("\n  ".join(lines))


def place_of(path: KeyPath, places: Mapping[KeyPath, Place], source: str) -> Place:
    """Where a value was written, or the nearest section around it if it was not written at all."""
    for length in range(len(path), -1, -1):
        if path[:length] in places:
            return places[path[:length]]
    return Place(source)


def dotted(path: KeyPath) -> str:
    """A path as ``a.b.0``."""
    return ".".join(printable(key) for key in path)


def printable(text: str, limit: int = 80) -> str:
    """Text that cannot upset a terminal: what does not print is escaped, what is too long is cut."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)


def shown(value: Any) -> str:
    """A value as an error names it, short and without control characters."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            quoted = repr(value[:60])
            return quoted if len(value) <= 60 else f"{quoted} and {len(value) - 60} more characters"
        case int() if abs(value) >= LARGE_INT:
            return f"a number of {value.bit_length()} bits"
        case float() if not math.isfinite(value):
            return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
        case int() | float():
            return repr(value)
        case [] | ():
            return "an empty list"
        case list() | tuple() if len(value) <= 3 and all(isinstance(item, str | int | float) for item in value):
            return f"[{', '.join(shown(item) for item in value)}]"
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return "a section" if value else "an empty section"
        case _:
            return f"a Python {type(value).__name__}"


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """A hint that names the known word nearest to this one; empty if none is near."""
    near = get_close_matches(word, known, n=1) if isinstance(word, str) and len(word) <= 100 else []
    return f"did you mean {near[0]}?" if near else ""
