"""How a dry run is shown: section by section as they become known, or as one JSON object."""

from collections.abc import Iterable
from typing import Any

from txtgen.commands.running.outlook import Section
from txtgen.commands.showing.console import duration, table
from txtgen.commands.showing.formatting import written
from txtgen.commands.showing.output import write_json


def show_outlook(sections: Iterable[Section], as_json: bool) -> int:
    """Show what a run would cost; where there are no sections, another rank has them. Returns the exit code."""
    if as_json:
        if found := {section.title: section.facts for section in sections}:
            write_json(found)
        return 0
    for number, section in enumerate(sections):
        rows: dict[str, object] = {f"  {_named(key)}": _shown(key, value) for key, value in section.facts.items()}
        table("\n" * (number > 0) + section.title, rows)
    return 0


def _named(key: str) -> str:
    for unit in ("_bytes", "_seconds", "_share"):
        key = key.removesuffix(unit)
    return key.replace("_", " ")


def _shown(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if key.endswith("_bytes"):
        return written(value, "bytes")
    if key.endswith("_share"):
        return written(value, "share")
    if key.endswith("_seconds"):
        return duration(value) if value >= 60 else f"{written(value, 'plain', 3)} s"
    return f"{value:,}" if isinstance(value, int) else written(value, "plain")
