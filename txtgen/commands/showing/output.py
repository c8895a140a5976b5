"""Results on stdout. Imports nothing heavy, so that showing a config stays quick."""

import errno
import json
import os
import sys
from typing import Any

from txtgen.errors import ResourceError, safe_text


def write_result(text: str, end: str = "\n") -> None:
    """Write a result to stdout: escaped on a terminal, exact when piped."""
    write_exact((safe_text(text) if sys.stdout.isatty() else text) + end)


def write_json(value: Any) -> None:
    """Write a result as JSON on one line."""
    write_result(json.dumps(value))


def write_exact(text: str) -> None:
    """Write to stdout at once.

    Raises:
        SystemExit: with 0, if the reader went away, as `head` does when it has enough: nothing is wrong. A broken
            pipe must not leave the command, since typer would make it exit code 1.
        ResourceError: what stdout leads to takes no more, as a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        # Windows knows no broken pipes.
        if isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL):
            raise SystemExit(0) from None
        what = f"cannot write the results: {error.strerror or error}"
        raise ResourceError(what, "standard output", "make room, or send them elsewhere") from error
