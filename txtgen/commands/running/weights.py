"""The weights of a run: where its ranks hold them, and where they come from."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from txtgen.checkpoint import Checkpoint, check_weights
from txtgen.config.train import Sharding
from txtgen.distributed import World, fill, shard, share_out
from txtgen.model import Transformer, initial_weight

Read = TypeVar("Read")

COMPUTING = ("hidden", "prefill", "extend", "prefill_hidden", "extend_hidden")
"""The methods of a Transformer that compute with the weights of its layers. `head` comes after one of them, which has
gathered what is in no layer; and the loss calls it in parts, on some ranks more often than on others."""


def place(model: Transformer, sharding: Sharding, device: torch.device, world: World) -> None:
    """Give a model of the meta device memory on this device: for all of it, or for the part of this rank."""
    if sharding == "shard" and world.size > 1:
        shard(model, model.layers, COMPUTING, device, world)
    else:
        model.to_empty(device=device)


def begin(model: Transformer, seed: int) -> None:
    """Set the weights from the seed, the same for any number of ranks."""
    for name, parameter in model.named_parameters():
        fill(parameter, initial_weight(model.config, name, parameter.shape, seed))


def take_over(weights: Mapping[str, Tensor], checkpoint: Checkpoint, where: str, world: World) -> None:
    """Set weights of a model to those of a checkpoint, which rank 0 has read; every name and shape must match.

    Afterwards the checkpoint has none: a run that goes on is not to hold two models.

    Raises:
        CheckpointError: one does not match, or is not finite.
    """
    world.from_main(lambda: check_weights(weights, checkpoint.model, where))
    with torch.no_grad():
        for name, tensor in weights.items():
            weight = checkpoint.model.pop(name).to(tensor.dtype)
            tensor.copy_(share_out(weight, tensor, world))


def read_once(read: Callable[[], Read], world: World) -> Read:
    """What rank 0 reads, on all ranks: on the others, the tensors in it have no data.

    Raises:
        TxtgenError: what rank 0 failed of, on every rank.
    """
    held: list[Read] = []

    def outline() -> Read:
        held.append(read())
        return held[0] if world.size == 1 else without_data(held[0])

    told = world.from_main(outline)
    return held[0] if held else told


def without_data(tree: Any) -> Any:
    """The same checkpoint, dict, list or tuple, with every tensor in it on the meta device."""
    match tree:
        case Checkpoint():
            return replace(tree, model=without_data(tree.model), training=without_data(tree.training))
        case dict():
            return {key: without_data(value) for key, value in tree.items()}
        case list() | tuple():
            return type(tree)(without_data(value) for value in tree)
        case Tensor():
            return tree.to("meta")
        case _:
            return tree
