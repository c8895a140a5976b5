"""The ranks that train together: who they are, what becomes of them, and how gradients and weights are shared."""

from txtgen.distributed.gradients import gradients_held_back, sum_gradients, total_norm
from txtgen.distributed.meeting import host_launch
from txtgen.distributed.sharding import (
    fill,
    gathered,
    is_sharded,
    is_spread,
    local,
    of_whole_matrices,
    reshard,
    shard,
    share_out,
)
from txtgen.distributed.world import World, open_world

__all__ = [
    "World",
    "fill",
    "gathered",
    "gradients_held_back",
    "host_launch",
    "is_sharded",
    "is_spread",
    "local",
    "of_whole_matrices",
    "open_world",
    "reshard",
    "shard",
    "share_out",
    "sum_gradients",
    "total_norm",
]
