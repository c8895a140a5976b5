"""Tokenizers from files."""

from pathlib import Path
from typing import Any

from txtgen.errors import CheckpointError, ResourceError
from txtgen.tokenizer.huggingface import JSON_FILE, HuggingFaceTokenizer
from txtgen.tokenizer.names import NAMES_FILE, SpecialNames, parse_object
from txtgen.tokenizer.sentencepiece import MODEL_FILE, VOCABULARY_FILE, SentencePieceTokenizer
from txtgen.tokenizer.sentencepiece_model import MAX_MODEL_BYTES
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
    if not isinstance(files, dict):
        raise CheckpointError("the tokenizer has no files", "tokenizer", "use an undamaged checkpoint")
    match kind:
        case SentencePieceTokenizer.kind:
            model = _file(files, MODEL_FILE)
            if VOCABULARY_FILE not in files:
                return SentencePieceTokenizer(model)
            vocabulary = parse_object(_file(files, VOCABULARY_FILE), VOCABULARY_FILE)
            names = SpecialNames.from_json(_file(files, NAMES_FILE))
            return SentencePieceTokenizer(model, MODEL_FILE, vocabulary, names)
        case HuggingFaceTokenizer.kind:
            return HuggingFaceTokenizer(_file(files, JSON_FILE), SpecialNames.from_json(_file(files, NAMES_FILE)))
        case _:
            raise CheckpointError(f"tokenizers of kind {kind!r} are not known", "tokenizer", "use a newer txtgen")


def _file(files: dict[str, Any], name: str) -> bytes:
    content = files.get(name)
    if not isinstance(content, bytes):
        raise CheckpointError(f"the tokenizer lacks its {name}", "tokenizer", "use an undamaged checkpoint")
    return content
