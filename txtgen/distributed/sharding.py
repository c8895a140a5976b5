"""A model that is spread over the ranks: each holds a part of every weight, and of its gradient and optimizer state.

Source: Rajbhandari et al. 2020, arXiv 1910.02054 (ZeRO); Zhao et al. 2023, arXiv 2304.11277 (FSDP).
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from txtgen.distributed.world import World

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

# Importing torch.distributed.tensor takes as long as half of torch: it is done where a model is spread, and until then
# no tensor can be of its kind.


def shard(
    model: nn.Module, units: Sequence[nn.Module], methods: Sequence[str], device: torch.device, world: World
) -> None:
    """Spread the parameters of a model over all ranks, with memory for them.

    It computes what it did, and gradients are sums over the ranks.

    Args:
        model: on the meta device, where it takes no memory.
        units: modules whose weights are gathered while they compute; what is in none of them, such as weights that are
            used in several places, is gathered for as long as the model computes.
        methods: of the model, beside `forward`, that compute something.
        device: where the ranks will compute.
        world: the ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world.size,))
    for module in (*units, model):
        part = fully_shard(module, mesh=mesh)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    for method in methods:
        register_fsdp_forward_method(model, method)
    model.to_empty(device=device)
    for module in (*units, model):
        # The tensors to gather into are made once. Made in inference mode, they could not be trained with later.
        cast(FSDPModule, module).unshard()
        cast(FSDPModule, module).reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether the model is spread over the ranks: then all of them must take part whenever it computes."""
    return any(_gathers(module) for module in model.modules())


def _gathers(module: nn.Module) -> "TypeGuard[FSDPModule]":
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_spread(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a rank holds only a part of the tensor."""
    parts = sys.modules.get("torch.distributed.tensor")
    return parts is not None and isinstance(tensor, parts.DTensor)


def reshard(model: nn.Module) -> None:
    """Let go of what was gathered, so that the parameters are what this rank holds. After computing without gradients
    some still are whole."""
    for module in model.modules():
        if _gathers(module):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds; it shares its memory."""
    return tensor.to_local() if is_spread(tensor) else tensor


@torch.no_grad()
def share_out(value: Tensor, like: Tensor, world: World) -> Tensor:
    """The tensor of rank 0 as this rank holds it: its part, if `like` has that shape and is spread over the ranks.

    value: on other ranks it need not have data. Only one whole tensor is on a rank at a time.
    """
    device = local(like).device
    whole = value.to(device) if world.is_main else torch.empty_like(value, device=device)
    if world.size > 1:
        with world.together():
            dist.broadcast(whole, 0)
    return _part(whole, like)


def _part(whole: Tensor, like: Tensor) -> Tensor:
    if not is_spread(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def fill(parameter: Tensor, whole: Tensor) -> None:
    """Set a parameter, or the part of it that this rank holds, from a tensor that all ranks have."""
    local(parameter).copy_(local(_part(whole.to(local(parameter).device), parameter)))


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, which all ranks ask for together."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def of_whole_matrices(function: Callable[[Tensor], Tensor], parts: list[Tensor], like: "DTensor") -> list[Tensor]:
    """What a function makes of matrices, where a rank has some rows of each: these rows of the results.

    Every rank computes its share: it is sent the rows of one matrix in `size`, and sends back those of the result.

    Args:
        function: from [R,C] to [R,C].
        parts: rows [r,C] of each matrix.
        like: [R,C], spread over the ranks as the matrices are.
    """
    group, (rows, columns) = like.device_mesh.get_group(), like.shape
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    step = -(-rows // size)
    rows_of = [max(0, min(step, rows - number * step)) for number in range(size)]
    results: list[Tensor] = []
    for start in range(0, len(parts), size):
        mine = parts[start : start + size]
        sent = [mine[0].numel() if number < len(mine) else 0 for number in range(size)]
        received = [count * columns if rank < len(mine) else 0 for count in rows_of]
        whole = mine[0].new_empty(sum(received))
        dist.all_to_all_single(whole, torch.cat([part.flatten() for part in mine]), received, sent, group)
        if rank < len(mine):
            whole = function(whole.view(rows, columns)).flatten()
        back = mine[0].new_empty(sum(sent))
        dist.all_to_all_single(back, whole, sent, received, group)
        results += back.view(len(mine), rows_of[rank], columns).unbind()
    return results
