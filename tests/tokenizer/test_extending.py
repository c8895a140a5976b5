"""Tokenizers with more tokens, and where the rows of new tokens come from."""

import pickle

import pytest
from hf_folders import LLAMA, T5, spm
from hypothesis import given
from hypothesis import strategies as st

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import CheckpointError, ConfigError
from txtgen.tokenizer import SentencePieceTokenizer, extended, row_origins, tokenizer_from_files, train_sentencepiece

TEXT = ["the cat sat on the mat and the dog ran after the cat.\n"] * 50
SYMBOLS, PIECES = ("<|narrator|>",), ("New York", " the cat", "猫", "zq")


def trained(algorithm: str, size: int = 300, texts=TEXT) -> SentencePieceTokenizer:
    return train_sentencepiece(SentencePieceConfig(algorithm=algorithm, vocab_size=size), texts)[0]


OLD = {name: trained(name) for name in ("unigram", "bpe", "char")} | {"llama": SentencePieceTokenizer(spm(**LLAMA))}
NEW = {name: extended(tokenizer, SYMBOLS, PIECES) for name, tokenizer in OLD.items()}


@pytest.mark.parametrize("name", OLD)
def test_old_tokens_keep_their_ids_and_new_ones_come_behind(name) -> None:
    old, new = OLD[name], NEW[name]
    count = len(old)
    assert len(new) == count + 5
    assert new.pieces(range(count)) == old.pieces(range(count))
    assert new.special == old.special
    assert new.control_ids == {**old.control_ids, "<|narrator|>": count}
    assert new.token_bytes(count) == b""
    assert [new.token_bytes(count + 1 + i).decode() for i in range(4)] == list(PIECES)
    assert count + 1 in new.encode("in New York, zqzq")
    assert new.encode("in New York, zqzq").count(count + 4) == 2
    assert count not in new.encode("<|narrator|> said")  # no text can forge it
    assert count in new.encode_with_special("<|narrator|> said")
    if name != "llama":  # without a space before the text, what has no new piece is as it was
        assert new.encode("dog and mat") == old.encode("dog and mat")
    for again in (pickle.loads(pickle.dumps(new)), tokenizer_from_files(new.kind, new.files())):
        assert again.encode("the cat in New York") == new.encode("the cat in New York")
        assert again.fingerprint() == new.fingerprint() != old.fingerprint()


@pytest.mark.parametrize("name", OLD)
@given(
    parts=st.lists(st.sampled_from([*PIECES, *SYMBOLS, "the ", "\u2581", "cat\n"]) | st.text(max_size=4), max_size=6)
)
def test_every_text_comes_back_as_before(name, parts) -> None:
    text = "".join(parts)
    old, new = OLD[name], NEW[name]
    expected = text if name != "llama" else old.decode(old.encode(text))
    assert new.decode(new.encode(text)) == expected
    assert [ids.tolist() for ids in new.encode_batch([text])] == [new.encode(text)]


def test_what_cannot_be_added_is_told() -> None:
    old = OLD["unigram"]
    assert extended(old, (), ()) is old
    for symbols, pieces in ((["<|user|>"], []), ([], ["a"])):
        with pytest.raises(ConfigError, match="already"):
            extended(old, symbols, pieces)
    drops_spaces = SentencePieceTokenizer(spm(**T5))
    with pytest.raises(ConfigError, match="never write"):
        extended(drops_spaces, [], ["a  b"])
    assert len(drops_spaces) in extended(drops_spaces, [], ["New York"]).encode("to New York")
    ids = {piece: number for number, piece in enumerate(SentencePieceTokenizer(spm(**T5)).pieces(range(40)))}
    with pytest.raises(CheckpointError, match="only a SentencePiece model"):
        extended(SentencePieceTokenizer(spm(**T5), "m", ids), ["<|x|>"], [])


def test_rows_of_new_tokens_come_from_what_spelled_them() -> None:
    old, new = OLD["bpe"], NEW["bpe"]
    origins = row_origins(old, new)
    count = len(old)
    assert origins[:count] == [[token] for token in range(count)]
    assert origins[count] == []
    assert origins[count + 2] == old.encode(" the cat")
    assert origins[count + 3] == [old.encode("猫")[i] for i in range(3)]  # bytes


def test_another_tokenizer_is_mapped_by_what_its_tokens_stand_for() -> None:
    old = OLD["unigram"]
    new = trained("bpe", 310, ["a dog and a fox sat in the sun\n"] * 50)
    origins = row_origins(old, new)
    assert len(origins) == len(new)
    for token, found in enumerate(origins):
        if token in new.byte_ids:
            assert [old.pieces(found), token in old.byte_ids or found[0] in old.byte_ids] == [new.pieces([token]), True]
        elif new.token_bytes(token):
            assert b"".join(old.token_bytes(each) for each in found) == new.token_bytes(token)
            assert len(found) == 1 or new.pieces([token])[0] not in old.pieces(range(len(old)))
        else:
            assert old.pieces(found) == new.pieces([token])
