"""An average of the weights over the steps, which is often better than the weights of any one step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from txtgen.distributed import local, reshard


class WeightAverage:
    """An exponential moving average of a model's weights, beside the weights that are trained.

    Source: Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv 1703.01780 (the rising decay of its beginning).

    Args:
        model: its trainable parameters are averaged, from what they are now. Spread over ranks, so is the average.
        decay: how much of the average stays in a step, once the run is long enough.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.weights: dict[str, Tensor] = {name: parameter.detach() for name, parameter in named.items()}
        """Those that are trained, by name; they share the parameters' memory."""
        self.averaged: dict[str, Tensor] = {name: weight.clone() for name, weight in self.weights.items()}
        """Their average, by name."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after this step, counted from 1; of few steps it takes in more each."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(map(local, self.averaged.values())), self._own(), 1 - decay)

    def _own(self) -> list[Tensor]:
        return [local(weight) for weight in self.weights.values()]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights while the block runs, and then its own again; must not be nested."""
        reshard(self._model)
        own = [weight.clone() for weight in self._own()]
        torch._foreach_copy_(self._own(), list(map(local, self.averaged.values())))
        try:
            yield
        finally:
            reshard(self._model)
            torch._foreach_copy_(self._own(), own)
