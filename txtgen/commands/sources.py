"""What data files named on the command line hold, told by their endings and first lines."""

import json
from typing import Any

from txtgen.data.files import TextFile, open_text
from txtgen.data.paths import resolve
from txtgen.errors import DataError

_CHUNK_BYTES = 1 << 16
_LINE_BYTES = 1 << 22


def guess_source(paths: list[str], target: str | None = None, documents: str = "file") -> dict[str, Any]:
    """The plain source config for data files: text, jsonl, tsv, pairs or conversations.

    Args:
        paths: files, folders or globs of one kind.
        target: a second file whose line i belongs to line i of the first.
        documents: what one document of plain text is.

    Raises:
        DataError: the paths name no file, files of different kinds, or a .jsonl file that
            cannot be read, or whose first line is none of the known forms; or there is a target and not exactly one
            file that it belongs to.
    """
    if target is not None:
        if len(paths) != 1:
            raise DataError(f"one target for {len(paths)} sources", target, "name one source file")
        return {"kind": "parallel", "source_path": paths[0], "target_path": target}
    files = resolve(paths)
    kind = _guess_file(files[0], documents)
    for file in files[1:]:
        other = _guess_file(file, documents)
        if other != kind:
            raise DataError(
                f"files of different kinds: {files[0]} ({_name(kind)}) and {file} ({_name(other)})",
                ", ".join(paths),
                "name files of one kind, or write a config with a source for each kind",
            )
    return {**kind, "path": paths[0] if len(paths) == 1 else paths}


def _name(kind: dict[str, Any]) -> str:
    """A kind of source in words: text, or jsonl_pairs of question and answer."""
    fields = [str(kind[key]) for key in ("source_field", "target_field") if key in kind]
    return f"{kind['kind']} of {' and '.join(fields)}" if fields else str(kind["kind"])


def _guess_file(path: str, documents: str) -> dict[str, Any]:
    """The source config for one file, less its path."""
    name = path.lower().removesuffix(".gz")
    if name.endswith(".tsv"):
        return {"kind": "tsv"}
    if name.endswith(".jsonl"):
        return _guess_jsonl(path)
    return {"kind": "text", "documents": documents}


def _guess_jsonl(path: str) -> dict[str, Any]:
    keys = _first_keys(path)
    if {"chosen", "rejected"} <= keys:
        return {"kind": "preference"}
    if "messages" in keys:
        return {"kind": "chat"}
    for source, target in (("source", "target"), ("prompt", "completion"), ("question", "answer")):
        if {source, target} <= keys:
            return {"kind": "jsonl_pairs", "source_field": source, "target_field": target}
    if {"instruction", "output"} <= keys:
        fields = ["instruction", "input"] if "input" in keys else "instruction"
        return {"kind": "jsonl_pairs", "source_field": fields, "target_field": "output"}
    if "text" in keys:
        return {"kind": "jsonl"}
    raise DataError(
        f"cannot tell what this holds from its fields ({', '.join(sorted(keys)) or 'none'})",
        path,
        "write a config that names the source's kind and fields",
    )


def _first_keys(path: str) -> set[str]:
    try:
        first = json.loads(_first_line(open_text(path, max_snapshots=1)))
    except (ValueError, RecursionError) as error:
        raise DataError("the first line is not a JSON object", path, "check the file") from error
    return set(first) if isinstance(first, dict) else set()


def _first_line(file: TextFile) -> bytes:
    """The first line of a file, or the beginning of one that is far too long."""
    line = b""
    while b"\n" not in line and len(line) < _LINE_BYTES:
        chunk = file.read(file.start + len(line), _CHUNK_BYTES)
        if not chunk:
            break
        line += chunk
    return line.partition(b"\n")[0]
