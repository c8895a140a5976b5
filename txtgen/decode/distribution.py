"""The samplers: they sharpen a distribution, or cut a part of it off. Scores are as in `filters`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from txtgen.config.decoding import SampleSettings
from txtgen.config.decoding_values import SamplerName
from txtgen.decode.filters import FORBIDDEN

MOST_FOR_TOP_H = 100
"""Tokens that top-h looks at."""

Sampler = Callable[[Tensor, Any, Tensor], Tensor]
"""From scores [R,V], a setting, and a number in [0, 1) for each row to scores [R,V]."""


def shape_distribution(scores: Tensor, config: SampleSettings, chances: Tensor | None = None) -> Tensor:
    """All that is set, in the order of `config.samplers`; each sees what the one before left.

    chances: [R], a random number in [0, 1) for each row; None: what happens by chance does not happen.
    """
    lots = scores.new_ones(len(scores)) if chances is None else chances
    for name in config.samplers:
        if config.is_set(name):
            scores = SAMPLERS[name](scores, getattr(config, name), lots)
    return scores


def apply_temperature(scores: Tensor, temperature: float) -> Tensor:
    """Scores divided by the temperature: below 1 sharpens, above 1 flattens.

    The best score becomes 0, which leaves the distribution as it is and keeps tiny temperatures from
    overflowing.
    """
    smallest = torch.finfo(scores.dtype).tiny
    return (scores - scores.amax(-1, keepdim=True)) / max(temperature, smallest)


def keep_top_n_sigma(scores: Tensor, n: float) -> Tensor:
    """Keeps tokens that score at most n standard deviations, of the possible tokens' scores, below the best.

    Temperature does not change which these are. Source: Tang et al. 2024, arXiv 2411.07641.
    """
    impossible = scores == FORBIDDEN
    count = (~impossible).sum(-1, keepdim=True)
    mean = scores.masked_fill(impossible, 0.0).sum(-1, keepdim=True) / count
    variance = (scores - mean).square().masked_fill(impossible, 0.0).sum(-1, keepdim=True) / count
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) - n * variance.sqrt(), FORBIDDEN)


def keep_top_h(scores: Tensor, top_h: float) -> Tensor:
    """Keeps the likeliest tokens that make up this share of the entropy, one at least; never more than 100.

    Source: Potraghloo et al. 2025, arXiv 2509.02510.
    """
    best, order = scores.topk(min(MOST_FOR_TOP_H, scores.shape[-1]))
    probabilities = best.softmax(-1)
    terms = torch.special.entr(probabilities)
    keep = terms.cumsum(-1) <= top_h * terms.sum(-1, keepdim=True)
    keep[:, 0] = True
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, keep)
    return scores.masked_fill(~kept, FORBIDDEN)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Keeps the k best tokens, and those that tie with the last of them. Source: Fan et al. 2018."""
    worst = scores.topk(min(k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < worst, FORBIDDEN)


def keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Keeps the fewest tokens that together have at least this probability. Source: Holtzman et al. 2019."""
    ascending, order = scores.sort(dim=-1)
    drop = ascending.softmax(-1).cumsum(-1) <= 1.0 - top_p
    drop[:, -1] = False
    return scores.masked_fill(drop.scatter(1, order, drop), FORBIDDEN)


def keep_min_p(scores: Tensor, min_p: float) -> Tensor:
    """Keeps tokens with at least this share of the likeliest one's probability.

    Source: Nguyen et al. 2024.
    """
    probabilities = scores.softmax(-1)
    return scores.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), FORBIDDEN)


def keep_typical(scores: Tensor, mass: float) -> Tensor:
    """Keeps the tokens whose surprise is nearest to the entropy, up to this probability.

    Source: Meister et al. 2022.
    """
    log_probs = scores.log_softmax(-1)
    distance, order = (-log_probs - _entropy(log_probs)).abs().sort(dim=-1)
    cumulative = scores.gather(1, order).softmax(-1).cumsum(-1)
    last = (cumulative < mass).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    drop = distance > distance.gather(1, last)
    drop[:, 0] = False
    return scores.masked_fill(drop.scatter(1, order, drop), FORBIDDEN)


def cut_epsilon(scores: Tensor, epsilon: float) -> Tensor:
    """Keeps tokens of at least this probability, and the likeliest one. Source: Hewitt et al. 2022."""
    return _keep_likelier(scores, torch.tensor(epsilon).to(scores))


def cut_eta(scores: Tensor, epsilon: float) -> Tensor:
    """As `cut_epsilon`, with a limit that sinks to sqrt(epsilon) * exp(-entropy) where many tokens are likely.

    Source: Hewitt et al. 2022.
    """
    limit = torch.tensor(epsilon).to(scores)
    return _keep_likelier(scores, torch.minimum(limit, limit.sqrt() * (-_entropy(scores.log_softmax(-1))).exp()))


def exclude_top(scores: Tensor, threshold: float, rows: Tensor) -> Tensor:
    """In some rows, [R] bool, only the least likely of all tokens of at least this probability stays of them.

    Source: p-e-w 2024, "Exclude Top Choices", in text-generation-webui.
    """
    probabilities = scores.softmax(-1)
    top = probabilities >= threshold
    least = probabilities.masked_fill(~top, 1.0).amin(-1, keepdim=True)
    return scores.masked_fill(top & (probabilities > least) & rows[:, None], FORBIDDEN)


def _keep_likelier(scores: Tensor, limit: Tensor) -> Tensor:
    drop = (scores.softmax(-1) < limit) & (scores < scores.amax(-1, keepdim=True))
    return scores.masked_fill(drop, FORBIDDEN)


def _entropy(log_probs: Tensor) -> Tensor:
    """Of each row, in nats: [R,1]."""
    # A forbidden token has 0 * -inf = nan: it adds nothing.
    return -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)


def _surely(cut: Callable[[Tensor, Any], Tensor]) -> Sampler:
    """A sampler that does not act by chance."""
    return lambda scores, setting, _: cut(scores, setting)


SAMPLERS: dict[SamplerName, Sampler] = {
    "temperature": _surely(apply_temperature),
    "top_n_sigma": _surely(keep_top_n_sigma),
    "top_h": _surely(keep_top_h),
    "top_k": _surely(keep_top_k),
    "top_p": _surely(keep_top_p),
    "min_p": _surely(keep_min_p),
    "typical_p": _surely(keep_typical),
    "epsilon_cutoff": _surely(cut_epsilon),
    "eta_cutoff": _surely(cut_eta),
    "xtc": lambda scores, xtc, chances: exclude_top(scores, xtc.threshold, chances < xtc.probability),
}
"""What each name in `SampleSettings.samplers` does; its setting is that of the same name."""
