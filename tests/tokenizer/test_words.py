"""Tokenizers of words (WordLevel, WordPiece) and byte-level ones without a decoder: encoded and decoded as told."""

import json
from functools import cache
from typing import Any

import pytest
from hf_folders import CORPUS, TEXTS, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from txtgen.commands.tokenizer import losses
from txtgen.errors import CheckpointError
from txtgen.tokenizer import HuggingFaceTokenizer, IncrementalDecoder, SpecialNames, tokenizer_from_files

SPECIAL = ["<unk>", "<s>", "</s>"]
NAMES = SpecialNames(unk="<unk>", bos="<s>", eos="</s>")


@cache
def package_tokenizer(kind: str) -> Any:
    words = CORPUS + "do n't , it 's ? ! I 'm we 've they 're ' a . b"
    if kind == "WordLevel":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer: Any = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.decoder = decoders.WordPiece(cleanup=kind == "WordPiece")
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(words.split("\n"), trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


@cache
def tokenizer_of(kind: str) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(package_tokenizer(kind).to_str().encode(), NAMES)


KINDS = ("WordLevel", "WordPiece", "WordPiece as it is")


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_the_package(kind: str) -> None:
    tokenizer, oracle = tokenizer_of(kind), package_tokenizer(kind)
    for text in [*TEXTS, "a do n't , it 's ? I 'm we 've b", ", a", "the <think> fox", "lazy quickish"]:
        expected = oracle.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode_with_special(text) == expected, text
        if not any(name in text for name in SPECIAL):
            assert tokenizer.encode(text) == expected, text
        if tokenizer.special.unk_id not in expected:
            assert tokenizer.decode(expected) == oracle.decode(expected), text
    assert tokenizer.decode(tokenizer.encode("the \ua66e fox")) == "the \ufffd fox"
    assert losses(tokenizer)
    again = tokenizer_from_files("huggingface", tokenizer.files())
    assert [*map(list, again.encode_batch(TEXTS))] == [*map(list, tokenizer.encode_batch(TEXTS))]


@pytest.mark.parametrize("kind", KINDS)
@given(numbers=st.lists(st.integers(0, 10_000), max_size=20))
@settings(max_examples=50, deadline=None)
def test_words_shown_one_by_one_are_the_decoded_text(kind: str, numbers: list[int]) -> None:
    tokenizer = tokenizer_of(kind)
    ids = [number % len(tokenizer) for number in numbers]
    decoder = IncrementalDecoder(tokenizer)
    text = tokenizer.decode(ids)
    assert "".join([*map(decoder.push, ids), decoder.flush()]) == text
    if ids:
        assert tokenizer.offsets(ids)[-1][1] == len(text.encode())


def test_a_byte_level_model_needs_no_decoder() -> None:
    vocab, merges = byte_level(("<s>", "</s>"))
    pairs = [tuple(line.split(" ")) for line in merges.split("\n")[1:] if line]
    plain = Tokenizer(models.BPE(vocab=json.loads(vocab), merges=pairs))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for pre_tokenizer in (level, pre_tokenizers.Sequence([pre_tokenizers.Digits(), level])):
        plain.pre_tokenizer = pre_tokenizer
        tokenizer = HuggingFaceTokenizer(plain.to_str().encode(), NAMES)
        for text in TEXTS:
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert not losses(tokenizer)


@pytest.mark.parametrize("suffix", ["", "</w>"])
def test_words_in_parts_without_a_known_mark_are_refused(suffix: str) -> None:
    options = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **options))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, vocab_size=100, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS.split("\n"), trainer)
    if suffix:
        tokenizer.decoder = decoders.BPEDecoder(suffix=suffix)
    with pytest.raises(CheckpointError, match="end_of_word_suffix" if suffix else "decoder None are not known"):
        HuggingFaceTokenizer(tokenizer.to_str().encode(), NAMES)
