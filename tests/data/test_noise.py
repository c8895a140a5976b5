"""How texts are spoilt: nothing is lost, and the draws have the distribution that is asked for."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txtgen.data.objectives.noise import (
    cut_spans,
    delete_tokens,
    longest,
    mask_spans,
    permute_sentences,
    poisson,
    span_counts,
    span_mask,
)
from txtgen.data.order import Draws

KEYS = st.integers(0, 2**63 - 1)
MASK = 999


def t5_lengths(tokens_length, noise_density=0.15, mean_noise_span_length=3.0):
    """Lengths of inputs and targets, ends included, by the formulas of the published T5."""
    num_noise_tokens = round(tokens_length * noise_density)
    num_noise_spans = round(num_noise_tokens / mean_noise_span_length)
    return tokens_length - num_noise_tokens + num_noise_spans + 1, num_noise_tokens + num_noise_spans + 1


def test_the_lengths_are_those_of_t5():
    """568 tokens of text make 512 of input and 114 of target, as T5 was trained."""
    sentinels = np.arange(1000, 1100)
    for length in range(20, 700):
        hidden, spans = span_counts(length, 0.15, 3.0)
        assert (length - hidden + spans + 1, hidden + spans + 1) == t5_lengths(length)
    source, target = cut_spans(np.arange(568), span_mask(568, 0.15, 3.0, Draws(1)), sentinels)
    assert (len(source) + 1, len(target) + 1) == (512, 114)
    assert longest(lambda length: t5_lengths(length)[0] <= 512, 5000) == 568


@given(st.integers(1, 300), st.floats(0.01, 0.99), st.floats(1.0, 20.0), KEYS)
def test_source_and_target_together_are_the_text(length, density, mean_span, key):
    tokens = np.arange(length)
    sentinels = np.arange(1000, 1000 + length)
    hidden = span_mask(length, density, mean_span, Draws(key))
    assert (int(hidden.sum()), int((np.diff(hidden, prepend=False) & hidden).sum())) == span_counts(
        length, density, mean_span
    )
    source, target = cut_spans(tokens, hidden, sentinels)
    spans = {}
    for token in target:
        if token >= 1000:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    assert list(spans) == [token for token in source if token >= 1000] == sentinels[: len(spans)].tolist()
    assert all(spans.values())
    assert [part for token in source for part in spans.get(token, [token])] == tokens.tolist()


def test_spans_have_their_density_and_mean_length_and_lie_everywhere():
    counts, lengths = np.zeros(200), []
    for key in range(2000):
        hidden = span_mask(200, 0.15, 3.0, Draws(key))
        counts += hidden
        borders = np.flatnonzero(np.diff(hidden, prepend=False, append=False))
        lengths += (borders[1::2] - borders[::2]).tolist()
    assert counts.sum() / (200 * 2000) == pytest.approx(0.15)
    assert np.mean(lengths) == pytest.approx(3.0)
    # All ways to write 30 tokens as 10 spans are equally likely, so a length k has C(29 - k, 8) of C(29, 9) ways.
    expected = [math.comb(29 - k, 8) / math.comb(29, 9) for k in range(1, 22)]
    found = np.bincount(lengths, minlength=22)[1:22] / len(lengths)
    assert found == pytest.approx(expected, abs=0.01)
    middle = counts[20:180] / 2000
    assert np.abs(middle - 0.15).max() < 0.05


def test_poisson_draws_have_the_poisson_distribution():
    for mean in (0.5, 3.0, 90.0):
        found = np.bincount(poisson(mean, 200_000, Draws(7)), minlength=200) / 200_000
        expected = [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(len(found))]
        assert found == pytest.approx(expected, abs=0.004)
        assert (np.arange(len(found)) * found).sum() == pytest.approx(mean, rel=0.02)


@given(st.integers(1, 300), st.floats(0.0, 0.99), st.floats(1.0, 20.0), KEYS)
def test_masks_hide_their_share_and_leave_the_rest_in_order(length, ratio, mean_span, key):
    tokens = np.arange(length)
    source = mask_spans(tokens, ratio, mean_span, MASK, Draws(key))
    left = source[source != MASK]
    assert length - len(left) == round(length * ratio)
    assert (np.diff(left) > 0).all()
    assert set(left) <= set(tokens)
    # What is missing between two tokens is hidden by a mask there.
    gap = False
    following = 0
    for token in source:
        gap = gap or token == MASK
        if token != MASK:
            assert token == following or gap
            following, gap = token + 1, False
    assert following == length or gap


def test_masks_hide_poisson_spans_also_of_no_token():
    empty = masks = hidden = 0
    for key in range(1000):
        source = mask_spans(np.arange(400), 0.3, 3.0, MASK, Draws(key))
        places = np.flatnonzero(source == MASK)
        masks, hidden = masks + len(places), hidden + 400 - (len(source) - len(places))
        for place in places[(places > 0) & (places < len(source) - 1)]:
            before, after = source[place - 1], source[place + 1]
            empty += before != MASK and after != MASK and after == before + 1
    assert hidden == 1000 * 120
    assert hidden / masks == pytest.approx(3.0, rel=0.05)
    # Of those that hide nothing, the ones between two tokens are seen here: 40 of 320 places are masks.
    assert empty / masks == pytest.approx(math.exp(-3) * (280 / 320) ** 2, rel=0.1)


@given(st.integers(0, 100), st.floats(0.0, 0.9), KEYS)
def test_deleted_tokens_are_a_share(length, ratio, key):
    left = delete_tokens(np.arange(length), ratio, Draws(key))
    assert len(left) == length - round(length * ratio)
    assert (np.diff(left) > 0).all()


@given(st.lists(st.booleans(), min_size=1, max_size=60), KEYS)
def test_permuted_sentences_are_the_same_sentences(ends, key):
    tokens = np.arange(len(ends))
    found = permute_sentences(tokens, np.array(ends), Draws(key))
    assert sorted(found) == tokens.tolist()
    for before, after in itertools.pairwise(found):
        assert after == before + 1 or ends[before] or before == len(ends) - 1


def test_every_order_of_sentences_is_equally_likely():
    counts = {}
    for key in range(6000):
        order = tuple(permute_sentences(np.arange(3), np.ones(3, bool), Draws(key)))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5  # 99.9 % of a chi-square with 5


@pytest.mark.parametrize("draw", [lambda draws: draws.below(4), lambda draws: int(draws.choice(4, 1)[0])])
def test_draws_are_uniform(draw):
    counts = np.bincount([draw(Draws(key)) for key in range(4000)], minlength=4)
    assert ((counts - 1000) ** 2 / 1000).sum() < 16.3  # 99.9 % of a chi-square with 3
