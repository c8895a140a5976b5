"""Filters change the scores of the next token: pure functions from scores [R,V] to scores [R,V], float32.

R is the number of sequences: prompts times beams or samples. Scores are logits, or log-probabilities in beam
search; a forbidden token scores -inf. `sequences` [R,T] int64 holds what each row has so far, prompt and
generated tokens, aligned to the right; NO_TOKEN fills the left. Formulas are those of Hugging Face `generate`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from txtgen.errors import DivergedError, UsageError

FORBIDDEN = float("-inf")
NO_TOKEN = -1

LARGEST_EXPONENT = 60.0
"""exp of this, times a score, is still a finite number in single precision."""


class Bias(NamedTuple):
    """Runs of N + 1 tokens: first [K,N] int64, the last one [K] int64, and what is added to it, [K] float32."""

    first: Tensor
    last: Tensor
    bias: Tensor


def biases(sequences: Mapping[tuple[int, ...], float], device: torch.device) -> list[Bias]:
    """What to add to the last of the tokens, one `Bias` for each length."""
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for tokens in sequences:
        by_length.setdefault(len(tokens), []).append(tokens)
    return [
        Bias(
            torch.tensor([tokens[:-1] for tokens in group], dtype=torch.int64, device=device),
            torch.tensor([tokens[-1] for tokens in group], device=device),
            torch.tensor([sequences[tokens] for tokens in group], device=device),
        )
        for group in by_length.values()
    ]


def add_bias(scores: Tensor, sequences: Tensor, groups: list[Bias]) -> Tensor:
    """Adds each bias to the last token of its run, in the rows that end with the tokens before it."""
    total = torch.zeros_like(scores)
    for first, last, bias in groups:
        count = first.shape[1]
        if count <= sequences.shape[1]:
            recent = sequences[:, sequences.shape[1] - count :]
            here = (recent[:, None] == first).all(-1)
            total.index_add_(1, last, torch.where(here, bias, 0.0))
    return scores + total


def penalise_repetition(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores of tokens that occurred, once each: divided by `penalty`, multiplied if negative.

    seen: [R,N] int64, aligned as sequences are. Source: Keskar et al. 2019, arXiv 1909.05858.
    """
    seen = torch.where(seen == NO_TOKEN, seen[:, -1:], seen)
    picked = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(picked < 0, picked * penalty, picked / penalty))


def penalise_presence(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores of tokens that occurred, less the penalty. seen: [R,N] int64, aligned as sequences are."""
    return scores - penalty * (_counts(scores, seen) > 0)


def penalise_frequency(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores of tokens, less the penalty for each time that they occurred. seen: [R,N], aligned as sequences are."""
    return scores - penalty * _counts(scores, seen)


def _counts(scores: Tensor, seen: Tensor) -> Tensor:
    """How often each token occurred: [R,V] float32."""
    return torch.zeros_like(scores).scatter_add(1, seen.clamp(min=0), (seen != NO_TOKEN).to(scores))


def forbid_ngrams(scores: Tensor, sequences: Tensor, size: int, seen: Tensor) -> Tensor:
    """Forbids every token that would complete an n-gram of this size that occurs in `seen`, [R,N] int64."""
    length = sequences.shape[1]
    if seen.shape[1] < size or length < size - 1:
        return scores
    ngrams = seen.unfold(1, size, 1)
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


def force(scores: Tensor, token_ids: Tensor) -> Tensor:
    """Forbids all other tokens in every row, and makes the score of these 0. token_ids: [N] int64."""
    return torch.full_like(scores, FORBIDDEN).index_fill_(1, token_ids, 0.0)


def favour_end(scores: Tensor, eos_ids: Tensor, factor: float, steps: Sequence[int]) -> Tensor:
    """Raises the scores of end tokens, as if their size grew by `factor` at each of so many steps, for each row."""
    exponents = [min(count * math.log(factor), LARGEST_EXPONENT) for count in steps]
    growth = scores.new_tensor([[math.exp(exponent) - 1.0] for exponent in exponents])
    picked = scores[:, eos_ids]
    return scores.index_add(1, eos_ids, torch.where(picked.isfinite(), picked.abs() * growth, 0.0))


def renormalise(scores: Tensor) -> Tensor:
    """Log-probabilities that sum to one; a row without a possible token stays one."""
    return scores.log_softmax(-1).masked_fill(scores == FORBIDDEN, FORBIDDEN)


def align_right(input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Right-padded ids [B,T] with the padding moved to the left, as NO_TOKEN."""
    width = input_ids.shape[1]
    source = torch.arange(width, device=input_ids.device) - (width - lengths[:, None])
    return input_ids.gather(1, source.clamp(min=0)).masked_fill(source < 0, NO_TOKEN)


def log_probabilities(logits: Tensor) -> Tensor:
    """The logarithm of the softmax of logits [...,V], float32.

    Raises:
        DivergedError: a logit is nan or infinite (-inf, a token that cannot be, is allowed).
    """
    log_probs = logits.float().log_softmax(-1)
    # A nan or +inf among the logits, or nothing but -inf, makes all of a row's nan.
    refuse_diverged(log_probs[..., 0].exp())
    return log_probs


def refuse_diverged(values: Tensor) -> None:
    """Raises DivergedError unless all values are finite."""
    if not bool(values.isfinite().all()):
        raise DivergedError(
            "the model's scores are not finite",
            "next-token logits",
            "its weights are damaged, or training diverged",
        )


def refuse_dead_end(best: Tensor, counts: Sequence[int]) -> None:
    """Raises UsageError if the best score of a row, [R], is that of a forbidden token. counts: its generated tokens."""
    dead = best == FORBIDDEN
    if bool(dead.any()):
        raise UsageError(
            "every token is forbidden, so that a text can neither go on nor end",
            f"after {counts[int(dead.nonzero()[0])]} generated tokens",
            "loosen what forbids tokens: min_new_tokens, no_repeat_ngram_size, bad_words, prefix and the like",
        )
