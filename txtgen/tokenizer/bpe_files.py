"""Byte-level BPE from the older pair of files, vocab.json and merges.txt."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from txtgen.errors import CheckpointError
from txtgen.tokenizer.huggingface import HuggingFaceTokenizer
from txtgen.tokenizer.names import SpecialNames, check_ids, parse_object

BpeFamily = Literal["gpt2", "bart", "qwen2"]
"""Whose rules cut a text before its parts become tokens."""

_QWEN2_PARTS = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""How Qwen2 cuts a text: contractions, words, single digits, signs, line ends, spaces.

Source: Qwen2's published tokenizer.json.
"""


def from_bpe_files(
    vocab_json: bytes,
    merges_txt: bytes,
    family: BpeFamily,
    names: SpecialNames,
    *,
    added: Mapping[str, Mapping[str, Any]] | None = None,
    add_prefix_space: bool = False,
    where: str = "vocab.json and merges.txt",
) -> HuggingFaceTokenizer:
    """The tokenizer of a vocab.json and a merges.txt, as a tokenizer.json.

    Args:
        vocab_json: piece -> id.
        merges_txt: a pair of pieces a line, the first merged first.
        family: whose rules cut a text.
        names: the special tokens.
        added: the tokens added later: name -> {"id": 50257, "special": True, "lstrip": ...}.
        add_prefix_space: whether a text gets a space before it.
        where: what to call the files in an error.

    Raises:
        CheckpointError: the files are not those of such a tokenizer.
        ResourceError: the tokenizers package is not installed.
    """
    vocabulary = parse_object(vocab_json, where)
    tokens = {name: {"special": True, **_PLAIN_TOKEN} for name in sorted(names.all())}
    for name, token in (added or {}).items():
        tokens[name] = {**_PLAIN_TOKEN, "special": name in tokens, **token}
        vocabulary[name] = token.get("id")
    check_ids(vocabulary, where)
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {**tokens[name], "id": token_id, "content": name}
            for name, token_id in sorted(vocabulary.items(), key=lambda item: item[1])
            if name in tokens
        ],
        "normalizer": {"type": "NFC"} if family == "qwen2" else None,
        "pre_tokenizer": _pre_tokenizer(family, add_prefix_space),
        "post_processor": _post_processor(family, names, vocabulary, add_prefix_space),
        "decoder": _byte_level(add_prefix_space),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": _merges(merges_txt, where),
        },
    }
    return HuggingFaceTokenizer(json.dumps(description, ensure_ascii=False).encode(), names, where)


_PLAIN_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _byte_level(add_prefix_space: bool, use_regex: bool = True) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def _pre_tokenizer(family: BpeFamily, add_prefix_space: bool) -> dict[str, Any]:
    if family != "qwen2":
        return _byte_level(add_prefix_space)
    split = {"type": "Split", "pattern": {"Regex": _QWEN2_PARTS}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(add_prefix_space, use_regex=False)]}


def _post_processor(
    family: BpeFamily, names: SpecialNames, vocabulary: Mapping[str, int], add_prefix_space: bool
) -> dict[str, Any] | None:
    """What puts <s> and </s> around a text of BART; the others have nothing there."""
    bos, eos = names.bos or "", names.eos or ""
    if family != "bart" or bos not in vocabulary or eos not in vocabulary:
        return None
    return {
        "type": "RobertaProcessing",
        "sep": [eos, vocabulary[eos]],
        "cls": [bos, vocabulary[bos]],
        "trim_offsets": True,
        "add_prefix_space": add_prefix_space,
    }


def _merges(content: bytes, where: str) -> list[list[str]]:
    """The pairs of a merges.txt, which may begin with its version."""
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise _damaged("its merges are not UTF-8", where) from error
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip("\r") or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise _damaged(f"line {number} of its merges is not two pieces", where)
        merges.append(pair)
    return merges


def _damaged(reason: str, where: str) -> CheckpointError:
    return CheckpointError(f"not a usable tokenizer: {reason}", where, "use the files of an undamaged model")
