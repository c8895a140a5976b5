"""The ranks that train together: who they are, what becomes of them, and how gradients and weights are shared."""

from txtgen.distributed.gradients import gradients_held_back, sum_gradients
from txtgen.distributed.world import World, open_world

__all__ = ["World", "gradients_held_back", "open_world", "sum_gradients"]
