"""DRY: finds in what was said before the longest beginnings of what might be said again, and penalises to go on.

Source: p-e-w 2024, "DRY: a modern repetition penalty", in text-generation-webui.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from txtgen.config.decoding_values import DryPenalty
from txtgen.decode.filters import LARGEST_EXPONENT, NO_TOKEN


@dataclass(frozen=True, slots=True)
class Breakers:
    """Tokens over which no repetition goes. single: [V] bool. runs: tokens in a row, [K,N] int64 for each length N."""

    single: Tensor
    runs: tuple[Tensor, ...]

    def ends(self, sequences: Tensor) -> Tensor:
        """Where a breaker ends, or no token stands: [R,T] bool."""
        found = self.single[sequences.clamp(min=0)] | (sequences == NO_TOKEN)
        for run in self.runs:
            size = run.shape[1]
            if size <= sequences.shape[1]:
                windows = sequences.unfold(1, size, 1)[:, :, None]
                found[:, size - 1 :] |= (windows == run).all(-1).any(-1)
        return found


def make_breakers(tokens: Sequence[tuple[int, ...]], vocabulary: int, device: torch.device) -> Breakers:
    """The breakers, each of one token or more."""
    single = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    single[[token for token, *more in tokens if not more]] = True
    sizes = sorted({len(run) for run in tokens if len(run) > 1})
    runs = [torch.tensor([run for run in tokens if len(run) == size], device=device) for size in sizes]
    return Breakers(single, tuple(runs))


def penalise_continuations(scores: Tensor, sequences: Tensor, dry: DryPenalty, breakers: Breakers) -> Tensor:
    """Scores of tokens, less what each of them costs as the continuation of the longest repetition.

    scores: [R,V]. sequences: [R,T] int64, as in `filters`.
    """
    ends = breakers.ends(sequences)
    # A repetition that is longer costs no more: exp of this is beyond any score.
    steeper = int(LARGEST_EXPONENT / math.log(dry.base)) if dry.base > 1.0 else 0
    lengths = match_lengths(sequences, ends, dry.allowed_length + min(steeper, sequences.shape[1]))
    repeated = (lengths >= dry.allowed_length) & ~ends[:, 1:]
    if not bool(repeated.any()):
        return scores
    cost = (dry.multiplier * dry.base ** (lengths - dry.allowed_length)).masked_fill(~repeated, 0.0)
    following = sequences[:, 1:].clamp(min=0)
    return scores - torch.zeros_like(scores).scatter_reduce(1, following, cost.to(scores), "amax")


def match_lengths(sequences: Tensor, ends: Tensor, most: int) -> Tensor:
    """How many tokens up to each place, but the last, are those at the end of the row: [R,T-1] int64.

    No match holds a token at which something ends, and none is counted further than `most`. The work is a pass over
    the rows for each token of the longest match.
    """
    width = sequences.shape[1]
    lengths = torch.zeros_like(sequences[:, 1:])
    matching = torch.ones_like(lengths, dtype=torch.bool)
    for back in range(min(most, width - 1)):
        matching[:, :back] = False
        last = width - 1 - back
        matching[:, back:] &= sequences[:, :last] == sequences[:, last:][:, :1]
        matching &= ~ends[:, last:][:, :1]
        if not bool(matching.any()):
            break
        lengths += matching
    return lengths
