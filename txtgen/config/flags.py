"""Configs made from command-line flags: whatever is wrong is a usage error."""

from collections.abc import Sequence
from typing import Any, TypeVar

from txtgen.config.base import Config
from txtgen.config.loader import config_from_tree
from txtgen.errors import ConfigError, UsageError

Flags = TypeVar("Flags", bound=Config)


def from_flags(kind: type[Flags], values: dict[str, Any], settings: Sequence[str] | None = None) -> Flags:
    """A config from the values of flags, and --set options on top.

    Raises:
        UsageError: a value is out of range; all such flags are named.
    """
    try:
        return config_from_tree(kind, values, settings or (), source="the command line")
    except ConfigError as error:
        raise UsageError(error.what, error.where, error.fix or "see --help") from error
