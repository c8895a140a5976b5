"""What is done about a model while torch is imported, which takes longer than all else before a first token."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from txtgen.archive import verify_ahead
from txtgen.commands.finding import find_model
from txtgen.errors import TxtgenError


@contextmanager
def verifying(model: str | None, runs_path: str) -> Iterator[None]:
    """Within it a command is imported, and torch with it; meanwhile the model's file is read and verified.

    What cannot be found or read is left to whoever loads it. The garbage collector rests: it would look through what is
    imported over and over, and all of it stays.
    """
    if "torch" in sys.modules:
        yield
        return
    with suppress(TxtgenError, OSError):
        verify_ahead(find_model(model, runs_path))
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
