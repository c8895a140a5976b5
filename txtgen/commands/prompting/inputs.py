"""Texts that a user gives in files or pipes in."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from txtgen.errors import UsageError
from txtgen.generator import Prompt


def read_text(name: str, what: str) -> str:
    """The text of a file, or of standard input for `-`.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    where = "standard input" if name == "-" else name
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", where, f"convert {what} to UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read {what}: {error.strerror or error}", where, "check the path") from error


def read_lines(name: str, what: str) -> list[str]:
    """The lines of a file or of standard input; errors as for `read_text`."""
    lines = read_text(name, what).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return lines if name.endswith(".jsonl") else [line.removesuffix("\r") for line in lines]


def read_prompts(name: str) -> tuple[list[Prompt], bool]:
    """The prompts of a file, or of standard input for `-`; and whether they are one a line.

    Piped text is one prompt a line as well. A .jsonl file has `prompt` (a string) or `messages` (role and content).

    Raises:
        UsageError: it cannot be read, is not UTF-8, or a line is not what it should be.
    """
    lines = read_lines(name, "the prompts")
    if not name.endswith(".jsonl"):
        return list(lines), True
    return [required_prompt(found, where) for where, found in json_objects(lines, name)], False


def json_objects(lines: list[str], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line stands, and the JSON object on it.

    Raises:
        UsageError: a line is none.
    """
    for number, line in enumerate(lines, 1):
        try:
            found: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError("not a JSON object", f"{name}:{number}", "each line is one JSON object") from error
        yield f"{name}:{number}", found if isinstance(found, dict) else {}


def required_prompt(found: dict[str, Any], where: str) -> Prompt:
    """The `prompt` or the `messages` of a JSON object.

    Raises:
        UsageError: it has neither.
    """
    prompt, messages = found.get("prompt"), found.get("messages")
    if isinstance(prompt, str):
        return prompt
    if isinstance(messages, list) and messages and all(_is_message(message) for message in messages):
        return [{"role": message["role"], "content": message["content"]} for message in messages]
    raise UsageError(
        "neither a prompt nor messages",
        where,
        'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}',
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
