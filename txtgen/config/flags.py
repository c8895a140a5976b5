"""Configs made from command-line flags: a wrong value is a usage error that names the flag."""

from typing import Any, TypeVar

from pydantic import ValidationError

from txtgen.config.base import Config
from txtgen.errors import UsageError

Flags = TypeVar("Flags", bound=Config)


def from_flags(cls: type[Flags], **values: Any) -> Flags:
    """A config from the values of flags.

    Raises:
        UsageError: a value is out of range; all such flags are named.
    """
    try:
        return cls(**values)
    except ValidationError as error:
        complaints = [
            f"--{'-'.join(str(part).replace('_', '-') for part in fault['loc']) or 'flags'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        raise UsageError("; ".join(complaints), "", "see --help") from error
