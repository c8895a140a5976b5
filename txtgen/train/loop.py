"""One training loop for pretraining and finetuning, as a generator: saving, logging and printing are the caller's."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from txtgen.config.train import TrainConfig
from txtgen.data.types import Batch
from txtgen.distributed import World, gradients_held_back, sum_gradients
from txtgen.errors import DivergedError
from txtgen.model import Transformer
from txtgen.train.cost import count_flops
from txtgen.train.loss import BatchLoss
from txtgen.train.optimizer import Optimizers
from txtgen.train.schedule import learning_rate


@dataclass
class TrainState:
    """What a step changes: the model, the optimizer, and how far the run is.

    tokens: scored tokens so far, over all ranks. bookmark: the place in the stream after the last step.
    """

    model: Transformer
    optimizer: Optimizers
    step: int = 0
    tokens: int = 0
    bookmark: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did, over all ranks.

    step: counted from 1. loss: plain negative log-likelihood, nats per token. objective_loss: what was minimised,
    per token. grad_norm: before clipping. tokens: scored tokens of this step. positions: tokens that went through
    the model, source included. seconds: wall time of the step, waiting for data included; data_seconds: of that,
    waiting for data. flops: floating-point operations of this rank's matrix products.
    """

    step: int
    loss: float
    objective_loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    positions: int
    seconds: float
    data_seconds: float
    flops: int


def train(
    state: TrainState,
    batches: Iterator[Batch],
    config: TrainConfig,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    world: World | None = None,
) -> Iterator[StepReport]:
    """Train up to `config.steps` optimizer steps, yielding after each; the state is consistent at every yield.

    Raises:
        DivergedError: a loss or gradient is not finite; the weights are those of the step before.
    """
    world = world or World()
    parameters = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    device = parameters[0].device
    flops = count_flops(state.model)
    loss = sum_gradients(BatchLoss(state.model, config.label_smoothing), world)
    while state.step < config.steps:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        step = state.step + 1
        state.model.train()
        # Dropout depends on seed, step and rank alone, so that a resumed run draws what the straight one drew.
        torch.manual_seed(((seed * 1_000_003 + step) * 1_000_003 + world.rank) % 2**63)
        with world.together():
            objective, nll = _accumulate(loss, batch.to(device), config, dtype)
        scored, positions, objective, nll = world.sum(
            [float(batch.num_scored), float(batch.num_tokens), objective, nll]
        )
        norm = _scale_and_clip(parameters, scored, config.clip_norm)
        _refuse_non_finite(nll, norm, step, batch)
        share = learning_rate(config.schedule, step, config.steps, 1.0)
        state.optimizer.step(share)
        state.step, state.tokens, state.bookmark = step, state.tokens + int(scored), batch.bookmark
        yield StepReport(
            step=step,
            loss=nll / max(1.0, scored),
            objective_loss=objective / max(1.0, scored),
            grad_norm=norm,
            learning_rate=share * state.optimizer.peak,
            tokens=int(scored),
            positions=int(positions),
            seconds=time.perf_counter() - started,
            data_seconds=waited,
            flops=flops.of(batch),
        )


def _accumulate(loss: nn.Module, batch: Batch, config: TrainConfig, dtype: torch.dtype) -> tuple[float, float]:
    """Add the gradients of the summed loss, micro-batch by micro-batch. Returns the sums (objective, nll)."""
    objective, nll = 0.0, 0.0
    parts = list(micro_batches(batch, config.micro_batch_tokens))
    for number, part in enumerate(parts, 1):
        with nullcontext() if number == len(parts) else gradients_held_back(loss):
            with torch.autocast(batch.input_ids.device.type, dtype=dtype, enabled=dtype != torch.float32):
                sums = loss(part)
            torch.autograd.backward(sums.objective)
        objective += float(sums.objective.detach())
        nll += float(sums.nll)
    return objective, nll


def micro_batches(batch: Batch, max_tokens: int | None) -> Iterator[Batch]:
    """The batch in blocks of rows whose padded tokens stay within max_tokens, at least one row each."""
    count = batch.input_ids.shape[0]
    width = batch.input_ids.shape[1] + (0 if batch.source_ids is None else batch.source_ids.shape[1])
    rows = count if max_tokens is None else max(1, max_tokens // width)
    for start in range(0, count, rows):
        yield batch.rows(start, start + rows)


def _scale_and_clip(parameters: list[nn.Parameter], scored: float, clip: float | None) -> float:
    """Turn summed gradients into the gradient per scored token, then clip. Returns the norm before clipping."""
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, 1.0 / max(1.0, scored))
    norm = nn.utils.get_total_norm(gradients)
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return float(norm)


def _refuse_non_finite(nll: float, norm: float, step: int, batch: Batch) -> None:
    """Stop before a loss or gradient that is not finite reaches the weights."""
    if all(value == value and abs(value) != float("inf") for value in (nll, norm)):
        return
    names = sorted({str(origin) for row in batch.origins for origin in row})
    raise DivergedError(
        f"the {'loss' if nll != nll or abs(nll) == float('inf') else 'gradient'} is not finite",
        f"step {step}, documents {', '.join(names[:5])}" + (" ..." if len(names) > 5 else ""),
        "start again with a lower learning rate or a longer warm-up, from scratch or by finetuning the last checkpoint",
    )
