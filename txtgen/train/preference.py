"""The loss of pairs of answers: how much likelier the chosen one has become than the rejected one.

Every row of a batch is a pair: document 1 is the prompt with the chosen answer, document 2 with the rejected one.
"""

from collections.abc import Callable
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from txtgen.config.objectives import DpoObjective
from txtgen.data.types import IGNORE, Batch
from txtgen.model import Transformer, adapters_off, at_least_float32
from txtgen.train.loss import LossSums, chunk_rows, scored_hidden

Told = tuple[Tensor, ...]
"""Sums over a batch, scalars."""


class PreferenceLoss:
    """Direct preference optimisation, over batches that know what the base model says of them, or with `base_within`
    of a model that is the base but for its adapters.

    Of a pair the reward of an answer is beta times by how many nats its log-probability is above that of the base
    model. The margin is the difference of both rewards; the loss is that of telling which answer was chosen, with the
    margin as the logit, or with ipo the squared distance of the margin from 1/2, both over beta.

    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7; ipo: Azar et al. 2023, arXiv 2310.12036, equation 17, of
    the mean log-probability of a token, so that long answers count no more than short ones.
    """

    figures: tuple[str, ...] = ("reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy")

    def __init__(self, config: DpoObjective, base_within: bool = False) -> None:
        self.config, self.base_within = config, base_within

    def __call__(self, model: Transformer, batch: Batch) -> LossSums:
        """Sums over the pairs of a batch; accuracy counts those whose chosen answer has the higher reward."""
        reference = base_logprobs(model, batch) if self.base_within else batch.reference
        assert reference is not None
        scored = scored_hidden(model, batch)

        def told(logprobs: Tensor) -> Told:
            return self.sums(batch, answer_logprobs(batch, scored.places, logprobs), reference)

        weights = [weight for weight in model.head_parameters if weight.requires_grad]
        objective, nll, *figures = _LogprobLoss.apply(  # type: ignore[no-untyped-call]
            model, told, torch.is_grad_enabled(), scored.labels, scored.hidden, *weights
        )
        return LossSums(objective, nll, tuple(figures))

    def count(self, batch: Batch) -> int:
        """The pairs."""
        return batch.num_scored_rows

    def sums(self, batch: Batch, logprobs: Tensor, reference: Tensor) -> Told:
        """Objective, loss without label smoothing, and figures, of answers with log-probabilities [B,2], which have
        `reference` [B,2] in the base model. Rows of padding count nothing."""
        beta, smoothing = self.config.beta, self.config.label_smoothing
        ratios = logprobs - reference
        if self.config.loss == "ipo":
            ratios = ratios / answer_sums(batch, (batch.labels != IGNORE).float()).clamp(min=1)
        rewards = beta * ratios
        margins = rewards[:, 0] - rewards[:, 1]
        match self.config.loss:
            case "sigmoid":
                plain = -F.logsigmoid(margins)
                objective = (1 - smoothing) * plain - smoothing * F.logsigmoid(-margins)
            case "ipo":
                objective = plain = ((margins - 0.5) / beta) ** 2
            case _:
                assert_never(self.config.loss)
        figures = (rewards[:, 0], rewards[:, 1], margins, (margins > 0).to(margins.dtype))
        pairs = (batch.labels != IGNORE).any(-1)
        return tuple((values * pairs).sum() for values in (objective, plain, *figures))


def answer_sums(batch: Batch, values: Tensor) -> Tensor:
    """The sums [B,2] over either answer of values [B,T]."""
    return torch.stack([(values * (batch.segment_ids == answer)).sum(-1) for answer in (1, 2)], -1)


def answer_logprobs(batch: Batch, places: Tensor, logprobs: Tensor) -> Tensor:
    """The log-probabilities [B,2] of both answers, whose tokens at scored places [N] have these log-probabilities."""
    # Spread out and not added up by index, which a GPU does in an order of its own.
    spread = logprobs.new_zeros(batch.labels.numel()).index_put((places,), logprobs)
    return answer_sums(batch, spread.view_as(batch.labels))


@torch.no_grad()
def pair_logprobs(model: Transformer, batch: Batch) -> Tensor:
    """The log-probabilities [B,2] of the chosen and the rejected answers of a batch."""
    scored = scored_hidden(model, batch)
    return answer_logprobs(batch, scored.places, _logprobs(model, scored.labels, scored.hidden))


def base_logprobs(model: Transformer, batch: Batch) -> Tensor:
    """What a model would say of the answers without its adapters and dropout, [B,2]."""
    was_training = model.training
    model.eval()
    try:
        with adapters_off(model):
            return pair_logprobs(model, batch)
    finally:
        model.train(was_training)


def _logprobs(model: Transformer, labels: Tensor, hidden: Tensor) -> Tensor:
    """The log-probability [N] of each label after hidden [N,D], made chunk by chunk."""
    size = chunk_rows(hidden.device, model.config.vocab_size or 1)
    return torch.cat(
        [_chunk(model, *part) for part in zip(torch.split(labels, size), torch.split(hidden, size), strict=True)]
    )


def _chunk(model: Transformer, labels: Tensor, hidden: Tensor) -> Tensor:
    return -F.cross_entropy(at_least_float32(model.head(hidden)), labels, reduction="none")


class _LogprobLoss(torch.autograd.Function):
    """From hidden [N,D] through the model's head to what a function makes of the log-probabilities of all labels.

    That is known only once all chunks of logits have been made; so they are made a second time for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        model: Transformer,
        told: Callable[[Tensor], Told],
        wanted: bool,
        labels: Tensor,
        hidden: Tensor,
        *weights: Tensor,
    ) -> Told:
        logprobs = _logprobs(model, labels, hidden).requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            objective, *others = told(logprobs)
        gradients = [torch.zeros_like(tensor) for tensor in (hidden, *weights)] if wanted else []
        if wanted:
            (slopes,) = torch.autograd.grad(objective, logprobs)
            size = chunk_rows(hidden.device, model.config.vocab_size or 1)
            for start in range(0, len(labels), size):
                place = slice(start, start + size)
                part = hidden[place].detach().requires_grad_()
                with torch.enable_grad():
                    found = torch.autograd.grad(_chunk(model, labels[place], part), (part, *weights), slopes[place])
                gradients[0][place] = found[0]
                for total, more in zip(gradients[1:], found[1:], strict=True):
                    total += more
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*(detached := [other.detach() for other in others]))
        return objective.detach(), *detached

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, objective: Tensor, *_others: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, None, *(gradient * objective for gradient in ctx.saved_tensors))
