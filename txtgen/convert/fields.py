"""Reading a config.json that somebody else wrote."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from txtgen.errors import CheckpointError
from txtgen.tokenizer.huggingface_files import FolderFiles
from txtgen.tokenizer.names import parse_object


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a Hugging Face folder.

    Raises:
        CheckpointError: there is no such file, it is too large, or it holds no JSON object.
        ResourceError: it may not be read.
    """
    return parse_object(FolderFiles(path.parent).read(path.name), str(path))


class Fields:
    """Values of a config.json by key, each of the type that is asked for. A null is as good as a missing key."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def __contains__(self, key: str) -> bool:
        """Whether the key has a value."""
        return self.values.get(key) is not None

    def section(self, key: str) -> "Fields":
        """A mapping within the mapping; empty if it is missing.

        Raises:
            CheckpointError: it is none.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "a mapping")
        return Fields(value or {}, f"{self.where}: {key}")

    def count(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """A whole number from 1 to `most`.

        Raises:
            CheckpointError: it is none, or it is missing and has no default.
        """
        value = self._value(key, default)
        if type(value) is not int or not 0 < value <= most:
            raise self.wrong(key, f"a whole number from 1 to {most:,}")
        return value

    def layers(self, key: str, default: int | None = None) -> int:
        """A number of layers: small enough that a list of them is harmless.

        Raises:
            CheckpointError: it is none, or it is missing and has no default.
        """
        return self.count(key, default, most=10_000)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number.

        Raises:
            CheckpointError: it is none, or it is missing and has no default.
        """
        value = self._value(key, default)
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise self.wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            CheckpointError: it is neither.
        """
        value = self._value(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def word(self, key: str, default: str) -> str:
        """A text.

        Raises:
            CheckpointError: it is none.
        """
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def words(self, key: str) -> list[str]:
        """A list of texts; empty if it is missing.

        Raises:
            CheckpointError: it is none.
        """
        value = self._value(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of texts")
        return value

    def ids(self, key: str) -> list[int]:
        """Token ids: one, or a list; empty if it is missing. Whether there are such tokens is not asked.

        Raises:
            CheckpointError: it is something else.
        """
        value = self._value(key, [])
        found = value if isinstance(value, list) else [value]
        if not all(type(item) is int for item in found):
            raise self.wrong(key, "a token id, or a list of them")
        return found

    def only(self, key: str, allowed: Any) -> None:
        """Refuse a model that asks for something else than what is allowed, which a missing key stands for.

        Raises:
            CheckpointError: it asks for something else.
        """
        value = self.values.get(key)
        if value is not None and value != allowed:
            raise CheckpointError(
                f"{key} is {_shown(value)}, which txtgen does not have", self.where, f"only {_shown(allowed)} is known"
            )

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            raise CheckpointError(f"{key} is missing", self.where, "use the config.json of the model")
        return default if value is None else value

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """The error for a value that is not what is expected."""
        return CheckpointError(f"{key} is {_shown(self.values.get(key))}", self.where, f"it must be {expected}")


def _shown(value: Any) -> str:
    """A value as JSON, not endlessly long."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
