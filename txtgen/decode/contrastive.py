"""Contrastive search: reads the likeliest tokens before it chooses one of them.

Source: Su et al. 2022, arXiv 2202.06417.
"""

from collections.abc import Sequence
from typing import Generic

import torch
import torch.nn.functional as F
from torch import Tensor

from txtgen.config.decoding import ContrastiveConfig
from txtgen.decode.filters import FORBIDDEN
from txtgen.decode.types import HiddenModel, PromptBatch, State, StepModel
from txtgen.errors import UsageError


def hidden_model(model: StepModel[State]) -> HiddenModel[State]:
    """The model, as one that tells its hidden states.

    Raises:
        UsageError: it does not.
    """
    if not isinstance(model, HiddenModel):
        raise UsageError("contrastive search compares hidden states", "strategy", "use one model that tells them")
    return model


class ContrastState(Generic[State]):
    """What a model remembers, the direction of every token's hidden state, and the hidden state of the last token.

    directions: [B,C,D], of length 1. last: [B,D].
    """

    def __init__(self, state: State, directions: Tensor, last: Tensor) -> None:
        self.state, self.directions, self.last = state, directions, last

    @property
    def lengths(self) -> Tensor:
        """[B] int64: tokens remembered in each row."""
        return self.state.lengths

    def select(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was."""
        self.state.select(rows)
        self.directions, self.last = self.directions[rows], self.last[rows]

    def truncate(self, lengths: Tensor) -> None:
        """Forget what lies beyond lengths: [B] int64."""
        self.state.truncate(lengths)


class Contrast(Generic[State]):
    """Both the choice of a token and the model that goes on with it, for it has been read when it is chosen."""

    state: ContrastState[State]

    def __init__(self, model: HiddenModel[State], config: ContrastiveConfig) -> None:
        self.model, self.config = model, config

    def prefill(self, prompt: PromptBatch, capacity: int) -> tuple[Tensor, ContrastState[State]]:
        """Read the prompts."""
        capacity += 1  # the last token is read as well
        hidden, state = self.model.prefill_hidden(prompt, capacity)
        rows = torch.arange(len(hidden), device=hidden.device)
        directions = torch.zeros((len(hidden), capacity, hidden.shape[-1]), device=hidden.device)
        directions[:, : hidden.shape[1]] = _direction(hidden)
        self.state = ContrastState(state, directions, hidden[rows, prompt.lengths - 1])
        return self.model.head(self.state.last), self.state

    def __call__(self, scores: Tensor, _results: Sequence[int]) -> Tensor:
        """The tokens [R] of most value among the likeliest, by scores [R,V]."""
        state, alpha = self.state, self.config.penalty_alpha
        best = scores.softmax(-1).topk(min(self.config.top_k, scores.shape[-1]))
        count, width = best.indices.shape
        rows = torch.arange(count, device=scores.device)
        lengths = state.lengths
        known = torch.arange(state.directions.shape[1], device=scores.device) < lengths[:, None]
        state.state.select(rows.repeat_interleave(width))
        hidden = self.model.extend_hidden(best.indices.view(-1, 1), state.state).view(count, width, -1)
        directions = _direction(hidden)
        cosines = (directions @ state.directions.transpose(1, 2)).masked_fill(~known[:, None], FORBIDDEN)
        values = (1.0 - alpha) * best.values - alpha * cosines.amax(-1)
        choice = values.masked_fill(best.values == 0.0, FORBIDDEN).argmax(-1)
        state.state.select(rows * width + choice)
        state.directions[rows, lengths] = directions[rows, choice]
        state.last = hidden[rows, choice]
        return best.indices[rows, choice]

    def extend(self, _tokens: Tensor, state: ContrastState[State]) -> Tensor:
        """Logits [B,1,V] of the token after those that were chosen last, which have been read."""
        return self.model.head(state.last)[:, None]


def _direction(hidden: Tensor) -> Tensor:
    """Vectors [...,D] as float32 vectors of length 1."""
    return F.normalize(hidden.float(), dim=-1)
