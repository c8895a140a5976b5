"""Several models that decide together, as one that search can use."""

from collections.abc import Sequence
from typing import Any, assert_never

import torch
from torch import Tensor

from txtgen.config.ensemble import Mean
from txtgen.decode.types import PromptBatch, StepModel, StepState
from txtgen.errors import UsageError


class EnsembleState:
    """What each of the models remembers."""

    def __init__(self, states: Sequence[StepState]) -> None:
        self.states = states

    @property
    def lengths(self) -> Tensor:
        """[B] int64: tokens remembered in each row."""
        return self.states[0].lengths

    def select(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was."""
        for state in self.states:
            state.select(rows)

    def truncate(self, lengths: Tensor) -> None:
        """Forget what lies beyond lengths: [B] int64."""
        for state in self.states:
            state.truncate(lengths)


class Ensemble:
    """Mixes what models with the same tokens say of the next one.

    Args:
        members: the models.
        mean: `linear`: of their probabilities; `log_linear`: of their log-probabilities, normalised.
        weights: one for each, which count in proportion; none: all count alike.

    Source: Sutskever et al. 2014, arXiv 1409.3215 (linear); Hinton 2002, "Training products of experts" (log-linear).

    Raises:
        UsageError: there are more or fewer weights than models.
    """

    def __init__(self, members: Sequence[StepModel[Any]], mean: Mean, weights: Sequence[float] = ()) -> None:
        if weights and len(weights) != len(members):
            told = f"{len(weights)} weights for {len(members)} models"
            raise UsageError(told, "mixture.weights", "give one for each, that of the first model first")
        weights = weights or [1.0] * len(members)
        self.members, self.mean = members, mean
        self.weights = [weight / sum(weights) for weight in weights]

    def prefill(self, prompt: PromptBatch, capacity: int) -> tuple[Tensor, EnsembleState]:
        """Read the prompts with every model."""
        read = [member.prefill(prompt, capacity) for member in self.members]
        return self._mixed([logits for logits, _ in read]), EnsembleState([state for _, state in read])

    def extend(self, tokens: Tensor, state: EnsembleState) -> Tensor:
        """Read tokens [B,N] with every model."""
        pairs = zip(self.members, state.states, strict=True)
        return self._mixed([member.extend(tokens, each) for member, each in pairs])

    def _mixed(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits [...,V] of the mixture, on the scale of the models' own: penalties look at it."""
        stacked = torch.stack([each.float() for each in logits])
        weights = stacked.new_tensor(self.weights).view(-1, *[1] * (stacked.dim() - 1))
        match self.mean:
            case "linear":
                scale = stacked.logsumexp(-1, keepdim=True)
                return (stacked - scale + weights.log()).logsumexp(0) + (weights * scale).sum(0)
            case "log_linear":
                return (weights * stacked).sum(0)
            case _:
                assert_never(self.mean)
