"""A SentencePiece model as a tokenizer.json that gives the same tokens.

Where the two may differ:
- SentencePiece adds unigram scores in single precision, the tokenizers package in double: of two ways to cut a text
  whose scores agree to about seven digits, the other may be taken;
- without byte pieces, an unknown U+2581, or unknown characters in what spells a part of a special token, are tokens of
  their own or one with their neighbours;
- of a model that puts a space before a text and keeps all others (Llama, Mistral), a text that begins with a space or
  with what becomes one: the model puts another before it; this one does not, as the classes of transformers do not;
- transformers takes what spells a special token for it, unless it is told split_special_tokens.
"""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from txtgen.tokenizer.joining import MISSING
from txtgen.tokenizer.post_processor import write_framing
from txtgen.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer
from txtgen.tokenizer.sentencepiece_proto import (
    BPE,
    BYTE,
    CHAR,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNUSED,
    USER_DEFINED,
    ModelContent,
    Piece,
    read_model,
)


def equivalent_json(
    tokenizer: SentencePieceTokenizer, prefix: Sequence[int] = (), suffix: Sequence[int] = ()
) -> bytes | None:
    """The tokenizer.json of a model, with the ids that stand around a text; None if there is no equivalent.

    There is one of the models trained here, of Llama, Mistral and T5, and of others that treat spaces likewise.

    Source: Kudo 2018, arXiv 1804.10959 (unigram); Sennrich et al. 2016, arXiv 1508.07909 (bpe).
    """
    content = read_model(tokenizer.model)
    pieces = tokenizer.pieces(range(len(tokenizer)))
    if not _has_equivalent(content) or MISSING in pieces:
        return None
    by_text = {piece.text: piece for piece in content.pieces}
    spaces = _spaces(content)
    entries = [
        Piece(text.replace(SPACE, spaces.written), *((own.score, own.type) if own else (0.0, CONTROL)))
        for text in pieces
        for own in [by_text.get(text)]
    ]
    special = tokenizer.special_pieces
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special_token(token_id, name) for name, token_id in special.items()],
        "normalizer": _sequence("normalizers", [*_charsmap(content), *spaces.normalizers]),
        "pre_tokenizer": _sequence("pretokenizers", [*_splits(content, entries, special), *spaces.pre_tokenizers]),
        "post_processor": write_framing(prefix, suffix, pieces),
        "decoder": {"type": "Sequence", "decoders": spaces.decoders},
        "model": _model(content, entries, tokenizer.special.unk_id),
    }
    return json.dumps(description, ensure_ascii=False).encode()


def _has_equivalent(content: ModelContent) -> bool:
    return (
        content.type in (UNIGRAM, BPE, CHAR)
        and content.escape_whitespaces
        and not content.whitespace_as_suffix
        and (content.add_dummy_prefix or not content.remove_extra_whitespaces)
        and all(piece.type != UNUSED for piece in content.pieces)
    )


@dataclass(frozen=True, slots=True)
class _Spaces:
    """What is done with spaces: the character written for one in the pieces, and the steps."""

    written: str
    normalizers: list[dict[str, Any]]
    pre_tokenizers: list[dict[str, Any]]
    decoders: list[dict[str, Any]]


def _spaces(content: ModelContent) -> _Spaces:
    bytes_to_text = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    if not content.add_dummy_prefix:
        # Pieces with spaces: U+2581 in a text is a character without a piece then, as for SentencePieceTokenizer.
        return _Spaces(" ", [], [], bytes_to_text)
    if not content.remove_extra_whitespaces:
        first = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
        return _Spaces(SPACE, [], [first], [_replace({"String": SPACE}, " "), *bytes_to_text, strip])
    single = [_replace({"Regex": "^ +| +$"}, ""), _replace({"Regex": " {2,}"}, " ")]
    normalizers = [*single, _replace({"String": SPACE}, " "), {"type": "Prepend", "prepend": " "}]
    return _Spaces(" ", normalizers, [], [*bytes_to_text, strip])


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _sequence(name: str, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"type": "Sequence", name: steps} if steps else None


def _special_token(token_id: int, name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": name, **flags, "special": True}


def _charsmap(content: ModelContent) -> list[dict[str, Any]]:
    """The model's compiled normalisation."""
    charsmap = base64.b64encode(content.charsmap).decode()
    return [{"type": "Precompiled", "precompiled_charsmap": charsmap}] if charsmap else []


def _splits(content: ModelContent, entries: list[Piece], special: Iterable[str]) -> list[dict[str, Any]]:
    """What parts a text before all else: the user-defined pieces.

    And for unigram, which would take any piece that a text spells, the first character of whatever spells a special,
    control or byte piece.
    """
    given = [entry.text for entry in entries if entry.type == USER_DEFINED]
    patterns = [re.escape(text) for text in sorted(given, key=len, reverse=True)]
    if content.type == UNIGRAM:
        patterns += [
            f"{re.escape(first)}(?={'|'.join(re.escape(name[1:]) for name in names)})"
            for first, names in groupby(sorted(special), key=lambda name: name[0])
        ]
        patterns += ["<(?=0x[0-9A-F]{2}>)"] if any(entry.type == BYTE for entry in entries) else []
    if not patterns:
        return []
    return [{"type": "Split", "pattern": {"Regex": "|".join(patterns)}, "behavior": "Isolated", "invert": False}]


def _model(content: ModelContent, entries: list[Piece], unk_id: int) -> dict[str, Any]:
    if content.type == UNIGRAM:
        return _unigram(entries, unk_id)
    return _bpe(entries, unk_id, merging=content.type == BPE)


def _unigram(entries: list[Piece], unk_id: int) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": unk_id,
        "vocab": [[entry.text, entry.score] for entry in entries],
        "byte_fallback": any(entry.type == BYTE for entry in entries),
    }


def _bpe(entries: list[Piece], unk_id: int, merging: bool) -> dict[str, Any]:
    """Every way to put a piece together from two, best score first: SentencePiece merges whatever makes a piece."""
    normal = [entry for entry in entries if entry.type == NORMAL]
    known = {entry.text for entry in normal}
    merges = [
        [entry.text[:cut], entry.text[cut:]]
        for entry in sorted(normal, key=lambda entry: -entry.score)
        for cut in range(1, len(entry.text))
        if entry.text[:cut] in known and entry.text[cut:] in known
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": entries[unk_id].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": any(entry.type == BYTE for entry in entries),
        "ignore_merges": False,
        "vocab": {entry.text: token_id for token_id, entry in enumerate(entries)},
        "merges": merges if merging else [],
    }
