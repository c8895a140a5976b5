"""Segmentations that are drawn: by the seed alone, and never of another text."""

import threading
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import DataError
from txtgen.tokenizer import train_sentencepiece

PARTS = ("jump", "look", "walk", "over", "under", "fox", "dog", "quick", "lazy", "brown")
TEXTS = [f"the {one}{two}ing {two}s\n世界 {one}er {two}ed" for one in PARTS for two in PARTS]


MODELS = {
    algorithm: train_sentencepiece(SentencePieceConfig(vocab_size=400, algorithm=algorithm), TEXTS)[0]
    for algorithm in ("unigram", "bpe")
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60), seed=st.integers(0, 2**64 - 1), nbest_size=st.sampled_from([None, 2, 16]))
def test_a_drawn_segmentation_is_of_the_same_text_and_depends_on_the_seed(model, text, seed, nbest_size):
    ids = model.sample(text, seed, 0.2, nbest_size)
    assert model.decode(ids) == text
    assert not set(ids) & set(model.control_ids.values())
    model.sample("something else", seed + 1, 0.5)
    assert model.sample(text, seed, 0.2, nbest_size) == ids


def test_segmentations_differ_and_the_likeliest_is_frequent(model):
    text = "the quickly jumping fox walked under the lazy dogs\u2581"
    drawn = Counter(tuple(model.sample(text, seed, 0.3)) for seed in range(300))
    assert len(drawn) > 20
    # As good as never anything else: of unigram models by a high power, of bpe by few lost merges.
    for rare in (10.0, 1e-9):
        same = all(model.sample(text, seed, rare) == model.encode(text) for seed in range(20))
        assert same == ((rare > 1) == (model is MODELS["unigram"]))


def test_best_segmentations_are_those_of_each_line():
    lines = "the walking\nbrown foxes\n"
    drawn = {tuple(MODELS["unigram"].sample(lines, seed, 0.1, 2)) for seed in range(100)}
    assert len(drawn) == 4


def test_threads_do_not_disturb_one_another(model):
    text = "the quickly jumping fox walked under the lazy dogs"
    alone = [model.sample(text, seed, 0.2) for seed in range(200)]
    found: dict[int, list[int]] = {}

    def draw(first: int) -> None:
        for seed in range(first, 200, 4):
            found[seed] = model.sample(text, seed, 0.2)

    threads = [threading.Thread(target=draw, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(200)] == alone


def test_characters_have_one_segmentation():
    model = train_sentencepiece(SentencePieceConfig(vocab_size=330, algorithm="char"), TEXTS)[0]
    assert not model.can_sample


def test_half_a_surrogate_pair_is_refused(model):
    assert model.can_sample
    with pytest.raises(DataError, match="half a surrogate pair"):
        model.sample("a\ud800", 1, 0.1)
