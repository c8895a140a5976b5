"""Objectives that learn from text alone: whatever they make of a document, the document can be put together again."""

from collections import Counter

import numpy as np
import pytest
from data_fakes import BOS, EOS, FIM, MASK, SENTINELS, ByteTokenizer, data_config, objective_of
from hypothesis import given
from hypothesis import strategies as st

from txtgen.data import build_objective
from txtgen.data.types import IGNORE, Origin, PairRecord, TextRecord
from txtgen.errors import ConfigError

HERE = Origin(0, "x", 0)
SCRIPTS = st.text(
    st.one_of(
        st.characters(codec="utf-8", categories=["L", "N", "P"]),
        st.sampled_from(" \n.。!?।؟abcdeü世界日本語русскийعربיתहिन्दी🙂"),
    ),
    min_size=1,
    max_size=120,
)
KEYS = st.integers(0, 2**63 - 1)
SENTINEL_IDS = list(SENTINELS.values())
PREFIX, SUFFIX, MIDDLE = FIM.values()


def objective(kind, max_length=64, max_source_length=None, **settings):
    settings |= {"num_sentinels": 40} if kind == "span_corruption" else {}
    return objective_of(data_config({"path": "x"}, objective={"kind": kind, **settings}), max_length, max_source_length)


def record(text, begins=True, ends=True):
    return TextRecord(text, HERE, begins, ends)


def whole(example):
    """All tokens of a row, those of a target included."""
    return [*example.input_ids.tolist(), example.labels.tolist()[-1]]


def restored(source, target):
    """The text of a source with sentinels, in which the spans of a target take their places."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in SENTINEL_IDS:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return [part for token in source for part in spans.get(token, [token])]


def check(example, max_length, max_source_length=0):
    """What holds for every example."""
    assert 0 < len(example.input_ids) == len(example.labels) <= max_length
    assert (example.source_ids is None) == (not max_source_length)
    assert max_source_length == 0 or 0 < len(example.source_ids) <= max_source_length
    following = np.append(example.input_ids[1:], example.labels[-1])
    assert ((example.labels == IGNORE) | (example.labels == following)).all()
    assert example.labels[-1] != IGNORE


@given(SCRIPTS, KEYS, st.integers(16, 80))
def test_spans_of_pairs_restore_the_document(text, key, size):
    spans = objective("span_corruption", size, size + 7)
    assert not spans.packed
    found = []
    for example in spans(record(text), key):
        check(example, size, size + 7)
        assert example.input_ids[0] == BOS
        assert (example.source_ids[-1], example.labels[-1]) == (EOS, EOS)
        assert not example.cut
        found += restored(example.source_ids[:-1].tolist(), example.labels[:-1].tolist())
    assert bytes(found).decode() == text


@given(SCRIPTS, KEYS, st.integers(8, 80))
def test_spans_in_a_row_restore_the_document(text, key, size):
    spans = objective("span_corruption", size)
    assert (spans.packed, spans.separate) == (True, True)
    found = []
    for example in spans(record(text), key):
        check(example, size)
        tokens, known = whole(example), example.bidirectional
        assert (tokens[0], tokens[-1]) == (BOS, EOS)
        assert example.labels.tolist() == [IGNORE] * (known - 1) + tokens[known:]
        found += restored(tokens[1:known], tokens[known:-1])
    assert bytes(found).decode() == text


@pytest.mark.parametrize("source", [0, 512])
def test_a_long_text_fills_its_examples(source):
    """As T5 has it: 568 tokens of text, 512 of source with the end, 114 of target."""
    spans = objective("span_corruption", 114, 512) if source else objective("span_corruption", 200)
    examples = spans(record("a" * 5000))
    sizes = [(len(e.input_ids), len(e.source_ids) if source else 0) for e in examples]
    assert all(size == sizes[0] for size in sizes[:-1])
    assert sizes[0][0] in ((114,) if source else (199, 200))
    assert sizes[0][1] == source


@given(SCRIPTS, KEYS, st.integers(4, 60), st.booleans(), st.booleans())
def test_a_prefix_and_its_rest_are_the_document(text, key, size, begins, ends):
    prefix = objective("prefix_lm", size)
    tokens = [*[BOS] * begins, *text.encode(), *[EOS] * ends]
    found = []
    for example in prefix(record(text, begins, ends), key):
        check(example, size)
        known = example.bidirectional
        assert example.labels.tolist() == [IGNORE] * (known - 1) + whole(example)[known:]
        found += whole(example)
    assert found == tokens or (len(tokens) == 1 and not found)


@given(SCRIPTS, KEYS, st.integers(4, 60), st.integers(4, 60), st.booleans())
def test_a_source_and_its_rest_are_the_document(text, key, size, source_size, ends):
    prefix = objective("prefix_lm", size, source_size)
    tokens = [*text.encode(), *[EOS] * ends]
    found = []
    for example in prefix(record(text, ends=ends), key):
        check(example, size, source_size)
        assert example.source_ids[-1] == EOS
        found += [*example.source_ids[:-1].tolist(), *example.labels.tolist()]
    assert found == tokens or (len(tokens) == 1 and not found)


def test_every_place_of_the_cut_is_equally_likely():
    prefix = objective("prefix_lm")
    counts = Counter(prefix(record("abcdefg"), key)[0].bidirectional for key in range(7000))
    assert sorted(counts) == [1, 2, 3, 4, 5, 6, 7, 8][: len(counts)]
    expected = 7000 / len(counts)
    assert len(counts) == 8
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 24.3  # 99.9 % of chi-square with 7


@given(SCRIPTS, KEYS, st.integers(8, 60), st.floats(0.0, 1.0))
def test_prefix_middle_and_suffix_are_the_document(text, key, size, spm_rate):
    middle = objective("fill_in_middle", size, rate=1.0, spm_rate=spm_rate)
    found = b""
    for example in middle(record(text), key):
        check(example, size)
        tokens = whole(example)
        assert (tokens[0], tokens[1], tokens[-1]) == (BOS, PREFIX, EOS)
        scored = [label for label in example.labels.tolist() if label != IGNORE]
        assert scored == [token for token in tokens[1:] if token not in FIM.values()]
        behind, between = tokens.index(SUFFIX), tokens.index(MIDDLE)
        assert behind < between
        if behind == 2:  # suffix, prefix, middle
            found += bytes(tokens[between + 1 : -1]) + bytes(tokens[3:between])
        else:
            found += bytes(tokens[2:behind]) + bytes(tokens[between + 1 : -1]) + bytes(tokens[behind + 1 : between])
    if spm_rate in (0.0, 1.0) or len(text.encode()) <= size - 5:
        assert found.decode() == text


def test_some_documents_stay_as_they_are_and_some_have_the_suffix_first():
    middle = objective("fill_in_middle", rate=0.5, spm_rate=0.25)
    kinds = Counter()
    (plain,) = objective("causal_lm")(record("a text of some length"))
    for key in range(4000):
        (example,) = middle(record("a text of some length"), key)
        tokens = whole(example)
        if PREFIX not in tokens:
            assert (tokens, example.splittable) == (whole(plain), True)
            assert example.labels.tolist() == plain.labels.tolist()
        kinds["plain" if PREFIX not in tokens else "spm" if tokens[2] == SUFFIX else "psm"] += 1
    expected = {"plain": 2000, "psm": 1500, "spm": 500}
    # An empty prefix looks like the other order, so that a few more count as such.
    assert kinds["plain"] == pytest.approx(2000, abs=110)
    assert kinds["spm"] == pytest.approx(expected["spm"] + 1500 / 12, abs=110)


@given(SCRIPTS, KEYS, st.integers(6, 60))
def test_the_target_of_denoising_is_the_document(text, key, size):
    denoising = objective("denoising", size, size + 3)
    found = []
    for example in denoising(record(text), key):
        check(example, size, size + 3)
        assert (example.source_ids[-1], example.labels[-1]) == (EOS, EOS)
        target = example.labels[:-1].tolist()
        left = Counter(token for token in example.source_ids[:-1].tolist() if token != MASK)
        assert not left - Counter(target)
        assert sum(left.values()) == len(target) - round(0.3 * len(target)) or example.cut
        found += target
    assert bytes(found).decode() == text


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Is it 3.5? Yes", ["One.", " Two!", " Is it 3.5?", " Yes"]),
        ("line\nline", ["line\n", "line"]),
        ("他来了。他走了！好", ["他来了。", "他走了！", "好"]),
        ("यह है। वह है", ["यह है।", " वह है"]),
    ],
)
def test_sentences_end_as_in_their_script(text, sentences, sentence_tokenizer):
    denoising = objective_with(sentence_tokenizer, "denoising")
    tokens = np.array(sentence_tokenizer.encode(text))
    ends = denoising.sentence_ends(tokens)
    parts = np.split(tokens, np.flatnonzero(ends[:-1]) + 1)
    assert [sentence_tokenizer.decode(part.tolist()) for part in parts] == sentences


class CharacterTokenizer(ByteTokenizer):
    """Every character below U+10000 is a token, after the ids of the bytes."""

    def __len__(self):
        return 0x10000 + 400

    def encode(self, text):
        return [ord(character) + 400 for character in text]

    def decode(self, ids):
        return "".join(chr(token - 400) for token in ids if token >= 400)

    def token_bytes(self, token_id):
        return chr(token_id - 400).encode(errors="replace") if token_id >= 400 else b""


@pytest.fixture(scope="module")
def sentence_tokenizer():
    return CharacterTokenizer()


def objective_with(tokenizer, kind, **settings):
    config = data_config({"path": "x"}, objective={"kind": kind, **settings}).objective
    return build_objective(config, tokenizer, max_length=64)


def test_cuts_fall_inside_of_words_but_never_inside_of_characters():
    middle = objective("fill_in_middle", rate=1.0, spm_rate=0.0)
    text = "日本語とword"
    middles = set()
    for key in range(300):
        (example,) = middle(record(text), key)
        tokens = whole(example)
        middles.add(bytes(tokens[tokens.index(MIDDLE) + 1 : -1]).decode())
    assert {"", "本", "or", text} <= middles


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("span_corruption", r"100 control symbols, <extra_id_0> to <extra_id_99>, and the tokenizer has 40"),
        ("denoising", "1 control symbols, <mask>, and the tokenizer has 0"),
        ("fill_in_middle", "3 control symbols"),
    ],
)
def test_a_tokenizer_without_the_symbols_is_refused(kind, words, tokenizer):
    class Bare(ByteTokenizer):
        control_ids = SENTINELS

    config = data_config({"path": "x"}, objective={"kind": kind}).objective
    with pytest.raises(ConfigError, match=words):
        build_objective(config, Bare(), max_length=64)


def test_more_spans_than_sentinels_are_refused():
    with pytest.raises(ConfigError, match=r"of \d+ tokens has \d+ hidden spans, and there are 40 sentinels"):
        objective("span_corruption", 2000, 2000)


@pytest.mark.parametrize("kind", ["span_corruption", "denoising", "fill_in_middle"])
def test_examples_without_room_for_text_are_refused(kind):
    with pytest.raises(ConfigError, match="no text fits"):
        objective(kind, 1, 1 if kind == "denoising" else None)


def test_a_mixture_draws_its_parts_by_weight():
    parts = {"causal_lm": 0.5, "span_corruption": {"weight": 0.3, "num_sentinels": 40}, "prefix_lm": 0.2}
    parts = [
        {"kind": kind, **(value if isinstance(value, dict) else {"weight": value})} for kind, value in parts.items()
    ]
    data = data_config({"path": "x"}, objective={"kind": "mixture", "parts": parts})
    mixture = objective_of(data)
    text = record("some text that is long enough to be spoilt")
    outcomes = mixture.batch([text] * 8000, range(8000))
    kinds = Counter()
    for (example,) in outcomes:
        inputs = example.input_ids.tolist()
        kind = "causal_lm" if example.splittable else "prefix_lm"
        kinds["span_corruption" if set(inputs) & set(SENTINEL_IDS) else kind] += 1
    expected = {"causal_lm": 4000, "span_corruption": 2400, "prefix_lm": 1600}
    # 99.9 % of a chi-square with 2.
    assert sum((kinds[kind] - count) ** 2 / count for kind, count in expected.items()) < 13.8
    assert mixture.separate
    assert mixture.packed
    for name, part in mixture.parts.items():
        (alone,) = part(text, 5)
        assert alone.splittable == (name == "causal_lm")


def test_a_mixture_gives_records_to_those_that_read_them_and_measures_each_part_by_itself():
    parts = [{"kind": "causal_lm"}, {"kind": "chat"}]
    data = data_config({"path": "x"}, {"kind": "tsv", "path": "y"}, objective={"kind": "mixture", "parts": parts})
    mixture = objective_of(data)
    texts, pairs = record("text"), PairRecord("question", "answer", HERE)
    for key in range(20):
        one, other = mixture.batch([texts, pairs], [key, key])
        assert one[0].splittable
        assert not other[0].splittable
    assert mixture.parts["chat"].batch([texts, pairs], [0, 0])[0] == []
    assert mixture.parts["causal_lm"].batch([texts, pairs], [0, 0])[1] == []
