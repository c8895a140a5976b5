"""One training loop for pretraining and finetuning, as a generator: saving, logging and printing are the caller's."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from txtgen.config.train import TrainConfig
from txtgen.data.types import Batch
from txtgen.distributed import World, is_sharded, local, reshard, total_norm
from txtgen.errors import DivergedError
from txtgen.model import Transformer
from txtgen.train.accumulation import Accumulated, Accumulation, micro_batches
from txtgen.train.average import WeightAverage
from txtgen.train.compilation import Compilation, settle_compilation
from txtgen.train.cost import count_flops
from txtgen.train.figures import Figures, StepReport, named
from txtgen.train.loss import Loss, TokenLoss
from txtgen.train.optimizer import Optimizers
from txtgen.train.schedule import Horizon, share_of_peak


class NonFiniteError(DivergedError):
    """A step whose loss or gradient is not finite, and which is not simply to be left out. report: of that step."""

    def __init__(self, report: StepReport) -> None:
        where = f"step {report.step}, documents {named(report.documents)}"
        super().__init__(report.fault, where, "train with a lower learning rate or a longer warm-up")
        self.report = report


@dataclass
class TrainState:
    """What a step changes: the model, the optimizer, and how far the run is.

    tokens: scored tokens so far, over all ranks. bookmark: the place in the stream after the last step. horizon: how
    long the run is to be; None: as its config says. non_finite: how many steps in a row, up to the last one, left the
    weights as they were, because of a loss or gradient that is not finite. micro_batch_tokens: what goes through the
    model at once since memory ran out; None: as its config says. compilation: whether layers are compiled, which the
    first batch decides.
    """

    model: Transformer
    optimizer: Optimizers
    step: int = 0
    tokens: int = 0
    bookmark: dict[str, Any] = field(default_factory=dict)
    horizon: Horizon | None = None
    non_finite: int | Tensor = 0
    micro_batch_tokens: int | None = None
    average: WeightAverage | None = None
    compilation: Compilation = field(default_factory=Compilation)

    def averaged(self) -> AbstractContextManager[None]:
        """While the block runs, the model has the weights that are to be used: averaged ones, if there are any."""
        return nullcontext() if self.average is None else self.average.applied()


def train(
    state: TrainState,
    batches: Iterator[Batch],
    config: TrainConfig,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    world: World | None = None,
    loss: Loss | None = None,
) -> Iterator[StepReport]:
    """Train up to the steps of the horizon, yielding after each; the state is consistent at every yield.

    loss: what is minimised; None: cross-entropy of the scored tokens.

    A step whose loss or gradient is not finite leaves weights and optimizer as they were: the device sees to it by
    itself. The loop only learns of it when the figures are at hand, on a GPU after the next step was begun, so that the
    device never waits. Who saves or measures in between calls `refuse_non_finite` first.

    Where memory runs out on the way to the gradients, the step is done again with smaller micro-batches, and so are all
    later ones, on all ranks together.

    Raises:
        NonFiniteError: a loss or gradient is not finite, more often in a row than the config lets it go on.
        OutOfMemoryError: memory runs out for a single row.
    """
    world = world or World()
    reshard(state.model)
    parameters = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    flops = count_flops(state.model)
    loss = loss or TokenLoss(config.label_smoothing)
    accumulation = Accumulation(state.model, state.optimizer, loss, dtype, world)
    state.horizon = state.horizon or Horizon(config.steps)
    report: StepReport | None = None
    while state.step < state.horizon.steps:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        step = state.step + 1
        state.model.train()
        # Dropout depends on seed, step and rank alone, so that a resumed run draws what the straight one drew.
        key = ((seed * 1_000_003 + step) * 1_000_003 + world.rank) % 2**63
        limit = state.micro_batch_tokens or config.micro_batch_tokens
        with world.together():
            if not state.compilation.here:
                _decide_on_compilation(state, next(micro_batches(batch, limit)), config, dtype, world)
            sums = accumulation.run(batch, limit, key)
        if sums.limit != limit:
            state.micro_batch_tokens = sums.limit
        norm = _scale_and_clip(parameters, sums.count, config.clip_norm, world, is_sharded(state.model))
        found = torch.cat([norm[None], world.sum_tensor(sums.losses)])
        non_finite = ~found.isfinite().all()
        state.non_finite = (state.non_finite + 1) * non_finite
        state.optimizer.step(share_of_peak(config.schedule, step, state.horizon), leave_out=non_finite)
        if state.average is not None:
            state.average.update(step)
        state.step, state.tokens, state.bookmark = step, state.tokens + int(sums.scored), batch.bookmark
        figures, seconds = Figures(torch.cat([state.non_finite[None], found])), time.perf_counter() - started
        before, report = report, _report(state, batch, figures, loss.figures, sums, seconds, waited, flops.of(batch))
        if before is not None:
            refuse_non_finite(before, config)
        if report.figures.at_hand:
            refuse_non_finite(report, config)
        yield report
    if report is not None:
        refuse_non_finite(report, config)


def _decide_on_compilation(
    state: TrainState, part: Batch, config: TrainConfig, dtype: torch.dtype, world: World
) -> None:
    """Compile the layers, or not, by what becomes of the first micro-batch."""
    part = part.to(next(state.model.parameters()).device)
    state.compilation = settle_compilation(state.model, config.compile, part, dtype, world, state.compilation)


def _report(
    state: TrainState,
    batch: Batch,
    figures: Figures,
    names: tuple[str, ...],
    sums: Accumulated,
    seconds: float,
    waited: float,
    flops: int,
) -> StepReport:
    """The step that the state has just done."""
    return StepReport(
        step=state.step,
        figures=figures,
        names=names,
        count=int(sums.count),
        learning_rate=state.optimizer.learning_rate,
        tokens=int(sums.scored),
        positions=int(sums.positions),
        seconds=seconds,
        data_seconds=waited,
        flops=flops,
        total_tokens=state.tokens,
        origins=batch.origins,
        bookmark=batch.bookmark,
    )


def refuse_non_finite(report: StepReport, config: TrainConfig) -> None:
    """Wait for the figures of a step, and stop where they are not finite for longer than the config allows.

    Raises:
        NonFiniteError: they are.
    """
    if report.non_finite > (config.max_non_finite if config.on_non_finite == "skip" else 0):
        raise NonFiniteError(report)


def _scale_and_clip(
    parameters: list[nn.Parameter], count: float, clip: float | None, world: World, sharded: bool
) -> Tensor:
    """Turn summed gradients into that of the mean over what counts, then clip. Returns the norm before clipping."""
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, 1.0 / max(1.0, count))
    norm = total_norm(gradients, world, parts=sharded)
    if clip is not None:
        torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
    return norm
