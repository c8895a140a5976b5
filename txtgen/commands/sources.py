"""What a data file named on the command line holds, told by its ending and first line."""

import gzip
import json
from pathlib import Path
from typing import Any

from txtgen.errors import DataError


def guess_source(paths: list[str], target: str | None = None, documents: str = "file") -> dict[str, Any]:
    """The plain source config for data files: text, jsonl, tsv, pairs or conversations.

    Args:
        paths: files, folders or globs of one kind.
        target: a second file whose line i belongs to line i of the first.
        documents: what one document of plain text is.

    Raises:
        DataError: a .jsonl file whose first line is none of the known forms.
    """
    if target is not None:
        return {"kind": "parallel", "source_path": paths[0], "target_path": target}
    path: str | list[str] = paths[0] if len(paths) == 1 else paths
    name = paths[0].removesuffix(".gz")
    if name.endswith(".tsv"):
        return {"kind": "tsv", "path": path}
    if name.endswith(".jsonl"):
        return {"path": path, **_guess_jsonl(paths[0])}
    return {"kind": "text", "path": path, "documents": documents}


def _guess_jsonl(path: str) -> dict[str, Any]:
    keys = _first_keys(Path(path))
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


def _first_keys(path: Path) -> set[str]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as handle:
            first = json.loads(handle.readline(1 << 22))
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise DataError("the first line is not a JSON object", str(path), "check the file") from error
    return set(first) if isinstance(first, dict) else set()
