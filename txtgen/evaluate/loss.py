"""Loss, perplexity and bits per byte of a model on held-out text."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from txtgen.data.types import Batch
from txtgen.distributed import World
from txtgen.model import Transformer
from txtgen.train import batch_loss


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


def evaluate_loss(
    model: Transformer, batches: Iterable[Batch], dtype: torch.dtype = torch.float32, world: World | None = None
) -> LossMetrics:
    """Score every batch once, over all ranks; the model is left in the mode that it was in."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nll, tokens, num_bytes = 0.0, 0, 0
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype == torch.bfloat16):
            for batch in batches:
                tokens += batch.num_scored
                num_bytes += batch.bytes
                nll += float(batch_loss(model, batch.to(device)).nll)
    finally:
        model.train(was_training)
    nll, total, size = (world or World()).sum([nll, float(tokens), float(num_bytes)])
    loss = nll / max(1.0, total)
    return LossMetrics(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=nll / math.log(2) / max(1.0, size),
        tokens=int(total),
        bytes=int(size),
    )
