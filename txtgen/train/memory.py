"""What training holds in memory from step to step, and what is done where that and a batch are too much."""

import os
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from txtgen.config.train import OptimizerConfig
from txtgen.data.types import Batch
from txtgen.errors import OutOfMemoryError, ResourceError
from txtgen.model import Transformer
from txtgen.train.optimizer import Optimizers, build_optimizer


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """Bytes of all weights, and of gradients and optimizer state, which only trained ones have."""

    weights: int
    gradients: int = 0
    optimizer: int = 0

    def __str__(self) -> str:
        """In words."""
        what = "weights, gradients and optimizer" if self.gradients else "weights"
        return f"{what} take about {self.total / 1e9:,.2f} GB"

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer


def held_bytes(model: nn.Module, optimizer: Optimizers | None = None) -> HeldBytes:
    """What a model holds, and what an optimizer adds that trains it. The model may be on the meta device."""
    weights = sum(map(_bytes, chain(model.parameters(), model.buffers())))  # those in few bits are buffers
    if optimizer is None:
        return HeldBytes(weights)
    trained = sum(_bytes(weight) for weight in model.parameters() if weight.requires_grad)
    return HeldBytes(weights, trained, optimizer.state_bytes())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def require_memory(model: Transformer, config: OptimizerConfig, device: torch.device, parts: int = 1) -> None:
    """Refuse to train a model whose weights, gradients and optimizer alone exceed the memory of the device.

    Args:
        model: may be on the meta device, where it takes no memory; its frozen parameters are marked.
        config: of the optimizer.
        device: where it is to be trained.
        parts: over how many devices it is spread.

    Raises:
        ResourceError: it does not fit.
    """
    needed = held_bytes(model, build_optimizer(model, config)).total / parts
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    if needed > available:
        raise ResourceError(
            f"the model needs {needed / 1e9:,.1f} GB for weights, gradients and optimizer alone",
            f"{device} has {available / 1e9:,.1f} GB",
            "make d_model, d_ff, num_layers or the vocabulary smaller",
        )


def smaller_batch(held: HeldBytes, batch: Batch, limit: int | None) -> int:
    """Half of what went through the model at once, after that did not fit into memory.

    Args:
        held: takes the rest of the memory.
        batch: what did not fit, [B,T].
        limit: tokens of it that went through the model at once, source and padding included; None: all.

    Raises:
        OutOfMemoryError: a single row was too much.
    """
    torch.cuda.empty_cache()  # does nothing without a GPU
    width = batch.row_width
    tokens = batch.input_ids.shape[0] * width
    tokens = min(limit or tokens, tokens)
    if tokens >= 2 * width:
        return tokens // 2
    raise OutOfMemoryError(
        f"out of memory with a single row of {width:,} tokens",
        f"{held}, activations the rest",
        "lower train.sequence_length (or the longest pair), make model.d_model or num_layers smaller, "
        "or set train.dtype=bfloat16",
    )
