"""Loss, perplexity and bits per byte of a model on held-out text."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from txtgen.data.types import Batch
from txtgen.distributed import World, is_sharded
from txtgen.errors import OutOfMemoryError
from txtgen.memory import is_out_of_memory
from txtgen.model import Transformer
from txtgen.train import Loss, batch_loss, even_micro_batches, held_bytes, smaller_batch


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """loss: nats per token. perplexity: exp(loss). bits_per_byte: of the scored text as UTF-8.

    tokens, bytes: how much was scored. Where answers are compared, the loss is per pair, and neither perplexity nor
    bits mean anything. told: what else the loss tells, means by name.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    told: dict[str, float] = field(default_factory=dict)


def weighted_loss(parts: Mapping[str, LossMetrics], weights: Mapping[str, float]) -> LossMetrics:
    """The parts of a mixture as one: the means of their losses and bits per byte by weight, the sums of the counts.

    Without weights there is no mixture, and but one part.
    """
    if not weights:
        (only,) = parts.values()
        return only
    total = sum(weights[name] for name in parts)
    loss = sum(weights[name] * part.loss for name, part in parts.items()) / total
    return LossMetrics(
        loss=loss,
        perplexity=_perplexity(loss),
        bits_per_byte=sum(weights[name] * part.bits_per_byte for name, part in parts.items()) / total,
        tokens=sum(part.tokens for part in parts.values()),
        bytes=sum(part.bytes for part in parts.values()),
    )


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _sums(
    model: Transformer, batch: Batch, limit: int | None, loss: Loss | None, world: World
) -> tuple[list[float], int | None]:
    """The sums of a batch, and how much of one goes through the model at once after that."""
    device = next(model.parameters()).device
    while True:
        try:
            measure = loss or batch_loss
            parts = even_micro_batches(model, batch, limit, world)
            found = [measure(model, part.to(device)).all.tolist()[1:] for part in parts]
            return [sum(values) for values in zip(*found, strict=True)], limit
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or is_sharded(model):
                raise
        limit = smaller_batch(held_bytes(model), batch, limit)


def evaluate_loss(
    model: Transformer,
    batches: Iterable[Batch],
    dtype: torch.dtype = torch.float32,
    world: World | None = None,
    max_tokens: int | None = None,
    loss: Loss | None = None,
) -> LossMetrics:
    """Score every batch once, over all ranks; the model is left in the mode that it was in.

    Args:
        model: to be measured.
        batches: this rank's part of them.
        dtype: of the matrix products.
        world: of ranks that measure together.
        max_tokens: at most so many go through the model at once, and fewer if memory runs out; None: a batch.
        loss: what is measured; None: cross-entropy.

    Raises:
        OutOfMemoryError: memory runs out for a single row, on whichever rank; all raise it together, but those of a
            sharded model, who wait for one another within it.
    """
    world, names = world or World(), () if loss is None else loss.figures
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums = [0.0] * (1 + len(names))
    count = tokens = num_bytes = 0
    out: OutOfMemoryError | None = None
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype == torch.bfloat16):
            for batch in batches:
                count += batch.num_scored if loss is None else loss.count(batch)
                tokens += batch.num_scored
                num_bytes += batch.bytes
                try:
                    if out is None:
                        found, max_tokens = _sums(model, batch, max_tokens, loss, world)
                        sums = [before + more for before, more in zip(sums, found, strict=True)]
                except OutOfMemoryError as error:
                    if world.size == 1:
                        raise
                    out = error  # the other ranks may meet in the batches that are left
    finally:
        model.train(was_training)
    world.raise_on_all(OutOfMemoryError, out)
    nll, *figures, total, scored, size = world.sum([*sums, float(count), float(tokens), float(num_bytes)])
    mean = nll / max(1.0, total)
    return LossMetrics(
        loss=mean,
        perplexity=_perplexity(mean),
        bits_per_byte=nll / math.log(2) / max(1.0, size),
        tokens=int(scored),
        bytes=int(size),
        told={name: value / max(1.0, total) for name, value in zip(names, figures, strict=True)},
    )
