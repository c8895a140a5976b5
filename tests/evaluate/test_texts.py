"""Figures about generated texts, by counting on one's fingers."""

import pytest

from txtgen.data.types import ChatRecord, Message, Origin, PairRecord, TextRecord
from txtgen.evaluate.texts import describe, distinct, memorised, openings, repeated, words
from txtgen.generator import Generation


def generation(text: str, finish_reason: str) -> Generation:
    return Generation(0, 0, "", text, (), (), 0.0, 0.0, finish_reason)


def test_words_have_no_case_and_no_punctuation() -> None:
    assert words("The cat's hat, the CAT’S 2 hats!") == ["the", "cat's", "hat", "the", "cat’s", "2", "hats"]
    assert words("「明月」何解？see") == ["明", "月", "何", "解", "see"]
    assert words("Größe naïve") == ["größe", "naïve"]


def test_distinct_counts_over_all_texts() -> None:
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 5
    assert distinct(texts, 2) == 2 / 3  # ab, ba, ab
    assert distinct([["a"]], 2) == 0.0


def test_repetition_counts_within_a_text() -> None:
    assert repeated([["a", "b"], ["a", "b"]], 2) == 0.0
    assert repeated([["a", "b", "a", "b", "a"]], 2) == 2 / 4


def test_memorised_ngrams_stand_in_the_corpus_and_within_one_document() -> None:
    corpus = [["a", "b", "c"], ["d", "e"]]
    assert memorised([["a", "b", "c", "d", "e"]], corpus, 2) == 3 / 4  # not cd
    assert memorised([["a", "b", "a", "b", "x"]], corpus, 2) == 2 / 4  # ab twice; neither ba nor bx
    assert memorised([["a"]], corpus, 2) == 0.0


def test_a_description_is_of_all_results() -> None:
    found = describe([generation("a b a b a b", "eos"), generation("c", "length"), generation("c d", "stop")])
    assert (found.texts, found.words) == (3, 3.0)
    assert found.ended == pytest.approx(2 / 3)
    assert found.distinct_1 == 4 / 9
    assert found.distinct_2 == 3 / 6
    assert found.repeated_4 == 1 / 3


def test_openings_leave_the_last_reply_the_target_and_the_rest_of_a_text_to_the_model() -> None:
    origin = Origin(0, "f", 0)
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    said = [{"role": turn.role, "content": turn.content} for turn in turns]
    chats = [ChatRecord(tuple(turns[:number]), origin) for number in range(5)]
    assert list(openings(chats)) == [said[:1], said[:1], said[:3]]
    text = "word " * 30
    others = [PairRecord("source", "target", origin), TextRecord("short", origin), TextRecord(text, origin)]
    assert list(openings(others)) == ["source", ("word " * 19).strip()]


@pytest.mark.parametrize("space", [" ", "\n", "\u3000"])
def test_an_opening_begins_with_the_first_word(space) -> None:
    texts = [space * 120 + "word " * 30, space * 120 + "short", space * 120]
    assert list(openings(TextRecord(text, Origin(0, "f", 0)) for text in texts)) == [("word " * 19).strip()]
