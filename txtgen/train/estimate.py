"""What training holds in memory: told from one row, before a whole batch is tried."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from txtgen.config.train import TrainConfig
from txtgen.data.types import Batch
from txtgen.distributed import is_sharded, local, reshard
from txtgen.model import Transformer
from txtgen.train.accumulation import micro_batches
from txtgen.train.loss import Loss, TokenLoss, chunk_rows
from txtgen.train.memory import held_bytes
from txtgen.train.optimizer import Optimizers


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of what a rank holds when a micro-batch has gone forward, which is when it holds most.

    weights, gradients, optimizer: of the parameters, the latter two of trained ones only; of a model that is spread
    over the ranks, this rank's part. activations: what the forward pass keeps for the backward pass. logits: of one
    chunk, with what is made of them. gathered: parts of other ranks, for as long as this one computes with them.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of it. What the libraries take themselves is not counted."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.gathered


def estimate_memory(
    model: Transformer,
    optimizer: Optimizers,
    batch: Batch,
    config: TrainConfig,
    dtype: torch.dtype,
    loss: Loss | None = None,
) -> MemoryEstimate:
    """What a step on a batch of this shape would hold, with matrix products in `dtype`; loss as for `train`.

    Activations are not a formula's: one and then two rows of the batch go through the model, and everything that
    autograd keeps of them is counted, each storage once. It grows evenly with rows, so two say what any number keeps.
    Dropout, attention kernels, norms and checkpointing of activations count as they really are on this device. All
    ranks of a model that is spread over them do it together.
    """
    part = next(iter(micro_batches(batch, config.micro_batch_tokens)))
    rows = part.input_ids.shape[0]
    one, two = (
        kept_bytes(model, part.rows(0, most), loss or TokenLoss(config.label_smoothing), dtype) for most in (1, 2)
    )
    held, share = held_bytes(model, optimizer), _share(model)
    vocab_size = model.config.vocab_size or 1
    chunk = min(part.num_scored, chunk_rows(next(model.parameters()).device, vocab_size))
    return MemoryEstimate(
        weights=round(share * held.weights),
        gradients=round(share * held.gradients),
        optimizer=round(share * held.optimizer),
        activations=one + (rows - 1) * (two - one),
        # The logits and their gradient as the model computes them, and both in float32.
        logits=chunk * vocab_size * (8 if dtype == torch.float32 else 2 * dtype.itemsize + 8),
        gathered=_gathered_bytes(model) if is_sharded(model) else 0,
    )


def _share(model: Transformer) -> float:
    """How much of the parameters is on this rank."""
    parameters = list(model.parameters())
    return sum(local(weight).numel() for weight in parameters) / sum(weight.numel() for weight in parameters)


def _gathered_bytes(model: Transformer) -> int:
    """Of the layer that computes, of the one after it, which is gathered meanwhile, and of what is in no layer."""
    layers = [held_bytes(layer).weights for layer in model.layers]
    return held_bytes(model).weights - sum(layers) + sum(sorted(layers)[-2:])


def kept_bytes(model: Transformer, batch: Batch, loss: Loss, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of a forward pass for the backward pass, the parameters themselves not counted."""
    kept: dict[int, int] = {}
    alive: list[Any] = []  # a storage that is freed may be used again, under the same address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Asked each time: those of a model that is spread over the ranks are gathered one layer after the other.
        held = chain(model.parameters(), model.buffers())
        own = {local(weight).untyped_storage().data_ptr() for weight in held}
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor.detach()  # the tensor itself would hold on to the graph, and the graph to it, for good

    device = next(model.parameters()).device
    was_training = model.training
    model.train()
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            loss(model, batch.to(device))
    finally:
        model.train(was_training)
        reshard(model)
    return sum(kept.values())
