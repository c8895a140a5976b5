"""What optimizers have in common: groups of parameters, and a state for each.

This is what `torch.optim.Optimizer` is. That one imports torch's compiler when it is first used, which takes longer
than all else before the first step of a small run.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class Stepping(ABC):
    """Parameters that move by one method.

    Args:
        groups: each with `params` and what its method wants to know, such as `lr` and `weight_decay`.

    state: what is remembered of a parameter once it has moved, by name.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self.groups = [group for group in groups if group["params"]]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of all groups."""
        return [parameter for group in self.groups for parameter in group["params"]]

    @abstractmethod
    def step(self, found_inf: Tensor | None = None) -> None:
        """Move every parameter that has a gradient.

        Args:
            found_inf: a float32 scalar on the device, 1.0 for a step that is to change nothing.
        """

    def forget_gradients(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None
