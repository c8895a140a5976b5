"""Activation checkpointing: less memory for a second look at each layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from txtgen.model import Transformer


def checkpoint_activations(model: Transformer) -> None:
    """Let every layer keep only what goes into it while training, and compute the rest again for its gradient.

    Gradients stay the same to the bit, dropout included; a layer's parameters keep their names.

    Source: Chen et al. 2016, arXiv 1604.06174.
    """
    for layer in model.layers:
        layer.forward = partial(_checkpointed, layer, layer.forward)


def _checkpointed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if layer.training:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)
