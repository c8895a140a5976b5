"""Loss, perplexity and bits per byte of a model on held-out text."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from txtgen.data.types import Batch
from txtgen.distributed import World, is_sharded
from txtgen.errors import OutOfMemoryError
from txtgen.memory import is_out_of_memory
from txtgen.model import Transformer
from txtgen.train import batch_loss, held_bytes, micro_batches, smaller_batch


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """loss: nats per token. perplexity: exp(loss). bits_per_byte: of the scored text as UTF-8.

    tokens, bytes: how much was scored.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


def weighted_loss(parts: Mapping[str, LossMetrics], weights: Mapping[str, float]) -> LossMetrics:
    """The parts of a mixture as one: the means of their losses and bits per byte by weight, the sums of the counts."""
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


def _nll(model: Transformer, batch: Batch, limit: int | None) -> tuple[float, int | None]:
    """The loss of a batch, and how much of one goes through the model at once after that."""
    device = next(model.parameters()).device
    while True:
        try:
            return sum(float(batch_loss(model, part.to(device)).nll) for part in micro_batches(batch, limit)), limit
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
) -> LossMetrics:
    """Score every batch once, over all ranks; the model is left in the mode that it was in.

    Args:
        model: to be measured.
        batches: this rank's part of them.
        dtype: of the matrix products.
        world: of ranks that measure together.
        max_tokens: at most so many go through the model at once, and fewer if memory runs out; None: a batch.

    Raises:
        OutOfMemoryError: memory runs out for a single row, on whichever rank; all raise it together, but those of a
            sharded model, who wait for one another within it.
    """
    world = world or World()
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nll, tokens, num_bytes = 0.0, 0, 0
    out: OutOfMemoryError | None = None
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype == torch.bfloat16):
            for batch in batches:
                tokens += batch.num_scored
                num_bytes += batch.bytes
                try:
                    part, max_tokens = (0.0, 0) if out else _nll(model, batch, max_tokens)
                    nll += part
                except OutOfMemoryError as error:
                    if world.size == 1:
                        raise
                    out = error  # the other ranks may meet in the batches that are left
    finally:
        model.train(was_training)
    world.raise_on_all(OutOfMemoryError, out)
    nll, total, size = world.sum([nll, float(tokens), float(num_bytes)])
    loss = nll / max(1.0, total)
    return LossMetrics(
        loss=loss,
        perplexity=_perplexity(loss),
        bits_per_byte=nll / math.log(2) / max(1.0, size),
        tokens=int(total),
        bytes=int(size),
    )
