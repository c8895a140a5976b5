"""Filters change the scores of the next token: pure functions from scores [R,V] to scores [R,V], float32.

R is the number of sequences: prompts times beams or samples. Scores are logits, or log-probabilities in beam
search; a forbidden token scores -inf. `sequences` [R,T] int64 holds what each row has so far, prompt and
generated tokens, aligned to the right; NO_TOKEN fills the left. Order and formulas are those of Hugging Face
`generate`.
"""

import torch
from torch import Tensor

from txtgen.config.decoding import SampleConfig, StrategyConfig
from txtgen.errors import DivergedError, UsageError

FORBIDDEN = float("-inf")
NO_TOKEN = -1


def filter_scores(
    scores: Tensor, sequences: Tensor, num_new: int, config: StrategyConfig, eos_ids: Tensor, suppress: Tensor
) -> Tensor:
    """The filters of every strategy, in their order. `num_new` counts the tokens generated so far."""
    if config.repetition_penalty != 1.0:
        scores = penalise_repetition(scores, sequences, config.repetition_penalty)
    if config.no_repeat_ngram_size:
        scores = forbid_repeated_ngrams(scores, sequences, config.no_repeat_ngram_size)
    if num_new < config.min_new_tokens:
        scores = forbid(scores, eos_ids)
    return forbid(scores, suppress)


def shape_distribution(scores: Tensor, config: SampleConfig) -> Tensor:
    """The filters of sampling, in their order; each sees what the one before left."""
    if config.temperature != 1.0:
        scores = apply_temperature(scores, config.temperature)
    if config.top_k:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p < 1.0:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p > 0.0:
        scores = keep_min_p(scores, config.min_p)
    if config.typical_p < 1.0:
        scores = keep_typical(scores, config.typical_p)
    return scores


def penalise_repetition(scores: Tensor, sequences: Tensor, penalty: float) -> Tensor:
    """Scores of tokens that occurred before, once each: divided by `penalty`, multiplied if negative.

    Source: Keskar et al. 2019, arXiv 1909.05858.
    """
    seen = torch.where(sequences == NO_TOKEN, sequences[:, -1:], sequences)
    picked = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(picked < 0, picked * penalty, picked / penalty))


def forbid_repeated_ngrams(scores: Tensor, sequences: Tensor, size: int) -> Tensor:
    """Forbids every token that would complete an n-gram of this size that occurred before."""
    length = sequences.shape[1]
    if length < size:
        return scores
    ngrams = sequences.unfold(1, size, 1)
    recent = sequences[:, length - size + 1 :]
    # Padding is on the left only, so an n-gram that starts with a token is one of tokens.
    repeats = (ngrams[..., :-1] == recent[:, None]).all(-1) & (ngrams[..., 0] != NO_TOKEN)
    rows, starts = repeats.nonzero(as_tuple=True)
    scores = scores.clone()
    scores[rows, ngrams[rows, starts, -1]] = FORBIDDEN
    return scores


def forbid(scores: Tensor, token_ids: Tensor) -> Tensor:
    """Forbids these tokens in every row. token_ids: [N] int64."""
    return scores.index_fill(1, token_ids, FORBIDDEN) if len(token_ids) else scores


def apply_temperature(scores: Tensor, temperature: float) -> Tensor:
    """Scores divided by the temperature: below 1 sharpens, above 1 flattens.

    The best score becomes 0, which leaves the distribution as it is and keeps tiny temperatures from
    overflowing.
    """
    smallest = torch.finfo(scores.dtype).tiny
    return (scores - scores.amax(-1, keepdim=True)) / max(temperature, smallest)


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
    # A forbidden token has 0 * -inf = nan: it adds nothing to the entropy.
    entropy = -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)
    distance, order = (-log_probs - entropy).abs().sort(dim=-1)
    cumulative = scores.gather(1, order).softmax(-1).cumsum(-1)
    last = (cumulative < mass).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    drop = distance > distance.gather(1, last)
    drop[:, 0] = False
    return scores.masked_fill(drop.scatter(1, order, drop), FORBIDDEN)


def align_right(input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Right-padded ids [B,T] with the padding moved to the left, as NO_TOKEN."""
    width = input_ids.shape[1]
    source = torch.arange(width, device=input_ids.device) - (width - lengths[:, None])
    return input_ids.gather(1, source.clamp(min=0)).masked_fill(source < 0, NO_TOKEN)


def log_normaliser(logits: Tensor) -> Tensor:
    """The logarithm of the sum of exp(logits): [R]. Log-probabilities are logits less this.

    Raises:
        DivergedError: a logit is nan or infinite (-inf, a token that cannot be, is allowed).
    """
    total = logits.logsumexp(-1)
    refuse_diverged(total)
    return total


def refuse_diverged(values: Tensor) -> None:
    """Raises DivergedError unless all values are finite."""
    if not bool(values.isfinite().all()):
        raise DivergedError(
            "the model's scores are not finite",
            "next-token logits",
            "its weights are damaged, or training diverged",
        )


def refuse_dead_end(best: Tensor, num_new: int) -> None:
    """Raises UsageError if the best score of a row, [R], is that of a forbidden token."""
    if bool((best == FORBIDDEN).any()):
        raise UsageError(
            "every token is forbidden, so that a text can neither go on nor end",
            f"after {num_new} generated tokens",
            "lower min_new_tokens or raise no_repeat_ngram_size",
        )
