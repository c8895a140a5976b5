"""SentencePieceTokenizer: nothing is lost, nothing can be forged, bad models are refused."""

import hashlib
import io
import pickle
import struct
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import CheckpointError, DataError
from txtgen.tokenizer import SentencePieceTokenizer, load_tokenizer, tokenizer_from_files, train_sentencepiece

CORPUS = (
    "The quick brown fox jumps over the lazy dog, again and again.\n\n  Twelve  spaces,\tone tab.\n"
    "床前明月光,疑是地上霜。\n안녕하세요 세계\nif x:\n    return [x] * 12345\nréponse café e\u0301\n"
) * 4
NASTY = [
    *(
        "\u2581",
        "\u2581\u2581",
        "\u2585",
        "\x00",
        "\r",
        "\r\n",
        "\n",
        "\x0b",
        "\x1c",
        "\x85",
        "\u2028",
        "\ufeff",
        "\ufffd",
    ),
    *(
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "  ",
        "     ",
        " ",
        "\t",
        "e\u0301",
        "\u1100\u1161\u11a8",
        "한국",
        "漢字",
    ),
    *(
        "\ue000",
        "\U0010ffff",
        "\ufffe",
        "ﬁ",
        "①",
        "<|user|>",
        "<|assistant|>",
        "</s>",
        "<s>",
        "<pad>",
        "<unk>",
        "<0x41>",
    ),
    *("<0x0A>", "The quick", "{content}", "\u202e", "12345"),
]
TEXTS = st.lists(st.sampled_from(NASTY) | st.text(max_size=8), max_size=8).map("".join)
ALGORITHMS = ("unigram", "bpe", "char")


@cache
def trained(algorithm: str, byte_fallback: bool = True) -> SentencePieceTokenizer:
    config = SentencePieceConfig(algorithm=algorithm, vocab_size=380, byte_fallback=byte_fallback)
    return train_sentencepiece(config, [CORPUS])[0]


@cache
def imported() -> SentencePieceTokenizer:
    """A model with SentencePiece's own defaults: dummy prefix, nmt_nfkc, no padding."""
    return SentencePieceTokenizer(trained_elsewhere())


def trained_elsewhere(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")),
        model_writer=model,
        **{"vocab_size": 90, "hard_vocab_limit": False, "minloglevel": 3, **options},
    )
    return model.getvalue()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_every_text_comes_back(algorithm: str, text: str) -> None:
    tokenizer = trained(algorithm)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    reserved = {0, 1, 2, 3, *tokenizer.control_ids.values()}
    assert not reserved.intersection(ids)
    assert all(0 <= token_id < len(tokenizer) for token_id in ids)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(text=TEXTS)
@settings(max_examples=50, deadline=None)
def test_tokens_cover_the_bytes_of_the_text(algorithm: str, text: str) -> None:
    tokenizer = trained(algorithm)
    ids = tokenizer.encode(text)
    content = text.encode()
    assert [content[start:end] for start, end in tokenizer.offsets(ids)] == list(map(tokenizer.token_bytes, ids))
    assert len(tokenizer.pieces(ids)) == len(ids)


@given(texts=st.lists(TEXTS, max_size=5))
@settings(max_examples=50, deadline=None)
def test_batch_equals_one_by_one(texts: list[str]) -> None:
    for tokenizer in (trained("unigram"), trained("bpe"), imported()):
        assert [*map(list, tokenizer.encode_batch(texts))] == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_newline_is_a_token_of_its_own(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    (newline,) = tokenizer.encode("\n")
    assert [i for i in range(len(tokenizer)) if "\n" in tokenizer.pieces([i])[0]] == [newline]
    assert tokenizer.encode(CORPUS).count(newline) == CORPUS.count("\n")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_special_and_control_ids(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    special = tokenizer.special
    assert (special.pad_id, special.unk_id, special.bos_id, special.eos_id) == (0, 1, 2, 3)
    assert tokenizer.control_ids == {"<|system|>": 4, "<|user|>": 5, "<|assistant|>": 6}
    assert tokenizer.decode(range(7)) == ""
    assert tokenizer.decode([2, *tokenizer.encode("a"), 5, *tokenizer.encode("b"), 3]) == "ab"
    assert len(tokenizer.byte_ids) == 256
    assert sorted(map(tokenizer.token_bytes, tokenizer.byte_ids)) == [bytes([byte]) for byte in range(256)]


def test_space_is_a_piece_of_the_char_model() -> None:
    tokenizer = trained("char")
    assert tokenizer.pieces(tokenizer.encode("a b")) == ["a", "\u2581", "b"]


def test_a_control_symbol_of_ordinary_characters_cannot_be_typed() -> None:
    for algorithm in ALGORITHMS:
        config = SentencePieceConfig(algorithm=algorithm, vocab_size=380, control_symbols=("fox", "the", "§§"))
        tokenizer, _ = train_sentencepiece(config, [CORPUS])
        text = "the fox §§ thefox"
        ids = tokenizer.encode(text)
        assert not set(ids).intersection(tokenizer.control_ids.values())
        assert tokenizer.decode(ids) == text


def test_without_byte_fallback_an_unknown_character_becomes_a_replacement_character() -> None:
    tokenizer = trained("unigram", byte_fallback=False)
    assert tokenizer.decode(tokenizer.encode("The \u2581\U0001f9ff fox")) == "The \ufffd\ufffd fox"
    assert tokenizer.special.unk_id in tokenizer.encode("\u2581")
    assert tokenizer.decode(tokenizer.encode("The fox")) == "The fox"


@pytest.mark.parametrize("text", ["\ud800", "abc\udfff", "\u2581\ud800"])
def test_half_a_surrogate_pair_is_an_error_with_its_place(text: str) -> None:
    tokenizer = trained("unigram")
    for encode in (lambda: tokenizer.encode(text), lambda: tokenizer.encode_batch(["ok", text])):
        with pytest.raises(DataError, match="surrogate"):
            encode()
    with pytest.raises(DataError, match="character 4 of the text"):
        tokenizer.encode("abc\ud900d")


def test_bytes_that_are_no_text_are_replaced() -> None:
    tokenizer = trained("unigram")
    emoji = tokenizer.encode("\U0001f9ff")
    assert len(emoji) == 4
    assert tokenizer.decode(emoji[:2]) == "\ufffd"
    assert tokenizer.decode([*emoji[:2], *tokenizer.encode("a")]) == "\ufffda"


@pytest.mark.parametrize("wrong", [-1, 380, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(wrong: int) -> None:
    tokenizer = trained("unigram")
    for method in (tokenizer.decode, tokenizer.pieces, tokenizer.offsets):
        with pytest.raises(CheckpointError, match=f"token {wrong} is outside"):
            method([5, wrong])
    with pytest.raises(CheckpointError):
        tokenizer.token_bytes(wrong)


def test_rebuilt_from_its_files_and_sent_to_another_process() -> None:
    tokenizer = trained("unigram")
    copies = [tokenizer_from_files("sentencepiece", tokenizer.files()), pickle.loads(pickle.dumps(tokenizer))]
    for copy in copies:
        assert copy.encode(CORPUS) == tokenizer.encode(CORPUS)
        assert copy.special == tokenizer.special
        assert copy.fingerprint() == tokenizer.fingerprint()
    assert tokenizer.fingerprint() == hashlib.sha256(tokenizer.files()["tokenizer.model"]).hexdigest()
    assert tokenizer.fingerprint() != trained("bpe").fingerprint()


def test_an_imported_model_keeps_its_ways_but_not_its_leading_space() -> None:
    tokenizer = imported()
    assert tokenizer.leading_space
    ids = tokenizer.encode("The fox")
    assert tokenizer.token_bytes(ids[0]).startswith(b" ")
    assert tokenizer.decode(ids) == "The fox"
    starts_and_ends = tokenizer.offsets(ids)
    assert starts_and_ends[0][0] == 0
    assert starts_and_ends[-1][1] == len("The fox")
    assert b"".join(b"The fox"[start:end] for start, end in starts_and_ends) == b"The fox"


@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_no_text_forges_the_special_tokens_of_an_imported_model(text: str) -> None:
    tokenizer = imported()
    special = tokenizer.special
    assert not {special.bos_id, special.eos_id, special.pad_id}.intersection(tokenizer.encode(text))


def test_missing_special_ids_of_an_imported_model_have_substitutes() -> None:
    tokenizer = imported()
    assert (tokenizer.special.pad_id, tokenizer.special.bos_id, tokenizer.special.eos_id) == (2, 1, 2)
    no_bos = SentencePieceTokenizer(trained_elsewhere(bos_id=-1, eos_id=1, unk_id=2, pad_id=0)).special
    assert (no_bos.pad_id, no_bos.bos_id, no_bos.eos_id, no_bos.unk_id) == (0, 1, 1, 2)
    no_eos = SentencePieceTokenizer(trained_elsewhere(eos_id=-1)).special
    assert (no_eos.bos_id, no_eos.eos_id) == (1, 1)


def field(number: int, content: bytes) -> bytes:
    """One field of a protocol buffer with a length."""
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def model_of(*pieces: tuple[bytes, int]) -> bytes:
    """A .model file with pieces of a type: 1 normal, 2 unknown, 3 control, 4 user-defined."""
    return b"".join(
        field(1, field(1, piece) + b"\x15" + struct.pack("<f", 0.0) + bytes([3 << 3, kind])) for piece, kind in pieces
    )


UNK, BOS, EOS, A = (b"<unk>", 2), (b"<s>", 3), (b"</s>", 3), (b"a", 1)


def test_a_handmade_model_is_usable() -> None:
    tokenizer = SentencePieceTokenizer(model_of(UNK, BOS, EOS, A, ("\u2581".encode(), 1)))
    assert tokenizer.encode("a") == [4, 3]
    assert tokenizer.decode([1, 4, 3, 2]) == "a"


def test_an_end_token_that_is_a_piece_of_text_does_not_count() -> None:
    tokenizer = SentencePieceTokenizer(model_of(UNK, BOS, (b"</s>", 4), A))
    assert tokenizer.special.eos_id == tokenizer.special.bos_id == 1
    assert 2 in tokenizer.encode("a</s>")


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (b"", "empty"),
        (b"not a model at all, but a long enough text", "damaged, or something else"),
        (model_of(UNK, BOS, EOS, A)[:-3], "damaged, or something else"),
        (b"\x80\x04\x95" * 1000, "not a usable SentencePiece model"),
        (model_of(BOS, EOS, A), "no piece for unknown text"),
        (model_of(UNK, A), "neither a beginning nor an end"),
        (model_of(UNK, BOS, EOS, (b"x" * 10_000_000, 1)), "far too long"),
        (model_of(UNK, BOS, EOS, (b"\xff\xfe", 1)), "not UTF-8"),
        (model_of(UNK, BOS, EOS, (b"a\x00b", 1)), "NUL"),
        (model_of(UNK, BOS, EOS, A, A), "twice"),
    ],
)
def test_a_bad_model_is_refused_in_plain_words(
    model: bytes, complaint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.model"
    path.write_bytes(model)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_tokenizer(path)
    assert caught.value.where == str(path)
    assert "INTERNAL" not in str(caught.value)
    with pytest.raises(CheckpointError, match=complaint):
        tokenizer_from_files("sentencepiece", {"tokenizer.model": model})
    assert capfd.readouterr().err == ""


def test_every_cut_of_a_model_is_refused_or_still_a_model() -> None:
    model = trained("char").files()["tokenizer.model"]
    for length in range(0, len(model), 97):
        try:
            SentencePieceTokenizer(model[:length]).encode("The fox")
        except CheckpointError as error:
            assert "SentencePiece model" in str(error)  # noqa: PT017


def test_files_that_are_not_there_or_not_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such"):
        load_tokenizer(tmp_path / "none.model")
    with pytest.raises(CheckpointError, match="folder"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="'wordlist'"):
        tokenizer_from_files("wordlist", {})
    for files in ({}, {"tokenizer.model": "text"}):
        with pytest.raises(CheckpointError, match="lacks"):
            tokenizer_from_files("sentencepiece", files)
