"""A tokenizer as the files from which transformers makes the same one."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from txtgen.errors import CheckpointError, ResourceError
from txtgen.tokenizer.equivalent import equivalent_json, has_equivalent
from txtgen.tokenizer.huggingface import JSON_FILE, HuggingFaceTokenizer
from txtgen.tokenizer.huggingface_files import CONFIG_FILE, TEMPLATE_FILE
from txtgen.tokenizer.names import SpecialNames
from txtgen.tokenizer.sentencepiece import MODEL_FILE, VOCABULARY_FILE, SentencePieceTokenizer
from txtgen.tokenizer.sentencepiece_proto import read_model
from txtgen.tokenizer.types import Tokenizer, TokenizerFiles

_GENERAL_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers that does what a tokenizer.json says and nothing else."""

_SENTINEL = re.compile(r"<extra_id_\d+>")


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

    A tokenizer.json is written again as it was, with the framing asked for. A SentencePiece model that leaves
    spaces as they are, such as one trained here, becomes tokenizer.model and an equivalent tokenizer.json. One that
    came from Llama, Mistral, T5 or Marian becomes its original files, which transformers reads with the packages
    sentencepiece and protobuf.

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
            content = tokenizer.with_framing(prefix, suffix)
            return {JSON_FILE: content, CONFIG_FILE: _config(_GENERAL_CLASS, tokenizer.names)}
        case SentencePieceTokenizer() if has_equivalent(tokenizer):
            content = equivalent_json(tokenizer, prefix, suffix)
            config = _config(_GENERAL_CLASS, tokenizer.names)
            return {MODEL_FILE: tokenizer.model, JSON_FILE: content, CONFIG_FILE: config}
        case SentencePieceTokenizer() if family in ("llama", "mistral"):
            return _llama_files(tokenizer, prefix, suffix)
        case SentencePieceTokenizer() if family == "t5":
            return _t5_files(tokenizer, prefix, suffix)
        case _:
            raise _impossible(
                f"a {family} model cannot have this {tokenizer.kind} tokenizer", "export it as the family it came from"
            )


def _config(tokenizer_class: str, names: SpecialNames, **more: Any) -> bytes:
    """A tokenizer_config.json."""
    content: dict[str, Any] = {"tokenizer_class": tokenizer_class, "clean_up_tokenization_spaces": False}
    content |= names.roles()
    if names.control:
        content["additional_special_tokens"] = list(names.control)
    return _json(content | more)


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=2).encode()


def _added(tokenizer: SentencePieceTokenizer) -> dict[str, int]:
    """The entries of the vocabulary that the model itself lacks."""
    own = {piece.text for piece in read_model(tokenizer.model).pieces}
    return {piece: token_id for piece, token_id in (tokenizer.vocabulary or {}).items() if piece not in own}


def _added_decoder(added: Mapping[str, int]) -> dict[str, Any]:
    """Added tokens as tokenizer_config.json lists them."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    by_id = sorted(added.items(), key=lambda item: item[1])
    return {str(token_id): {"content": name, **flags, "special": True} for name, token_id in by_id}


def _llama_files(tokenizer: SentencePieceTokenizer, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> TokenizerFiles:
    special = tokenizer.special
    if prefix not in ((), (special.bos_id,)) or suffix not in ((), (special.eos_id,)):
        raise _impossible("a Llama tokenizer puts only its own bos and eos around a text", "use one of these framings")
    config = _config(
        "LlamaTokenizer",
        tokenizer.names,
        add_bos_token=bool(prefix),
        add_eos_token=bool(suffix),
        legacy=False,
        added_tokens_decoder=_added_decoder(_added(tokenizer)),
    )
    return {MODEL_FILE: tokenizer.model, CONFIG_FILE: config}


def _t5_files(tokenizer: SentencePieceTokenizer, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> TokenizerFiles:
    _require_end_only("T5", tokenizer, prefix, suffix)
    added = _added(tokenizer)
    sentinels = [name for name in added if _SENTINEL.fullmatch(name)]
    others = {name: token_id for name, token_id in added.items() if name not in sentinels}
    names = replace(tokenizer.names, control=tuple(sentinels))
    config = _config("T5Tokenizer", names, extra_ids=len(sentinels), added_tokens_decoder=_added_decoder(others))
    return {"spiece.model": tokenizer.model, CONFIG_FILE: config}


def _marian_files(target: Tokenizer, source: Tokenizer, prefix: Sequence[int], suffix: Sequence[int]) -> TokenizerFiles:
    if not isinstance(source, SentencePieceTokenizer) or not isinstance(target, SentencePieceTokenizer):
        raise _impossible("a Marian model needs SentencePiece tokenizers", "export it as another family")
    _require_end_only("Marian", source, prefix, suffix)
    source_vocabulary, target_vocabulary = _vocabulary(source), _vocabulary(target)
    names = replace(source.names, bos=None)
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


def _require_end_only(family: str, tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int]) -> None:
    if prefix or tuple(suffix) != (tokenizer.special.eos_id,):
        raise _impossible(
            f"a {family} tokenizer puts the end token after every text, and nothing else around it",
            "export it as another family",
        )


def _impossible(what: str, fix: str) -> CheckpointError:
    return CheckpointError(what, "tokenizer", fix)
