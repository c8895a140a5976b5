"""A SentencePiece model as a tokenizer.json that gives the same tokens.

The pieces are written with spaces instead of U+2581. So U+2581 in a text is a character without a piece, as it is for
`SentencePieceTokenizer`, and goes through its byte pieces.

Where they may differ: SentencePiece adds unigram scores in single precision, the tokenizers package in double, so of
two ways to cut a text whose scores agree to about seven digits the other may be taken; without byte pieces, an
unknown U+2581, or unknown characters that spell a part of a special token, are tokens of their own or one with their
neighbours; and transformers takes a text that spells a special token for it, unless told split_special_tokens.
"""

import base64
import json
import re
from collections.abc import Sequence
from typing import Any

from txtgen.tokenizer.post_processor import write_framing
from txtgen.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer
from txtgen.tokenizer.sentencepiece_proto import (
    BPE,
    BYTE,
    CHAR,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ModelContent,
    read_model,
)


def has_equivalent(tokenizer: SentencePieceTokenizer) -> bool:
    """Whether the model leaves all spaces as they are, as those trained here do."""
    content = read_model(tokenizer.model)
    return (
        tokenizer.vocabulary is None
        and content.type in (UNIGRAM, BPE, CHAR)
        and content.escape_whitespaces
        and not content.add_dummy_prefix
        and not content.remove_extra_whitespaces
        and not content.whitespace_as_suffix
        and all(piece.type != UNUSED for piece in content.pieces)
    )


def equivalent_json(tokenizer: SentencePieceTokenizer, prefix: Sequence[int] = (), suffix: Sequence[int] = ()) -> bytes:
    """The tokenizer.json of a model for which `has_equivalent`, with the ids that stand around a text.

    Source: Kudo 2018, arXiv 1804.10959 (unigram); Sennrich et al. 2016, arXiv 1508.07909 (bpe).
    """
    content = read_model(tokenizer.model)
    names = [piece.text.replace(SPACE, " ") for piece in content.pieces]
    special = [i for i, piece in enumerate(content.pieces) if piece.type in (CONTROL, UNKNOWN)]
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special_token(i, content.pieces[i].text) for i in special],
        "normalizer": _normalizer(content),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _splits(content)},
        "post_processor": write_framing(prefix, suffix, [piece.text for piece in content.pieces]),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _unigram(content, names) if content.type == UNIGRAM else _bpe(content, names),
    }
    return json.dumps(description, ensure_ascii=False).encode()


def _special_token(token_id: int, name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": name, **flags, "special": True}


def _normalizer(content: ModelContent) -> dict[str, Any] | None:
    """The model's compiled normalisation."""
    if not content.charsmap:
        return None
    charsmap = base64.b64encode(content.charsmap).decode()
    return {"type": "Precompiled", "precompiled_charsmap": charsmap}


def _splits(content: ModelContent) -> list[dict[str, Any]]:
    """What parts a text before all else: the user-defined pieces.

    And for unigram, which would take any piece that a text spells, the first character of whatever spells a special,
    control or byte piece.
    """
    given = [piece.text for piece in content.pieces if piece.type == USER_DEFINED]
    patterns = [re.escape(text.replace(SPACE, " ")) for text in sorted(given, key=len, reverse=True)]
    if content.type == UNIGRAM:
        names = [piece.text for piece in content.pieces if piece.type in (CONTROL, UNKNOWN)]
        patterns += [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names]
        patterns += ["<(?=0x[0-9A-F]{2}>)"] if any(piece.type == BYTE for piece in content.pieces) else []
    if not patterns:
        return []
    return [{"type": "Split", "pattern": {"Regex": "|".join(patterns)}, "behavior": "Isolated", "invert": False}]


def _unigram(content: ModelContent, names: list[str]) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": next(i for i, piece in enumerate(content.pieces) if piece.type == UNKNOWN),
        "vocab": [[name, piece.score] for name, piece in zip(names, content.pieces, strict=True)],
        "byte_fallback": any(piece.type == BYTE for piece in content.pieces),
    }


def _bpe(content: ModelContent, names: list[str]) -> dict[str, Any]:
    """Every way to put a piece together from two, best score first: SentencePiece merges whatever makes a piece."""
    known = {name for name, piece in zip(names, content.pieces, strict=True) if piece.type == NORMAL}
    scored = [(-piece.score, name) for name, piece in zip(names, content.pieces, strict=True) if piece.type == NORMAL]
    merges = [
        [name[:cut], name[cut:]]
        for _, name in sorted(scored, key=lambda entry: entry[0])
        for cut in range(1, len(name))
        if name[:cut] in known and name[cut:] in known
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(piece.text for piece in content.pieces if piece.type == UNKNOWN),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": any(piece.type == BYTE for piece in content.pieces),
        "ignore_merges": False,
        "vocab": {name: i for i, name in enumerate(names)},
        "merges": [] if content.type == CHAR else merges,
    }
