"""Beam search whose continuations are drawn."""

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from txtgen.config.decoding import BeamSampleConfig
from txtgen.decode.beam import Search
from txtgen.decode.distribution import shape_distribution
from txtgen.decode.filters import FORBIDDEN, renormalise


class DrawBeams:
    """Draws continuations from the joint distribution of beam and token, without replacement.

    What a beam and a token score together is the log-probability of the sequence under the distributions that
    sampling would draw each token from. Random numbers are as for `Draw`, a stream for each prompt.
    """

    def __init__(self, config: BeamSampleConfig, prompt_indices: Sequence[int]) -> None:
        self.config = config
        self.random = [Random(f"{config.seed}/{index}") for index in prompt_indices]

    def shaped(self, scores: Tensor, prompts: Sequence[int]) -> Tensor:
        """Log-probabilities [R,V] of the tokens that sampling's filters leave."""
        chances = None
        if self.config.xtc is not None:
            chances = torch.tensor([self.random[prompt].random() for prompt in prompts]).to(scores)
        return renormalise(shape_distribution(scores, self.config, chances))

    def chosen(self, sums: Tensor, searches: Sequence[Search], count: int) -> Tensor:
        """Those that are drawn, in descending order of their sums.

        The largest of the sums, each with Gumbel noise, are a draw without replacement. What is impossible gets none,
        so that nothing depends on whether it is there.
        Source: Vieira 2014, "Gumbel-max trick and weighted reservoir sampling".
        """
        noisy = sums.double().cpu()
        for row, search in zip(noisy, searches, strict=True):
            possible = (row != FORBIDDEN).nonzero()[:, 0]
            row[possible] += gumbel_noise(self.random[search.prompt], len(possible))
        drawn = noisy.topk(min(count, sums.shape[1])).indices.to(sums.device)
        return drawn.gather(1, sums.gather(1, drawn).sort(dim=-1, descending=True, stable=True).indices)


def gumbel_noise(random: Random, count: int) -> Tensor:
    """[count] float64: minus the logarithm of minus the logarithm of uniform numbers, none of which is 0 or 1."""
    bits = torch.frombuffer(bytearray(random.randbytes(8 * count)), dtype=torch.int64)
    uniform = ((bits >> 12 & (1 << 52) - 1).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))
