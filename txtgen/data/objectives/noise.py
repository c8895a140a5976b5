"""How texts are spoilt: pure functions of token ids, random draws and a few numbers."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from txtgen.data.order import Draws
from txtgen.data.types import Tokens

Mask = NDArray[np.bool_]
"""[T] bool, True where a token is hidden."""


def span_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """How many of so many tokens are hidden, and in how many spans; at least one of each.

    Source: Raffel et al. 2019, arXiv 1910.10683, random_spans_noise_mask as released.
    """
    hidden = min(max(round(length * density), 1), max(length - 1, 1))
    # Every span follows a token that is not hidden.
    return hidden, max(1, min(round(hidden / mean_span), length - hidden))


def span_mask(length: int, density: float, mean_span: float, draws: Draws) -> Mask:
    """Which tokens are hidden: spans and what stands between them have random lengths, and the text ends with a span.

    Source: as for `span_counts`.
    """
    hidden, spans = span_counts(length, density, mean_span)
    if hidden == length:
        return np.ones(length, np.bool_)
    lengths = np.stack([_segments(length - hidden, spans, draws), _segments(hidden, spans, draws)], axis=1)
    return np.repeat(np.tile([False, True], spans), lengths.ravel())


def _segments(total: int, count: int, draws: Draws) -> NDArray[np.int64]:
    """A random way to write a total as a sum of `count` numbers from 1 on, all ways being equally likely."""
    return np.diff(draws.choice(total - 1, count - 1) + 1, prepend=0, append=total)


def cut_spans(tokens: Tokens, hidden: Mask, sentinels: Tokens) -> tuple[Tokens, Tokens]:
    """The text in which the n-th sentinel stands for the n-th span, and the spans, each after its sentinel."""
    begins = hidden & ~np.concatenate([[False], hidden[:-1]])
    numbers = np.cumsum(begins) - 1
    with_gaps = np.where(begins, sentinels[numbers], tokens)[begins | ~hidden]
    inside = tokens[hidden]
    places = np.flatnonzero(begins[hidden])
    return with_gaps, np.insert(inside, places, sentinels[: len(places)])


def longest(fits: Callable[[int], bool], limit: int) -> int:
    """The greatest length up to the limit that fits, if all shorter ones do; 0 if none does."""
    length = 0
    while length < limit and fits(length + 1):
        length += 1
    return length


def poisson(mean: float, count: int, draws: Draws) -> NDArray[np.int64]:
    """Draws from the Poisson distribution; [count] int64."""
    # Nothing is beyond the last of these to the precision of a float.
    steps = np.arange(1, int(mean + 12 * math.sqrt(mean)) + 20)
    chances = np.exp(np.cumsum(np.log(mean / steps)) - mean)
    below = np.cumsum(np.concatenate([[math.exp(-mean)], chances]))
    return np.searchsorted(below, draws.shares(count), side="right")


def mask_spans(tokens: Tokens, ratio: float, mean_span: float, mask_id: int, draws: Draws) -> Tokens:
    """The text in which masks stand for spans of Poisson lengths that hide a share of the tokens; a span of no token
    puts a mask between two.

    Source: text infilling, Lewis et al. 2019, arXiv 1910.13461, section 2.2.
    """
    wanted = round(len(tokens) * ratio)
    if not wanted:
        return tokens
    lengths = np.zeros(0, np.int64)
    while lengths.sum() < wanted:
        more = poisson(mean_span, math.ceil(wanted / mean_span) + 1, draws)
        lengths = np.concatenate([lengths, more])
    spans = int(np.searchsorted(lengths.cumsum(), wanted)) + 1
    lengths = lengths[:spans]
    lengths[-1] -= lengths.sum() - wanted
    # Tokens that stay and spans in a row: any of its places may be a span, so spans never overlap.
    is_span = np.zeros(len(tokens) - wanted + spans, np.bool_)
    is_span[draws.choice(len(is_span), spans)] = True
    taken = np.ones(len(is_span), np.int64)
    taken[is_span] = lengths
    # The first token of each place; a place at the end may have none, and is a span then.
    first = np.minimum(np.cumsum(taken) - taken, len(tokens) - 1)
    return np.where(is_span, mask_id, tokens[first])


def delete_tokens(tokens: Tokens, ratio: float, draws: Draws) -> Tokens:
    """The text without a share of its tokens. Source: token deletion, as for `mask_spans`."""
    return tokens[draws.choice(len(tokens), len(tokens) - round(len(tokens) * ratio))]


def permute_sentences(tokens: Tokens, ends: Mask, draws: Draws) -> Tokens:
    """The text with its sentences in a random order; `ends` is True at the last token of each.

    Source: sentence permutation, as for `mask_spans`.
    """
    sentences = np.split(tokens, np.flatnonzero(ends[:-1]) + 1)
    return np.concatenate([sentences[number] for number in draws.permutation(len(sentences))])
