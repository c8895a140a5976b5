"""Training: every part of the sample counts, the vocabulary fits, the same texts give the same model."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import DataError
from txtgen.tokenizer import SentencePieceTokenizer, train_sentencepiece

ALGORITHMS = ("unigram", "bpe", "char")
WORDS = re.findall(r"\w+", "the of and to in that was his he it with is for as had you not be her on at by which")
RESERVED = ["<pad>", "<unk>", "<s></s>", "<|user|>", "<0x41>", "<<0x41>>"]
TEXT = " ".join(WORDS[i * i % 22] + WORDS[i * 7 % 19] for i in range(1, 3000))
DATA = Path(__file__).parents[2].parent / "shared" / "data"


def pieces(tokenizer: SentencePieceTokenizer) -> list[str]:
    return tokenizer.pieces(range(len(tokenizer)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_texts_give_the_same_model_in_silence(algorithm: str, capfd: pytest.CaptureFixture[str]) -> None:
    config = SentencePieceConfig(algorithm=algorithm, vocab_size=400)
    first, _ = train_sentencepiece(config, [TEXT])
    second, _ = train_sentencepiece(config, iter([TEXT]))
    assert first.fingerprint() == second.fingerprint()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize("text", ["zebra quagga " * 5000, "zebraquagga" * 5000], ids=["spaces", "no spaces"])
def test_long_lines_are_cut_not_dropped(algorithm: str, text: str) -> None:
    tokenizer, sample = train_sentencepiece(SentencePieceConfig(algorithm=algorithm, vocab_size=320), [text])
    assert sample.bytes_used == len(text)
    assert any(len(piece) > 4 for piece in pieces(tokenizer) if "<" not in piece)
    assert len(tokenizer.encode(text)) < len(text) / 4


@pytest.mark.parametrize("character", ["\x00", "\u2581", "\u2585"])
def test_a_line_with_a_character_that_the_trainer_refuses_still_counts(character: str) -> None:
    lines = f"zebra{character}quagga\n" * 50
    tokenizer, _ = train_sentencepiece(SentencePieceConfig(algorithm="bpe", vocab_size=320), [lines])
    assert {"zebra", "quagga"} <= set(pieces(tokenizer))
    assert tokenizer.decode(tokenizer.encode(lines)) == lines


def test_the_sample_is_bounded_and_reported() -> None:
    config = SentencePieceConfig(algorithm="char", vocab_size=400, sample_bytes=10)
    _, whole = train_sentencepiece(config, ["abcde", "fghij"])
    assert (whole.num_texts, whole.bytes_offered, whole.bytes_used, whole.complete) == (2, 10, 10, True)
    _, more = train_sentencepiece(config, ["abcde", "fghij", "k"])
    assert (more.num_texts, more.bytes_used, more.complete) == (2, 10, False)
    tokenizer, cut = train_sentencepiece(config, ["abcd", "漢漢漢"])  # 4 + 9 bytes: one character is cut away
    assert (cut.bytes_offered, cut.bytes_used, cut.complete) == (13, 10, False)
    assert "漢" in pieces(tokenizer)


def test_an_endless_corpus_is_read_only_as_far_as_the_sample_goes() -> None:
    def endless() -> object:
        while True:
            yield TEXT

    _, sample = train_sentencepiece(SentencePieceConfig(algorithm="char", sample_bytes=50_000), endless())
    assert sample.bytes_used == 50_000


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_small_corpus_gives_what_it_supports_or_says_how_much(algorithm: str) -> None:
    text = "hello world\nfoo bar\n" * 3
    tokenizer, _ = train_sentencepiece(SentencePieceConfig(algorithm=algorithm, vocab_size=5000), [text])
    largest = len(tokenizer)
    assert largest < 5000
    with pytest.raises(DataError, match="at most") as caught:
        train_sentencepiece(SentencePieceConfig(algorithm=algorithm, vocab_size=5000, exact_vocab_size=True), [text])
    advised = int(re.search(r"set it to (\d+)", caught.value.fix)[1])
    assert largest - 3 < advised <= largest
    config = SentencePieceConfig(algorithm=algorithm, vocab_size=advised, exact_vocab_size=True)
    assert len(train_sentencepiece(config, [text])[0]) == advised


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_an_exact_size_is_met(algorithm: str) -> None:
    config = SentencePieceConfig(algorithm=algorithm, vocab_size=333, exact_vocab_size=True)
    assert len(train_sentencepiece(config, [TEXT])[0]) == 333


def many_characters(number: int) -> str:
    """Text of that many different characters, the k-th less frequent than those before."""
    return "".join(chr(0x4E00 + k) * (1 + number // (k + 1)) for k in range(number))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_more_characters_than_fit_go_through_bytes(algorithm: str) -> None:
    text = many_characters(900)
    tokenizer, sample = train_sentencepiece(SentencePieceConfig(algorithm=algorithm, vocab_size=600), [text])
    assert len(tokenizer) <= 600
    assert sample.num_characters == 900
    assert 250 < sample.num_covered < 340
    kept = {piece for piece in pieces(tokenizer) if len(piece) == 1 and piece >= "\u4e00"}
    assert kept == {chr(0x4E00 + k) for k in range(sample.num_covered)}  # the most frequent ones
    assert sample.coverage == pytest.approx(sum(map(Counter(text).__getitem__, kept)) / len(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_more_characters_than_fit_are_an_error_without_bytes(algorithm: str) -> None:
    text = many_characters(900)
    options = {"algorithm": algorithm, "byte_fallback": False, "character_coverage": 1.0}
    with pytest.raises(DataError, match="set it to 908 or more"):
        train_sentencepiece(SentencePieceConfig(vocab_size=600, **options), [text])
    tokenizer, sample = train_sentencepiece(SentencePieceConfig(vocab_size=908, **options), [text])
    assert sample.num_covered == 900
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99, 1.0])
def test_character_coverage_is_met_by_the_fewest_characters(coverage: float) -> None:
    text = many_characters(200)
    config = SentencePieceConfig(algorithm="char", vocab_size=2000, character_coverage=coverage)
    _, sample = train_sentencepiece(config, [text])
    counts = sorted(Counter(text).values(), reverse=True)
    fewest = next(n for n in range(201) if sum(counts[:n]) >= coverage * len(text))
    assert sample.num_covered == fewest


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"], ["\x00\u2581\n"]])
def test_nothing_to_train_on(texts: list[str]) -> None:
    with pytest.raises(DataError, match="no text"):
        train_sentencepiece(SentencePieceConfig(), texts)


def test_half_a_surrogate_pair_in_the_corpus() -> None:
    with pytest.raises(DataError, match="surrogate"):
        train_sentencepiece(SentencePieceConfig(), ["fine", "not \ud800 fine"])


@pytest.mark.parametrize("name", ["<unk>", "</s>", "<pad>", "<|user|>", "<0x41>"])
def test_text_that_spells_a_reserved_piece_still_counts(name: str) -> None:
    text = f"{name} " * 50
    tokenizer, sample = train_sentencepiece(SentencePieceConfig(algorithm="bpe", vocab_size=320), [text])
    assert sample.coverage == 1.0
    ids = tokenizer.encode(text)
    assert not tokenizer.byte_ids.intersection(ids)
    assert not set(ids) & set(range(7))
    assert tokenizer.decode(ids) == text


@given(
    texts=st.lists(st.text(max_size=30) | st.sampled_from(RESERVED), min_size=1, max_size=4),
    algorithm=st.sampled_from(ALGORITHMS),
)
@settings(max_examples=40, deadline=None)
def test_any_corpus_gives_a_lossless_tokenizer_or_a_data_error(texts: list[str], algorithm: str) -> None:
    try:
        tokenizer, _ = train_sentencepiece(SentencePieceConfig(algorithm=algorithm, vocab_size=290), texts)
    except DataError:
        assert not set("".join(texts)) - set("\n\x00\u2581\u2585")
        return
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_nfkc_folds_but_keeps_white_space() -> None:
    config = SentencePieceConfig(normalization="nfkc", vocab_size=350)
    tokenizer, _ = train_sentencepiece(config, ["ﬁve ①\n" * 20])
    assert tokenizer.decode(tokenizer.encode("  ﬁve  ①\n\n ")) == "  five  1\n\n "
    assert "\ufb01" not in "".join(pieces(tokenizer))


def test_digits_are_single_unless_asked_otherwise() -> None:
    text = "2024 2024 2024 in 2024\n" * 50
    single, _ = train_sentencepiece(SentencePieceConfig(algorithm="bpe", vocab_size=300), [text])
    grouped, _ = train_sentencepiece(SentencePieceConfig(algorithm="bpe", vocab_size=300, split_digits=False), [text])
    assert len(single.encode("2024")) == 4
    assert len(grouped.encode("2024")) == 1


@pytest.mark.parametrize("symbol", ["", "x", "a b", "<s>", "<unk>", "<0x41>", "a\nb", "a\u2581b"])
def test_control_symbols_that_would_be_mistaken_are_refused(symbol: str) -> None:
    with pytest.raises(ValidationError):
        SentencePieceConfig(control_symbols=(symbol,))


def test_control_symbols_with_signs_that_lists_are_written_with() -> None:
    symbols = ("<a,b>", '<"c">', "<d;e>")
    tokenizer, _ = train_sentencepiece(SentencePieceConfig(vocab_size=300, control_symbols=symbols), [TEXT])
    assert tokenizer.control_ids == {symbol: 4 + k for k, symbol in enumerate(symbols)}


def test_the_smallest_vocabulary_has_room_for_one_character() -> None:
    with pytest.raises(ValidationError, match="vocab_size"):
        SentencePieceConfig(vocab_size=264)
    for algorithm in ALGORITHMS:
        tokenizer, sample = train_sentencepiece(SentencePieceConfig(algorithm=algorithm, vocab_size=265), [TEXT])
        assert len(tokenizer) == 265
        assert sample.num_covered == 1
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.skipif(not DATA.exists(), reason="the shared sets of real text are not here")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_chinese_poems_just_work(algorithm: str) -> None:
    with gzip.open(DATA / "poetry_zh" / "tang300.jsonl.gz", "rt", encoding="utf-8") as lines:
        poems = [json.loads(line)["text"] for line in lines]
    config = SentencePieceConfig(algorithm=algorithm, vocab_size=4000)
    tokenizer, sample = train_sentencepiece(config, poems)
    assert sample.coverage > 0.999
    ids = tokenizer.encode_batch(poems)
    assert [tokenizer.decode(row) for row in ids] == poems
    assert sum(map(len, ids)) < 1.1 * sum(map(len, poems))
