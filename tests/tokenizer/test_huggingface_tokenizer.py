"""HuggingFaceTokenizer: nothing is lost that the model keeps, nothing can be forged, bad files are refused."""

import json
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hf_folders import CORPUS, ENDOFTEXT, LLAMA, T5, TEXTS, byte_level, spm
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import CheckpointError, DataError
from txtgen.tokenizer import (
    HuggingFaceTokenizer,
    IncrementalDecoder,
    SentencePieceTokenizer,
    SpecialNames,
    from_bpe_files,
    tokenizer_from_files,
    train_sentencepiece,
)
from txtgen.tokenizer.equivalent import equivalent_json

KINDS = ("byte-level", "metaspace", "unigram", "own")
ANY_TEXT = st.lists(st.sampled_from([*TEXTS, ENDOFTEXT, "<|im_start|>", "<think>"]) | st.text(max_size=8), max_size=6)


@cache
def content_of(kind: str) -> tuple[bytes, SpecialNames]:
    """A tokenizer.json of each kind, and the names of its special tokens."""
    if kind == "byte-level":
        vocab, merges = byte_level((ENDOFTEXT,))
        names = SpecialNames(eos=ENDOFTEXT)
        made = from_bpe_files(vocab.encode(), merges.encode(), "gpt2", names)
        tokenizer = Tokenizer.from_str(made.files()["tokenizer.json"].decode())
        tokenizer.add_special_tokens(["<|im_start|>"])
        tokenizer.add_tokens(["<think>", AddedToken("né", normalized=False)])
        return tokenizer.to_str().encode(), names
    names = SpecialNames(unk="<unk>", bos="<s>", eos="</s>")
    if kind == "own":
        trained = train_sentencepiece(SentencePieceConfig(vocab_size=420), [CORPUS])[0]
        return equivalent_json(trained) or b"", SpecialNames("<pad>", "<unk>", "<s>", "</s>")
    model = spm(**(LLAMA if kind == "metaspace" else T5))
    return equivalent_json(SentencePieceTokenizer(model)) or b"", names


@cache
def tokenizer_of(kind: str) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(*content_of(kind))


def described(kind: str = "byte-level") -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(content_of(kind)[0])
    return parsed


def load(description: Any, names: SpecialNames | None = None) -> HuggingFaceTokenizer:
    names = names or SpecialNames(eos=ENDOFTEXT)
    return HuggingFaceTokenizer(json.dumps(description).encode(), names)


@pytest.mark.parametrize("kind", KINDS)
@given(parts=ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_no_text_is_a_special_token_and_nothing_else_is_lost(kind: str, parts: list[str]) -> None:
    tokenizer = tokenizer_of(kind)
    text = "".join(parts)
    ids = tokenizer.encode(text)
    special = tokenizer.special
    assert {special.pad_id, special.bos_id, special.eos_id, *tokenizer.control_ids.values()}.isdisjoint(ids)
    if kind in ("byte-level", "own"):
        assert special.unk_id not in ids
        assert tokenizer.decode(ids) == text
    assert [*map(list, tokenizer.encode_batch([text, "a"]))] == [ids, tokenizer.encode("a")]


@pytest.mark.parametrize("kind", KINDS)
@given(numbers=st.lists(st.integers(0, 10_000), max_size=30))
@settings(max_examples=100, deadline=None)
def test_text_shown_token_by_token_is_the_decoded_text(kind: str, numbers: list[int]) -> None:
    tokenizer = tokenizer_of(kind)
    ids = [number % len(tokenizer) for number in numbers]
    decoder = IncrementalDecoder(tokenizer)
    assert "".join([*map(decoder.push, ids), decoder.flush()]) == tokenizer.decode(ids)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace").removeprefix(
        " " if tokenizer.leading_space else ""
    ) == tokenizer.decode(ids)
    assert len(tokenizer.pieces(ids)) == len(tokenizer.offsets(ids)) == len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_that_of_the_tokenizers_package(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    oracle = Tokenizer.from_str(content_of(kind)[0].decode())
    for text in TEXTS:
        ids = tokenizer.encode(text)
        if tokenizer.special.unk_id not in ids:
            assert tokenizer.decode(ids) == oracle.decode(ids)
    assert len(tokenizer) == oracle.get_vocab_size()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_parsed_on_demand(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    oracle = Tokenizer.from_str(content_of(kind)[0].decode())
    for text in [*TEXTS, "<|im_start|>a<think>né", "</s></s> a"]:
        assert tokenizer.encode_with_special(text) == oracle.encode(text, add_special_tokens=False).ids


def test_missing_special_tokens_have_stand_ins() -> None:
    special = tokenizer_of("byte-level").special
    assert {special.pad_id, special.unk_id, special.bos_id, special.eos_id} == {0}
    special = tokenizer_of("metaspace").special
    assert (special.pad_id, special.unk_id, special.bos_id, special.eos_id) == (2, 0, 1, 2)
    with pytest.raises(CheckpointError, match="neither a beginning nor an end"):
        load(described(), SpecialNames(pad=ENDOFTEXT, eos="<nowhere>"))


def test_added_tokens_are_text_and_control_tokens_are_not() -> None:
    tokenizer = tokenizer_of("byte-level")
    assert set(tokenizer.control_ids) == {"<|im_start|>"}
    ids = tokenizer.encode("a<think>né")
    assert tokenizer.pieces(ids[-2:]) == ["<think>", "né"]
    assert list(map(tokenizer.token_bytes, ids[-2:])) == [b"<think>", "né".encode()]
    assert tokenizer.token_bytes(tokenizer.control_ids["<|im_start|>"]) == b""
    assert tokenizer.pieces([tokenizer.control_ids["<|im_start|>"]]) == ["<|im_start|>"]


def test_unknown_text_decodes_to_the_replacement_character() -> None:
    tokenizer = tokenizer_of("unigram")
    assert tokenizer.decode(tokenizer.encode("\ua66e a")) == "\ufffd a"
    assert tokenizer_of("metaspace").decode(tokenizer_of("metaspace").encode("\ua66e a")) == "\ua66e a"


@pytest.mark.parametrize("kind", KINDS)
def test_files_rebuild_it(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for again in (tokenizer_from_files("huggingface", tokenizer.files()), pickle.loads(pickle.dumps(tokenizer))):
        assert again.files() == tokenizer.files()
        assert again.fingerprint() == tokenizer.fingerprint()
        assert (again.special, again.control_ids, again.byte_ids) == (
            tokenizer.special,
            tokenizer.control_ids,
            tokenizer.byte_ids,
        )
        assert [*map(list, again.encode_batch(TEXTS))] == [*map(list, tokenizer.encode_batch(TEXTS))]
    assert len({tokenizer_of(other).fingerprint() for other in KINDS}) == len(KINDS)
    for name in tokenizer.files():
        lacking = {key: value for key, value in tokenizer.files().items() if key != name}
        with pytest.raises(CheckpointError, match=f"lacks its {name}"):
            tokenizer_from_files("huggingface", lacking)


def test_byte_ids() -> None:
    assert {tokenizer_of("byte-level").token_bytes(i)[0] for i in tokenizer_of("byte-level").byte_ids} == {
        *range(0x80, 0x100)
    }
    assert {tokenizer_of("metaspace").token_bytes(i)[0] for i in tokenizer_of("metaspace").byte_ids} == {*range(256)}
    assert not tokenizer_of("unigram").byte_ids


def test_settings_of_truncation_padding_and_dropout_are_left_out() -> None:
    plain = described()
    padding = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": ENDOFTEXT}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    model = {**plain["model"], "dropout": 0.9}
    tokenizer = load({**plain, "padding": padding, "truncation": truncation, "model": model})
    for text in TEXTS:
        assert tokenizer.encode(text) == tokenizer_of("byte-level").encode(text)
        assert tokenizer.encode_with_special(text) == tokenizer_of("byte-level").encode_with_special(text)


def test_a_piece_that_merges_make_is_no_special_token() -> None:
    description = described()
    vocab = description["model"]["vocab"]
    vocab["<|"], vocab["<|>"] = len(vocab) + 5, len(vocab) + 6
    description["model"]["merges"] += [["<", "|"], ["<|", ">"]]
    assert load(description).pieces(load(description).encode("<|>")) == ["<|>"]
    tokenizer = load(description, SpecialNames(eos="<|>"))
    assert tokenizer.pieces(tokenizer.encode("<|>")) == ["<|", ">"]
    description["model"]["ignore_merges"] = True
    tokenizer = load(description, SpecialNames(eos="<|>"))
    assert tokenizer.special.eos_id not in tokenizer.encode("<|>")


def test_half_a_surrogate_pair_is_an_error_with_its_place() -> None:
    tokenizer = tokenizer_of("byte-level")
    for encode in (tokenizer.encode, tokenizer.encode_with_special, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(DataError, match=r"U\+D800.*character 3"):
            encode("ab\ud800")


@pytest.mark.parametrize("wrong", [-1, 10**9])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    with pytest.raises(CheckpointError, match="outside"):
        tokenizer_of("byte-level").decode([0, wrong])


def changed(part: str, **changes: Any) -> Callable[[], Any]:
    def change() -> Any:
        description = described()
        return {**description, part: {**description[part], **changes}}

    return change


def replaced(**changes: Any) -> Callable[[], Any]:
    return lambda: {**described(), **changes}


BAD = {
    "list": lambda: [],
    "no model": replaced(model=None),
    "word piece": changed("model", type="WordPiece"),
    "no vocabulary": changed("model", vocab=None),
    "numbers": changed("model", vocab=[1, 2]),
    "merges of nothing": changed("model", merges=[["q", "zzz"]]),
    "half a merge": changed("model", merges=[["q"]]),
    "merges are text": changed("model", merges="abc"),
    "merges of numbers": changed("model", merges=[1]),
    "a giant id": changed("model", vocab={**described()["model"]["vocab"], "zz": 4 * 10**9}),
    "one id twice": changed("model", vocab={**described()["model"]["vocab"], "zz": 5}),
    "prefixes": changed("model", continuing_subword_prefix="##"),
    "suffixes": changed("model", end_of_word_suffix="</w>"),
    "no decoder": replaced(decoder=None, pre_tokenizer={"type": "Whitespace"}),
    "decoder of words": replaced(decoder={"type": "BPEDecoder", "suffix": "</w>"}),
    "decoder of CTC": replaced(decoder={"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True}),
    "decoder is text": replaced(decoder="x"),
    "empty decoder": replaced(decoder={"type": "Sequence", "decoders": []}),
    "bad regex": replaced(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False}
    ),
    "panic": replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
    "added nothing": replaced(added_tokens=[None]),
    "added text": replaced(added_tokens="x"),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(make()).encode("a text")
    assert caught.value.what
    assert caught.value.where == "tokenizer.json"
    assert caught.value.fix


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"decoder":' * 100_000])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"not JSON|nested too deep"):
        HuggingFaceTokenizer(content, SpecialNames(eos="</s>"))


def test_a_huge_file_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txtgen.tokenizer.names.MAX_JSON_BYTES", 100)
    with pytest.raises(CheckpointError, match="larger than 100 bytes"):
        HuggingFaceTokenizer(*content_of("byte-level"))


@pytest.mark.parametrize("nesting", [50, 300, 900])
def test_deep_nesting_is_refused(nesting: int) -> None:
    decoder = '{"type":"Sequence","decoders":[' * nesting + '{"type":"BPEDecoder","suffix":"</w>"}'
    content = json.dumps(described() | {"decoder": "HERE"}).replace('"HERE"', decoder + "]}" * nesting)
    with pytest.raises(CheckpointError):
        HuggingFaceTokenizer(content.encode(), SpecialNames(eos=ENDOFTEXT))


def test_a_text_that_the_model_has_no_token_for_is_told() -> None:
    description = described("unigram")
    description["model"]["unk_id"] = None
    tokenizer = load(description, SpecialNames(eos="</s>"))
    with pytest.raises(CheckpointError, match="cannot encode"):
        tokenizer.encode("\ua66e")
