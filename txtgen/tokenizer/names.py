"""How a tokenizer's special and control tokens are spelled, and the small JSON files that say so."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from txtgen.errors import CheckpointError

NAMES_FILE = "special_tokens_map.json"
"""The file of the names, in the form that Hugging Face gives it."""

MAX_JSON_BYTES = 128 * 1024 * 1024
"""Far above any real tokenizer's file; a larger one is refused before it is read as JSON."""

ROLES = ("pad", "unk", "bos", "eos")
"""The special tokens, as they are called in `SpecialNames`, in `Special` and, with _token, in JSON."""

_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class SpecialNames:
    """How the special tokens are spelled, None for one that is missing; and the control symbols."""

    pad: str | None = None
    unk: str | None = None
    bos: str | None = None
    eos: str | None = None
    control: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any], where: str) -> "SpecialNames":
        """The names in a mapping such as that of special_tokens_map.json or tokenizer_config.json.

        Raises:
            CheckpointError: one of them is no text.
        """
        control: list[str] = []
        for key in _LISTS:
            listed = content.get(key) or []
            if not isinstance(listed, list | dict):
                raise _no_name(key, listed, where)
            entries = listed.values() if isinstance(listed, dict) else listed
            control += [name for entry in entries if (name := _name(key, entry, where)) and name not in control]
        roles = {role: _name(f"{role}_token", content.get(f"{role}_token"), where) for role in ROLES}
        return cls(**roles, control=tuple(control))

    @classmethod
    def from_json(cls, content: bytes, where: str = NAMES_FILE) -> "SpecialNames":
        """The names that `to_json` wrote.

        Raises:
            CheckpointError: the content is no such JSON.
        """
        return cls.from_mapping(parse_object(content, where), where)

    def to_json(self) -> bytes:
        """The names as a special_tokens_map.json."""
        content: dict[str, Any] = self.roles()
        if self.control:
            content["additional_special_tokens"] = list(self.control)
        return json.dumps(content, ensure_ascii=False, indent=2).encode()

    def roles(self) -> dict[str, str]:
        """The names by key, such as "pad_token", without the missing ones."""
        found = {f"{role}_token": getattr(self, role) for role in ROLES}
        return {key: name for key, name in found.items() if name is not None}

    def within(self, vocabulary: Collection[str]) -> "SpecialNames":
        """Those of the names that a vocabulary has."""
        found = {role: name for role in ROLES if (name := getattr(self, role)) in vocabulary}
        return SpecialNames(**found, control=tuple(name for name in self.control if name in vocabulary))

    def all(self) -> set[str]:
        """Every name."""
        return {*self.roles().values(), *self.control}


def _name(key: str, entry: Any, where: str) -> str | None:
    """The spelling of a token that is given as text or as an object with its content."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    if entry is None or entry is False:
        return None
    if not isinstance(entry, str) or not entry:
        raise _no_name(key, entry, where)
    return entry


def _no_name(key: str, entry: Any, where: str) -> CheckpointError:
    return CheckpointError(f"{key} is {str(entry)[:60]!r}, not the name of a token", where, "mend or replace the file")


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        CheckpointError: it is too large, no JSON, or no object.
    """
    if len(content) > MAX_JSON_BYTES:
        raise _unusable(f"it is larger than {MAX_JSON_BYTES:,} bytes", where)
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _unusable(
            "it is not JSON" if isinstance(error, ValueError) else "it is nested too deep", where
        ) from error
    if not isinstance(parsed, dict):
        raise _unusable("it holds no JSON object", where)
    if b"\\ud" in content.lower():
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _unusable("it holds half a surrogate pair, which is no character", where) from error
    return parsed


MAX_ID = 4_000_000
"""Far above the largest vocabularies; a greater id would fill the memory."""


def check_ids(vocabulary: Mapping[Any, Any], where: str) -> None:
    """Refuse what is no mapping of pieces to ids of their own."""
    for piece, token_id in vocabulary.items():
        if not isinstance(piece, str) or type(token_id) is not int or not 0 <= token_id <= MAX_ID:
            raise _unusable(f"piece {piece!r} has {str(token_id)[:60]!r} for an id", where)
    if len(set(vocabulary.values())) < len(vocabulary):
        raise _unusable("two of its pieces share an id", where)


def _unusable(reason: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"not a usable file: {reason}", where, "use the files of an undamaged model, all of the same one"
    )
