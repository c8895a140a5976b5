"""The ranks that train together: who they are, what becomes of them, and how gradients and weights are shared."""

from txtgen.distributed.gradients import GradientSums, total_norm
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
    "GradientSums",
    "World",
    "fill",
    "gathered",
    "host_launch",
    "is_sharded",
    "is_spread",
    "local",
    "of_whole_matrices",
    "open_world",
    "reshard",
    "shard",
    "share_out",
    "total_norm",
]
