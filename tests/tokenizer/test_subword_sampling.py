"""Segmentations that are drawn: by the seed alone, and never of another text."""

import io
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import DataError
from txtgen.tokenizer import SentencePieceTokenizer, train_sentencepiece
from txtgen.tokenizer.segmentation import Unigram
from txtgen.tokenizer.sentencepiece_proto import NORMAL, UNUSED, _as_varint, _fields, piece_field, read_model

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


IN_A_PROCESS = """
import sys
from txtgen.tokenizer import SentencePieceTokenizer

model = SentencePieceTokenizer(open(sys.argv[1], "rb").read())
text = "the quickly jumping fox walked\\nunder the lazy dogs of 世界"
print([model.sample(text, seed, 0.2, nbest) for seed in range(20) for nbest in (None, 8)])
"""


def test_a_seed_draws_the_same_in_every_process(model, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.model)
    outputs = {
        subprocess.check_output(
            [sys.executable, "-c", IN_A_PROCESS, str(path)], env={**os.environ, "PYTHONHASHSEED": number}
        )
        for number in ("1", "2")
    }
    assert len(outputs) == 1


FOREIGN = {
    "dummy prefix, nmt_nfkc, no bytes": {},
    "bytes, spaces kept": {
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "normalization_rule_name": "identity",
        "allow_whitespace_only_pieces": True,
    },
    "space after the word": {"treat_whitespace_as_suffix": True},
    "pieces of several words": {"split_by_whitespace": False, "byte_fallback": True},
    "own symbols": {"user_defined_symbols": ["quick", "lazy d", "ick", "\n", "<b>"]},
}
"""Models unlike those that are trained here."""


@pytest.fixture(params=[(algorithm, name) for algorithm in MODELS for name in FOREIGN], ids=str, scope="module")
def foreign(request):
    algorithm, name = request.param
    sentences = [*PASSAGES, *TEXTS] * 4
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        model_type=algorithm,
        vocab_size=700,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=3,
        **FOREIGN[name],
    )
    return SentencePieceTokenizer(written.getvalue())


PASSAGES = [
    "The quick brown fox jumps over the lazy dog, and the lazy dog sleeps.",
    "Der schnelle braune Fuchs springt über den faulen Hund; größere Hunde schlafen.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "秦川雄帝宅，函谷壯皇居。綺殿千尋起，離宮百雉餘。",
    "素早い茶色の狐がのろまな犬を飛び越える。",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    "  two  spaces,   three\t\ttabs \n\n a line \r\n <b>quick</b> lazy dogs  ",
    "👩‍👩‍👧 family 🏳️‍🌈 flags 🎉🎉 e\u0301 café ﬁne ½ ①",
    "rare: ↯ ꙮ 𝔘 \u2581 \u0000 \ufffd \U0010ffff; <s> </s> <unk> <0x41>",
    "",
    " ",
    "\n",
]


def best_of(model, text):
    """By a power so high that nothing but the likeliest is drawn, or without leaving a merge out."""
    unigram = isinstance(model._segmentations, Unigram)
    return [model.sample(text, 1, 1e6), model.sample(text, 2, 1e6, 4)] if unigram else [model.sample(text, 1, 1e-300)]


@pytest.mark.parametrize("text", PASSAGES)
def test_the_likeliest_segmentation_is_that_of_sentencepiece(foreign, text):
    for found in best_of(foreign, text):
        assert found == foreign.encode(text)


def test_the_likeliest_segmentation_of_models_trained_here(model):
    for text in [*PASSAGES, *TEXTS]:
        assert all(found == model.encode(text) for found in best_of(model, text))


def test_a_vocabulary_with_other_ids_is_drawn_from_alike():
    model = MODELS["unigram"]
    pieces = model.pieces(range(len(model)))
    kept = [piece for number, piece in enumerate(pieces) if number < 4 or number % 3]
    vocabulary = {piece: number for number, piece in enumerate([*reversed(kept), ">>fra<<", "ꙮꙮ"])}
    other = SentencePieceTokenizer(model.model, vocabulary=vocabulary)
    for text in [*PASSAGES, *TEXTS, ">>fra<<the fox", "</s> ꙮꙮ"]:
        assert all(found == other.encode(text) for found in best_of(other, text))


def test_unused_pieces_lead_to_others_and_are_not_drawn(model):
    pieces = read_model(model.model).pieces
    unused = [number for number, piece in enumerate(pieces) if piece.type == NORMAL][::3]
    changed = [replace(piece, type=UNUSED) if number in unused else piece for number, piece in enumerate(pieces)]
    rest = [(number, content) for number, content in _fields(model.model) if number > 1]
    specs = b"".join(bytes([number << 3 | 2]) + _as_varint(len(content)) + content for number, content in rest)
    fewer = SentencePieceTokenizer(b"".join(map(piece_field, changed)) + specs)
    for text in [*PASSAGES, *TEXTS]:
        assert all(found == fewer.encode(text) for found in best_of(fewer, text))
        assert not {*unused} & {*fewer.sample(text, 1, 0.3)}


def chi_square_z(ours: Counter, theirs: Counter) -> float:
    """How far two samples of one size are from a common distribution, in standard deviations.

    Source: Wilson and Hilferty 1931.
    """
    pairs = [(ours[one], theirs[one]) for one in {*ours, *theirs}]
    often = [pair for pair in pairs if sum(pair) >= 20]
    rare = [pair for pair in pairs if sum(pair) < 20]
    often.append((sum(own for own, _ in rare), sum(other for _, other in rare)))
    statistic = sum((own - other) ** 2 / (own + other) for own, other in often if own + other)
    scale = 2 / (9 * (len(often) - 1))
    return ((statistic / (len(often) - 1)) ** (1 / 3) - (1 - scale)) / math.sqrt(scale)


DRAWS = 3000


@pytest.mark.parametrize("nbest_size", [None, 6])
@pytest.mark.parametrize("alpha", [0.1, 0.5])
@pytest.mark.parametrize("text", ["the quickly jumping fox", "世界 looker 世ꙮꙮ界", "  walks\nundered  "])
def test_the_distribution_is_that_of_sentencepiece(model, text, alpha, nbest_size):
    """Theirs differs in every process: a true difference of 0 fails once in a million million times."""
    ours = Counter(tuple(model.sample(text, seed, alpha, nbest_size)) for seed in range(DRAWS))
    theirs = Counter()
    sampling = {"enable_sampling": True, "alpha": alpha, "nbest_size": nbest_size or -1}
    lines = text.splitlines(keepends=True) if nbest_size else [text]
    for _ in range(DRAWS):
        theirs[tuple(token for line in lines for token in model._processor.encode(line, **sampling))] += 1
    assert len(ours) > 3
    assert chi_square_z(ours, theirs) < 7
    other = Counter(tuple(model.sample(text, seed, 3 * alpha, nbest_size)) for seed in range(DRAWS))
    assert chi_square_z(ours, other) > 7


def test_the_best_segmentations_are_those_of_sentencepiece():
    model = MODELS["unigram"]
    text = "the quickly jumping fox"
    theirs = {tuple(ids) for ids in model._processor.nbest_encode(text, nbest_size=12)}
    assert {tuple(model.sample(text, seed, 0.01, 12)) for seed in range(400)} == theirs


def test_characters_have_one_segmentation():
    model = train_sentencepiece(SentencePieceConfig(vocab_size=330, algorithm="char"), TEXTS)[0]
    assert not model.can_sample


def test_half_a_surrogate_pair_is_refused(model):
    assert model.can_sample
    with pytest.raises(DataError, match="half a surrogate pair"):
        model.sample("a\ud800", 1, 0.1)
