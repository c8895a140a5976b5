"""Checkpoints that are made of other checkpoints: where they may be written, and what they say of their origin."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import txtgen
from txtgen.checkpoint import Checkpoint
from txtgen.errors import BusyError


def require_free(output: Path, overwrite: bool) -> None:
    """Refuse a file that exists, unless it is to be overwritten.

    Raises:
        BusyError: it exists.
    """
    if output.exists() and not overwrite:
        raise BusyError("the file exists already", str(output), "choose another name, or replace it with --overwrite")


def descended(last: Checkpoint, command: str, parents: Sequence[str]) -> dict[str, Any]:
    """The lineage of what a command makes of checkpoints with these fingerprints, the last of which is given."""
    return {
        **last.lineage,
        "command": command,
        "parent": parents[-1],
        "ancestors": [*last.lineage.get("ancestors", ()), *parents],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "txtgen": txtgen.__version__,
    }
