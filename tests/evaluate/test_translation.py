import builtins

import pytest

from txtgen.errors import ResourceError
from txtgen.evaluate import score_translations


def test_known_scores() -> None:
    pytest.importorskip("sacrebleu")
    perfect = score_translations(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert perfect.bleu == pytest.approx(100)
    assert perfect.chrf == pytest.approx(100)
    assert "tok:13a" in perfect.bleu_signature
    assert score_translations(["a b c d e f"], ["g h i j k l"]).bleu < 10


def test_tokenised_text_is_scored_as_it_stands() -> None:
    pytest.importorskip("sacrebleu")
    scores = score_translations(["ein mann , der läuft ."], ["ein mann , der läuft ."], "none")
    assert "tok:none" in scores.bleu_signature


def test_text_that_looks_tokenised_is_told_in_our_own_words(caplog) -> None:
    pytest.importorskip("sacrebleu")
    texts = ["ein mann ."] * 100
    score_translations(texts, texts, "none")
    assert not caplog.records
    score_translations(texts, texts)
    assert caplog.messages == [
        "100 texts end in a period after a space: BLEU of tokenised text is for bleu_tokenizer none"
    ]


def test_without_sacrebleu_the_error_says_what_to_install(monkeypatch) -> None:
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ResourceError, match=r"txtgen\[eval\]"):
        score_translations(["a"], ["a"])
