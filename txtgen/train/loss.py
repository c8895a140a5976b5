"""Losses as sums plus a count of scored tokens: dividing is left to whoever knows all ranks and micro-batches.

The logits of a batch would be its largest tensor by far, and passing over them several times its slowest part after the
matrix products. So they are made in chunks that a processor's cache can hold, and turned into their own gradient there.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from txtgen.data.types import Batch, scored_places
from txtgen.model import Transformer, at_least_float32

CACHED_ELEMENTS, LARGE_ELEMENTS = 1 << 19, 1 << 26
"""Logits in a chunk: as many as a processor's cache holds; on a GPU, which wants large matrix products, many more."""

MIN_ROWS = 256
"""Rows in a chunk at least: fewer would read the weights more often than they compute with them."""


@dataclass(frozen=True, slots=True)
class LossSums:
    """objective: what is minimised, a scalar with gradient. nll: plain negative log-likelihood in nats, detached.
    figures: what else is told, scalars, detached."""

    objective: Tensor
    nll: Tensor
    figures: tuple[Tensor, ...] = ()

    @property
    def all(self) -> Tensor:
        """Objective, nll and figures, [2+N], detached."""
        return torch.stack([self.objective.detach(), self.nll, *self.figures])


class Loss(Protocol):
    """What is minimised.

    figures: the names of what it tells beside that, as sums over what it counts.
    """

    figures: tuple[str, ...]

    def __call__(self, model: Transformer, batch: Batch) -> LossSums:
        """Sums over a batch."""

    def count(self, batch: Batch) -> int:
        """How many of what is scored, tokens or pairs, the sums of a batch are of: divided by it they are means."""


class TokenLoss:
    """Cross-entropy of every scored token."""

    figures: tuple[str, ...] = ()

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, model: Transformer, batch: Batch) -> LossSums:
        """The loss of a batch [B,T], summed over its scored positions."""
        return batch_loss(model, batch, self.label_smoothing)

    def count(self, batch: Batch) -> int:
        """The scored tokens."""
        return batch.num_scored


class BatchLoss(nn.Module):
    """The loss of a model as a module, for engines that act when one is called."""

    def __init__(self, model: Transformer, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> LossSums:
        """Sums over a batch."""
        return self.loss(self.model, batch)


def batch_loss(model: Transformer, batch: Batch, label_smoothing: float = 0.0) -> LossSums:
    """Run the model over a batch [B,T] and sum the loss over its scored positions."""
    scored = scored_hidden(model, batch)
    weights = [weight for weight in model.head_parameters if weight.requires_grad]
    objective, nll = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        model, label_smoothing, torch.is_grad_enabled(), scored.labels, scored.hidden, *weights
    )
    return LossSums(objective, nll)


class Scored(NamedTuple):
    """The scored positions of a batch: their places in it, flattened, [N]; their labels [N]; and what the model's head
    turns into their logits, [N,D]."""

    places: Tensor
    labels: Tensor
    hidden: Tensor


def scored_hidden(model: Transformer, batch: Batch) -> Scored:
    """Run the model over a batch, up to its head."""
    hidden = model.hidden(
        batch.input_ids,
        batch.positions,
        batch.segment_ids,
        separate=batch.separate,
        bidirectional=batch.bidirectional,
        source_ids=batch.source_ids,
        source_mask=batch.source_mask,
    )
    places = scored_places(batch.labels) if batch.places is None else batch.places
    return Scored(places, batch.labels.flatten()[places], hidden.flatten(0, 1).index_select(0, places))


class _HeadLoss(torch.autograd.Function):
    """From hidden [N,D] through the model's head to the summed loss, and all gradients at once."""

    @staticmethod
    def forward(
        ctx: Any,
        model: Transformer,
        label_smoothing: float,
        wanted: bool,
        labels: Tensor,
        hidden: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        gradients = [torch.zeros_like(tensor) for tensor in (hidden, *weights)] if wanted else []
        objective = at_least_float32(hidden.new_zeros(()))
        nll = objective.clone()
        size = chunk_rows(hidden.device, model.config.vocab_size or 1)
        for start in range(0, len(labels), size):
            part = hidden[start : start + size].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = model.head(part)
            one, plain, gradient = cross_entropy_sums(
                at_least_float32(logits.detach()), labels[start : start + size], label_smoothing
            )
            objective, nll = objective + one, nll + plain
            if wanted:
                found = torch.autograd.grad(logits, (part, *weights), gradient.to(logits.dtype))
                gradients[0][start : start + size] = found[0]
                for total, more in zip(gradients[1:], found[1:], strict=True):
                    total += more
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(nll)
        return objective, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, objective: Tensor, _nll: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, None, *(gradient * objective for gradient in ctx.saved_tensors))


def chunk_rows(device: torch.device, vocab_size: int) -> int:
    """How many rows of logits are made at a time."""
    elements = CACHED_ELEMENTS if device.type == "cpu" else LARGE_ELEMENTS
    return max(MIN_ROWS, elements // vocab_size)


def cross_entropy_sums(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Summed cross-entropy of logits [N,V], float32 or float64, against labels [N] int64.

    Label smoothing spreads a share of the target evenly over the vocabulary. Source: Szegedy et al. 2015.

    Returns the objective, its part without smoothing, both scalars, and the gradient [N,V] of the objective.
    """
    gradient = logits.softmax(-1)
    log_total = logits.amax(-1, keepdim=True) - gradient.amax(-1, keepdim=True).log()
    gold = labels[:, None]
    nll = (log_total - logits.gather(-1, gold)).sum()
    if not label_smoothing:
        return nll, nll, gradient.scatter_add_(-1, gold, gradient.new_full((1, 1), -1.0).expand_as(gold))
    uniform = (log_total - logits.mean(-1, keepdim=True)).sum()
    gradient.scatter_add_(-1, gold, gradient.new_full((1, 1), label_smoothing - 1.0).expand_as(gold))
    gradient.sub_(label_smoothing / logits.shape[-1])
    return (1 - label_smoothing) * nll + label_smoothing * uniform, nll, gradient
