"""IncrementalDecoder: what it shows token by token is what decoding all of them gives."""

import io
from functools import cache

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.tokenizer import IncrementalDecoder, SentencePieceTokenizer, train_sentencepiece

CORPUS = "the quick brown fox jumps over the lazy dog\n" * 5
TEXTS = st.text() | st.lists(
    st.sampled_from(["\U0001f469\u200d\U0001f467", "漢", "é", " the", "\n", "\ufffd", "\u2581", "fox"])
).map("".join)


@cache
def tokenizer_of(kind: str) -> SentencePieceTokenizer:
    if kind == "own":
        return train_sentencepiece(SentencePieceConfig(vocab_size=300), [CORPUS])[0]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")),
        model_writer=model,
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    return SentencePieceTokenizer(model.getvalue())


@pytest.mark.parametrize("kind", ["own", "imported"])
@given(numbers=st.lists(st.integers(0, 10_000), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_tokens_make_up_the_decoded_text(kind: str, numbers: list[int]) -> None:
    tokenizer = tokenizer_of(kind)
    ids = [number % len(tokenizer) for number in numbers]
    decoder = IncrementalDecoder(tokenizer)
    for _ in range(2):  # the second time, after flush, as good as new
        text = "".join([*map(decoder.push, ids), decoder.flush()])
        assert text == tokenizer.decode(ids)


@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_nothing_shown_is_ever_taken_back(text: str) -> None:
    tokenizer = tokenizer_of("own")
    decoder = IncrementalDecoder(tokenizer)
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += decoder.push(token_id)
        assert text.startswith(shown)
    assert decoder.flush() == ""
    assert shown == text


def test_a_character_comes_when_its_last_byte_does() -> None:
    tokenizer = tokenizer_of("own")
    decoder = IncrementalDecoder(tokenizer)
    first, second, third, fourth = tokenizer.encode("\U0001f9ff")
    assert [decoder.push(token_id) for token_id in (first, second, third)] == ["", "", ""]
    assert decoder.push(tokenizer.special.eos_id) == ""
    assert decoder.push(fourth) == "\U0001f9ff"
    assert decoder.push(first) == ""
    assert decoder.flush() == "\ufffd"
