"""Gradients summed over the ranks while they are being computed."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from txtgen.distributed.sharding import is_sharded
from txtgen.distributed.world import World


def sum_gradients(module: nn.Module, world: World) -> nn.Module:
    """The module, such that a backward pass from what it returns leaves gradients summed over all ranks.

    They are summed in buckets, each as soon as backward has filled it. The weights of rank 0 become those of all.
    Of a sharded model each unit sees to it by itself.
    """
    if world.size == 1 or is_sharded(module):
        return module
    with world.together():
        parallel = DistributedDataParallel(module, gradient_as_bucket_view=True)
    parallel.register_comm_hook(None, _sum)
    return parallel


def _sum(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Sums, where DistributedDataParallel would average: what to divide by is known by whoever counts the tokens."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return cast("torch.futures.Future[Tensor]", work.get_future().then(lambda future: future.value()[0]))


def gradients_held_back(module: nn.Module) -> AbstractContextManager[None]:
    """Within it, gradients are added up on each rank alone; the next backward pass outside it sums all of them.

    Not those of a sharded model: a rank has no room for whole gradients, which is why it is sharded.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def total_norm(gradients: Sequence[Tensor], world: World, parts: bool) -> Tensor:
    """The norm, a scalar, of all gradients as one vector. parts: this rank holds a part of each only."""
    norm = nn.utils.get_total_norm(gradients)
    if not parts:
        return norm
    return world.sum_tensor(norm.square()).sqrt()
