"""Texts that a user gives in files or pipes in."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from txtgen.errors import DataError, UsageError
from txtgen.generator import Prompt


def is_json_lines(name: str) -> bool:
    """Whether a file, by its name, has a JSON object on each line."""
    return name.removesuffix(".gz").endswith(".jsonl")


def read_text(name: str, what: str) -> str:
    """The text of a file, unpacked if its name ends in .gz, or of standard input for `-`.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    where = "standard input" if name == "-" else name
    try:
        return (sys.stdin.buffer.read() if name == "-" else _content(name)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", where, f"convert {what} to UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read {what}: {error.strerror or error}", where, "check the path") from error
    except DataError as error:
        raise UsageError(error.what, error.where, error.fix) from error


def _content(name: str) -> bytes:
    if not name.endswith(".gz"):
        return Path(name).read_bytes()
    from txtgen.data.files import open_text  # brings all that makes batches along

    file = open_text(name, max_snapshots=1)
    return file.read(file.start, file.size)


def read_lines(name: str, what: str) -> list[str]:
    """The lines of a file or of standard input; errors as for `read_text`."""
    lines = read_text(name, what).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return lines if is_json_lines(name) else [line.removesuffix("\r") for line in lines]


def read_prompts(name: str) -> tuple[list[Prompt], bool]:
    """The prompts of a file, or of standard input for `-`; and whether they are one a line.

    Piped text is one prompt a line as well. A .jsonl file has `prompt` (a string) or `messages` (role and content).

    Raises:
        UsageError: it cannot be read, is not UTF-8, or a line is not what it should be.
    """
    lines = read_lines(name, "the prompts")
    if not is_json_lines(name):
        return list(lines), True
    return [required_prompt(found, where) for where, found in json_objects(lines, name)], False


def read_json(name: str, what: str) -> str:
    """The text of a file that holds one JSON object; errors as for `read_text` and `json_object`."""
    text = read_text(name, what)
    json_object(text, name, 1, f"write {what} as one JSON object")
    return text


def json_objects(lines: list[str], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line stands, and the JSON object on it; blank lines are left out. Errors as for `json_object`."""
    for number, line in enumerate(lines, 1):
        if line and not line.isspace():
            yield f"{name}:{number}", json_object(line, name, number, "each line is one JSON object")


def json_object(text: str, name: str, line: int, fix: str) -> dict[str, Any]:
    """The JSON object that a text is, which begins on a line of a file.

    Raises:
        UsageError: it is none.
    """
    try:
        found: Any = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{name}:{line + error.lineno - 1}:{error.colno}"
        raise UsageError(f"not valid JSON: {error.msg}", where, fix) from error
    except (ValueError, RecursionError) as error:
        what = "not usable JSON: it is nested too deeply, or has a number of too many digits"
        raise UsageError(what, f"{name}:{line}", fix) from error
    if not isinstance(found, dict):
        raise UsageError("not a JSON object", f"{name}:{line}", fix)
    return found


def required_prompt(found: dict[str, Any], where: str) -> Prompt:
    """The `prompt` or the `messages` of a JSON object.

    Raises:
        UsageError: it has neither or both, or a message without a role and a content that are strings.
    """
    prompt, messages = found.get("prompt"), found.get("messages")
    fix = 'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
    if prompt is not None and messages is not None:
        raise UsageError("both a prompt and messages", where, fix)
    if isinstance(prompt, str):
        return prompt
    if not isinstance(messages, list) or not messages:
        raise UsageError("neither a prompt nor messages", where, fix)
    for number, message in enumerate(messages, 1):
        if not _is_message(message):
            raise UsageError(f"message {number} lacks a role or a content that is a string", where, fix)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
