"""Tokenizers from files."""

from pathlib import Path
from typing import Any

from txtgen.errors import CheckpointError, ResourceError
from txtgen.tokenizer.sentencepiece import MAX_MODEL_BYTES, MODEL_FILE, SentencePieceTokenizer
from txtgen.tokenizer.types import Tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a .model file.

    Raises:
        CheckpointError: there is no such file, or it is not a usable SentencePiece model.
        ResourceError: it may not be read.
    """
    try:
        with open(path, "rb") as handle:
            model = handle.read(MAX_MODEL_BYTES + 1)
    except FileNotFoundError as error:
        raise CheckpointError(
            "there is no such tokenizer file", str(path), "check the path of the .model file"
        ) from error
    except IsADirectoryError as error:
        raise CheckpointError("this is a folder, not a tokenizer", str(path), "name the .model file in it") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(f"cannot read the tokenizer: {reason}", str(path), "check its permissions") from error
    return SentencePieceTokenizer(model, str(path))


def tokenizer_from_files(kind: str, files: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `files()` of one of that kind described, for example in a checkpoint.

    Raises:
        CheckpointError: the kind is not known, or the files are not those of a usable tokenizer.
    """
    if kind != SentencePieceTokenizer.kind:
        raise CheckpointError(f"tokenizers of kind {kind!r} are not known", "tokenizer", "use a newer txtgen")
    model = files.get(MODEL_FILE) if isinstance(files, dict) else None
    if not isinstance(model, bytes):
        raise CheckpointError(f"the tokenizer lacks its {MODEL_FILE}", "tokenizer", "use an undamaged checkpoint")
    return SentencePieceTokenizer(model)
