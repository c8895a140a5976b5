"""SentencePieceTokenizer with a vocabulary of its own, and special tokens parsed in a text."""

import pickle
from collections.abc import Mapping

import pytest
from hf_folders import CORPUS, LLAMA, T5, TEXTS, spm
from hypothesis import given, settings
from hypothesis import strategies as st

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import CheckpointError, DataError
from txtgen.tokenizer import (
    IncrementalDecoder,
    SentencePieceTokenizer,
    SpecialNames,
    tokenizer_from_files,
    train_sentencepiece,
)

PLAIN = SentencePieceTokenizer(spm(**LLAMA))
PIECES = PLAIN.pieces(range(len(PLAIN)))
SHUFFLED = {piece: token_id for token_id, piece in enumerate(sorted(PIECES, key=lambda piece: piece[::-1]), start=3)}
MAPPED = SentencePieceTokenizer(spm(**LLAMA), "m", {**SHUFFLED, "<pad>": 0, ">>fra<<": 1, "<|user|>": 2})
ANY_TEXT = st.lists(st.sampled_from([*TEXTS, "<|user|>", "<pad>", ">>fra<<"]) | st.text(max_size=6), max_size=6)


def reserved(tokenizer: SentencePieceTokenizer) -> set[int]:
    special = tokenizer.special
    return {special.pad_id, special.bos_id, special.eos_id, special.unk_id, *tokenizer.control_ids.values()}


@given(parts=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_the_pieces_are_the_same_and_the_ids_the_vocabulary_s(parts: list[str]) -> None:
    text = "a" + "".join(parts)
    ids = MAPPED.encode(text)
    assert MAPPED.pieces(ids) == PLAIN.pieces(PLAIN.encode(text))
    assert MAPPED.decode(ids) == PLAIN.decode(PLAIN.encode(text))
    assert [*map(list, MAPPED.encode_batch([text, text]))] == [ids, ids]
    assert reserved(MAPPED).isdisjoint(ids)
    decoder = IncrementalDecoder(MAPPED)
    assert "".join([*map(decoder.push, ids), decoder.flush()]) == MAPPED.decode(ids)


def test_entries_that_the_model_lacks_are_control_symbols() -> None:
    assert len(MAPPED) == len(PLAIN) + 3
    assert MAPPED.control_ids == {">>fra<<": 1, "<|user|>": 2}
    assert MAPPED.special.pad_id == 0
    assert MAPPED.special.bos_id == SHUFFLED["<s>"]
    assert MAPPED.special.eos_id == SHUFFLED["</s>"]
    assert MAPPED.special.unk_id == SHUFFLED["<unk>"]
    assert MAPPED.decode([1, 2, SHUFFLED["a"], 0]) == "a"
    assert len(MAPPED.byte_ids) == 256


def test_entries_that_the_names_do_not_list_are_text() -> None:
    vocabulary = {**SHUFFLED, "<pad>": 0, "\u2581Haus": 1, "<|user|>": 2}
    names = SpecialNames("<pad>", "<unk>", None, "</s>", ("<|user|>",))
    tokenizer = SentencePieceTokenizer(spm(**LLAMA), "m", vocabulary, names)
    assert tokenizer.control_ids == {"<|user|>": 2, "<s>": SHUFFLED["<s>"]}
    assert tokenizer.decode([SHUFFLED["a"], 1]) == "a Haus"
    assert tokenizer.special.bos_id == tokenizer.special.eos_id


def test_pieces_without_an_id_are_unknown() -> None:
    model = spm(**T5)
    plain = SentencePieceTokenizer(model)
    lacking = {piece: i for i, piece in enumerate(plain.pieces(range(len(plain)))) if piece != "b"}
    tokenizer = SentencePieceTokenizer(model, "m", lacking)
    ids = tokenizer.encode("a b")
    assert ids[-1] == tokenizer.special.unk_id
    assert tokenizer.decode(ids) == "a \ufffd"


def test_a_language_at_the_beginning_is_a_token() -> None:
    assert MAPPED.encode(">>fra<<a") == [1, *MAPPED.encode("a")]
    assert [*map(list, MAPPED.encode_batch(["a", ">>fra<< a"]))] == [MAPPED.encode("a"), [1, *MAPPED.encode(" a")]]
    for text in (" >>fra<<", "a>>fra<<", ">>deu<<", ">>fra<", ">>", "<|user|>"):
        assert reserved(MAPPED).isdisjoint(MAPPED.encode(text))
    plain = train_sentencepiece(SentencePieceConfig(vocab_size=420, control_symbols=(">>fra<<",)), [CORPUS])[0]
    assert not {*plain.control_ids.values()} & {*plain.encode(">>fra<<a")}


@pytest.mark.parametrize("tokenizer", [PLAIN, MAPPED], ids=["plain", "mapped"])
def test_files_rebuild_it(tokenizer: SentencePieceTokenizer) -> None:
    for again in (tokenizer_from_files("sentencepiece", tokenizer.files()), pickle.loads(pickle.dumps(tokenizer))):
        assert again.files() == tokenizer.files()
        assert again.fingerprint() == tokenizer.fingerprint()
        assert (again.special, again.control_ids) == (tokenizer.special, tokenizer.control_ids)
        assert [*map(list, again.encode_batch(TEXTS))] == [*map(list, tokenizer.encode_batch(TEXTS))]
    assert PLAIN.fingerprint() != MAPPED.fingerprint()


def test_special_tokens_are_parsed_on_demand() -> None:
    user, end, start = 2, MAPPED.special.eos_id, MAPPED.special.bos_id
    text = "<s><|user|>a</s> b<|user|>"
    after = [SHUFFLED["\u2581"], SHUFFLED["b"]]
    assert MAPPED.encode_with_special(text) == [start, user, SHUFFLED["a"], end, *after, user]
    assert MAPPED.encode_with_special("a<|user") == MAPPED.encode("a<|user")
    assert MAPPED.encode_with_special("a<|user|>\u2581") == [*MAPPED.encode("a"), user, SHUFFLED["\u2581"]]
    assert MAPPED.encode_with_special("") == []
    with pytest.raises(DataError, match=r"U\+D800"):
        MAPPED.encode_with_special("<s>\ud800")


def test_special_tokens_of_a_model_trained_here_are_parsed_too() -> None:
    own = train_sentencepiece(SentencePieceConfig(vocab_size=420), [CORPUS])[0]
    user, assistant = own.control_ids["<|user|>"], own.control_ids["<|assistant|>"]
    parsed = own.encode_with_special("<|user|> a\u2581\n<|assistant|></s>")
    assert parsed == [user, *own.encode(" a\u2581\n"), assistant, own.special.eos_id]


def test_a_model_that_drops_spaces_puts_one_after_every_special_token() -> None:
    tokenizer = SentencePieceTokenizer(spm(**T5))
    a, end = tokenizer.encode("a"), tokenizer.special.eos_id
    assert tokenizer.encode_with_special("a</s>a </s>  a") == [*a, end, *a, end, *a]


@pytest.mark.parametrize(
    "vocabulary",
    [
        {**SHUFFLED, "x": -1},
        {**SHUFFLED, "x": 10**9},
        {**SHUFFLED, "x": True},
        {**SHUFFLED, "x": "5"},
        {**SHUFFLED, "x": SHUFFLED["a"]},
        {piece: i for piece, i in SHUFFLED.items() if piece != "<unk>"},
        {piece: i for piece, i in SHUFFLED.items() if piece not in ("<s>", "</s>")},
        {},
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(vocabulary: Mapping[str, int]) -> None:
    with pytest.raises(CheckpointError) as caught:
        SentencePieceTokenizer(spm(**LLAMA), "the file", vocabulary)
    assert caught.value.where == "the file"
    assert caught.value.fix
