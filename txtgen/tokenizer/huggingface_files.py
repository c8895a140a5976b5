"""The small files of a Hugging Face folder that say how its tokenizer is used.

Only files of known names directly in the folder are read, and only so much of each as a real one may have.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from txtgen.errors import CheckpointError, ResourceError
from txtgen.tokenizer.names import MAX_JSON_BYTES, NAMES_FILE, ROLES, SpecialNames, check_ids, parse_object

CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
ADDED_FILE = "added_tokens.json"

MAX_TEMPLATE_BYTES = 1 << 20
"""Far above any real chat template."""

_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


class FolderFiles:
    """The files of a folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CheckpointError("there is no such folder", str(folder), "give the folder of a Hugging Face model")
        self.folder = folder

    def exists(self, name: str) -> bool:
        """Whether the folder has a file of this name."""
        return (self.folder / name).is_file()

    def path(self, name: str) -> str:
        """What to call a file in an error."""
        return str(self.folder / name)

    def read(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        """The content of a file.

        Raises:
            CheckpointError: it is missing or too large.
            ResourceError: it may not be read.
        """
        if not self.exists(name):
            raise CheckpointError(f"the folder has no {name}", str(self.folder), "use a complete folder")
        try:
            with open(self.folder / name, "rb") as handle:
                content = handle.read(max_bytes + 1)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ResourceError(f"cannot read {name}: {reason}", str(self.folder), "check its permissions") from error
        if len(content) > max_bytes:
            raise CheckpointError(f"{name} is larger than {max_bytes:,} bytes", self.path(name), "use another model")
        return content

    def object(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a file, None if there is no such file."""
        return parse_object(self.read(name), self.path(name)) if self.exists(name) else None


def special_names(files: FolderFiles, config: Mapping[str, Any], defaults: SpecialNames) -> SpecialNames:
    """The special tokens by tokenizer_config.json, else special_tokens_map.json, else the family."""
    stated = {**(files.object(NAMES_FILE) or {}), **config}
    names = SpecialNames.from_mapping(stated, files.path(CONFIG_FILE))
    missing = {f"{role}_token" for role in ROLES} - stated.keys()
    roles = {key.removesuffix("_token"): name for key, name in defaults.roles().items() if key in missing}
    return replace(names, control=tuple(dict.fromkeys(names.control + defaults.control)), **roles)


def added_tokens(
    files: FolderFiles, config: Mapping[str, Any], description: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """The tokens added to a vocabulary, by name: their ids, and what else the files say of them.

    Of a tokenizer.json, they are the "added_tokens" of its `description`.

    Raises:
        CheckpointError: they are not what they should be, or two of them share an id.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, token_id in (files.object(ADDED_FILE) or {}).items():
        found[name] = {"id": token_id}
    try:
        entries = [(token["id"], token) for token in (description or {}).get("added_tokens") or []]
        entries += [(int(key), token) for key, token in (config.get("added_tokens_decoder") or {}).items()]
        for token_id, token in sorted(entries, key=lambda entry: entry[0]):
            found[token["content"]] = {"id": token_id} | {key: bool(token.get(key)) for key in _FLAGS}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            "its list of added tokens is not what it should be", files.path(CONFIG_FILE), "use an undamaged copy"
        ) from error
    check_ids({name: token["id"] for name, token in found.items()}, files.path(ADDED_FILE))
    return found


def chat_template(files: FolderFiles, config: Mapping[str, Any]) -> str | None:
    """The chat template of a folder: its own file, else in tokenizer_config.json, where it may be one of several.

    Raises:
        CheckpointError: it is no text, or there are several and none is called default.
    """
    if files.exists(TEMPLATE_FILE):
        try:
            return files.read(TEMPLATE_FILE, MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise _bad_template("it is not UTF-8", files.path(TEMPLATE_FILE)) from error
    where = files.path(CONFIG_FILE)
    match config.get("chat_template"):
        case None:
            return None
        case str(template):
            return _checked_template(template, where)
        case list(templates):
            for entry in templates:
                match entry:
                    case {"name": "default", "template": str(template)}:
                        return _checked_template(template, where)
            raise _bad_template("there are several, and none is called default", where)
        case _:
            raise _bad_template("it is no text", where)


def _checked_template(template: str, where: str) -> str:
    if len(template) > MAX_TEMPLATE_BYTES:
        raise _bad_template(f"it is longer than {MAX_TEMPLATE_BYTES:,} characters", where)
    return template


def _bad_template(reason: str, where: str) -> CheckpointError:
    return CheckpointError(f"the chat template cannot be used: {reason}", where, "mend it, or remove it")
