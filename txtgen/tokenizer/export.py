"""A tokenizer as the files from which transformers makes the same one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from txtgen.errors import CheckpointError, ResourceError
from txtgen.tokenizer.equivalent import equivalent_json
from txtgen.tokenizer.huggingface import JSON_FILE, HuggingFaceTokenizer
from txtgen.tokenizer.huggingface_files import CONFIG_FILE, TEMPLATE_FILE
from txtgen.tokenizer.names import SpecialNames
from txtgen.tokenizer.sentencepiece import MODEL_FILE, VOCABULARY_FILE, SentencePieceTokenizer
from txtgen.tokenizer.types import Tokenizer, TokenizerFiles

_GENERAL_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers that does what a tokenizer.json says and nothing else."""


def export_tokenizer(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    family: str,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    chat_template: str | None = None,
    source_tokenizer: Tokenizer | None = None,
) -> None:
    """Write the tokenizer of a Hugging Face folder.

    A tokenizer.json is written again as it was, with the framing asked for. A SentencePiece model comes along as it
    is, with an equivalent tokenizer.json (see `equivalent.py` for where they may differ), which transformers reads; of
    Marian it is source.spm, target.spm and their vocabulary. transformers takes a Marian text's outer spaces away.

    Args:
        tokenizer: of the model; of an encoder-decoder, of its targets.
        folder: where to write; made if missing.
        family: the model_type of the config.json beside it, such as "llama".
        prefix: the ids that stand before every text.
        suffix: the ids that stand after every text.
        chat_template: the Jinja template of conversations.
        source_tokenizer: of the sources, where it is another one; only Marian has two.

    Raises:
        CheckpointError: the family cannot have such a tokenizer.
        ResourceError: the folder cannot be written.
    """
    if family == "marian":
        files = _marian_files(tokenizer, source_tokenizer or tokenizer, prefix, suffix)
    elif source_tokenizer is not None and source_tokenizer.fingerprint() != tokenizer.fingerprint():
        raise _impossible(f"a {family} model has one tokenizer, this model two", "export it as marian")
    else:
        files = _files(tokenizer, family, tuple(prefix), tuple(suffix))
    if chat_template is not None:
        files[TEMPLATE_FILE] = chat_template.encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(f"cannot write the tokenizer: {reason}", str(folder), "check the path") from error


def _files(tokenizer: Tokenizer, family: str, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> TokenizerFiles:
    """The files of any family but Marian's."""
    match tokenizer:
        case HuggingFaceTokenizer():
            files = {JSON_FILE: tokenizer.with_framing(prefix, suffix)}
        case SentencePieceTokenizer() if equivalent := equivalent_json(tokenizer, prefix, suffix):
            files = {"spiece.model" if family == "t5" else MODEL_FILE: tokenizer.model, JSON_FILE: equivalent}
        case _:
            raise _impossible(f"this {tokenizer.kind} tokenizer has no equivalent in transformers", "keep it in txtgen")
    return files | {CONFIG_FILE: _config(_GENERAL_CLASS, tokenizer.names)}


def _config(tokenizer_class: str, names: SpecialNames, **more: Any) -> bytes:
    """A tokenizer_config.json."""
    content: dict[str, Any] = {"tokenizer_class": tokenizer_class, "clean_up_tokenization_spaces": False}
    content |= names.roles()
    if names.control:
        content["additional_special_tokens"] = list(names.control)
    return _json(content | more)


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=2).encode()


def _marian_files(target: Tokenizer, source: Tokenizer, prefix: Sequence[int], suffix: Sequence[int]) -> TokenizerFiles:
    if not isinstance(source, SentencePieceTokenizer) or not isinstance(target, SentencePieceTokenizer):
        raise _impossible("a Marian model needs SentencePiece tokenizers", "export it as another family")
    if prefix or tuple(suffix) != (source.special.eos_id,):
        raise _impossible(
            "a Marian tokenizer puts the end token after every text, and nothing else around it",
            "export it as another family",
        )
    source_vocabulary, target_vocabulary = _vocabulary(source), _vocabulary(target)
    # Languages are not listed: transformers, too, is to take one for a token at the beginning of a text only.
    control = tuple(name for name in source.names.control if not name.startswith(">>"))
    names = replace(source.names, bos=None, control=control)
    separate = source_vocabulary != target_vocabulary
    files = {
        "source.spm": source.model,
        "target.spm": target.model,
        VOCABULARY_FILE: _json(source_vocabulary),
        CONFIG_FILE: _config("MarianTokenizer", names, separate_vocabs=separate),
    }
    return files | ({"target_vocab.json": _json(target_vocabulary)} if separate else {})


def _vocabulary(tokenizer: SentencePieceTokenizer) -> dict[str, int]:
    """Piece -> id."""
    if tokenizer.vocabulary is not None:
        return dict(tokenizer.vocabulary)
    return {piece: token_id for token_id, piece in enumerate(tokenizer.pieces(range(len(tokenizer))))}


def _impossible(what: str, fix: str) -> CheckpointError:
    return CheckpointError(what, "tokenizer", fix)
