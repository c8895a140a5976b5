"""Low-rank adapters: what is learnt beside the linear layers of a model that itself stays as it is.

A linear layer W [N,K] becomes W + scale * up @ down, with `down` [R,K] and `up` [N,R]. Modules keep their names, and
the adapter's weights stand below them: `q_proj.weight`, `q_proj.lora.down.weight`, `q_proj.lora.up.weight`.

Source: Hu et al. 2021, arXiv 2106.09685.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from txtgen.config.finetuning import LoraConfig
from txtgen.errors import ConfigError
from txtgen.model.functions import dropout
from txtgen.model.init import keyed
from txtgen.model.quantize import QuantizedLinear
from txtgen.model.transformer import Transformer, Unset


class Lora(nn.Module):
    """A map [...,K] -> [...,N] through R numbers, to be added to that of a linear layer."""

    def __init__(self, width: int, outputs: int, config: LoraConfig, device: torch.device) -> None:
        super().__init__()
        with Unset():
            self.down = nn.Linear(width, config.rank, bias=False, device=device)
            self.up = nn.Linear(config.rank, outputs, bias=False, device=device)
        self.scale, self.dropout = config.scale, config.dropout
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        """Map x [...,K] to [...,N]."""
        return cast(Tensor, self.up(self.down(dropout(x, self.dropout, self.training)) * self.scale))

    @property
    def product(self) -> Tensor:
        """What it adds to a weight, [N,K]."""
        return self.scale * (self.up.weight @ self.down.weight)


class _Adapted(nn.Module):
    """A linear layer with an adapter beside it."""

    lora: Lora

    def forward(self, x: Tensor) -> Tensor:
        """Map x [...,K] to [...,N]."""
        out = cast(Tensor, super().forward(x))
        return out + self.lora(x) if self.lora.active else out


class LoraLinear(_Adapted, nn.Linear):
    """A linear layer with an adapter beside it."""


class LoraQuantizedLinear(_Adapted, QuantizedLinear):
    """The same, its own weight in few bits."""


ADAPTED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LoraLinear, QuantizedLinear: LoraQuantizedLinear}


def add_adapters(model: Transformer, config: LoraConfig) -> None:
    """Put an adapter beside every linear layer that a target names; its weights are not set yet.

    Raises:
        ConfigError: a target names none.
    """
    modules = ((name, module) for name, module in model.named_modules() if name != "lm_head")
    linears: dict[str, Any] = {name: module for name, module in modules if type(module) in ADAPTED}
    for target in config.targets:
        if not any(_is_named(name, target) for name in linears):
            ends = sorted({name.rpartition(".")[2] for name in linears})
            raise ConfigError(
                f"the target {target!r} names no linear layer", "adapter.targets", f"there are {', '.join(ends)}"
            )
    for name, module in linears.items():
        if any(_is_named(name, target) for target in config.targets):
            device = next(chain(module.buffers(), module.parameters())).device
            module.__class__ = ADAPTED[type(module)]  # so that all else, and who refers to it, stays as it is
            module.lora = Lora(module.in_features, module.out_features, config, device)


def _is_named(name: str, pattern: str) -> bool:
    """Whether a pattern fits a name or the end of one."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def is_of_adapter(name: str) -> bool:
    """Whether a parameter is one of an adapter."""
    return ".lora." in name


def initial_adapter(model: Transformer, seed: int) -> dict[str, Tensor]:
    """The weights by name that an adapter begins with, float32 on the CPU: a pure function of their names, shapes and
    the seed. `up` is zero, so that nothing changes at first."""
    found = {}
    for name, parameter in model.named_parameters():
        if is_of_adapter(name):
            found[name] = torch.zeros(parameter.shape, device="cpu")
            if name.endswith(".down.weight"):
                bound = parameter.shape[1] ** -0.5
                found[name].uniform_(-bound, bound, generator=keyed(seed, name))
    return found


def _adapted(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, _Adapted)]


def adapters_of(model: nn.Module) -> dict[str, Lora]:
    """The adapters, each by the name of the weight that it stands beside."""
    return {f"{name}.weight": module.lora for name, module in model.named_modules() if isinstance(module, _Adapted)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model computes without its adapters while the block runs: as the base model, to the bit."""
    adapters = [module.lora for module in _adapted(model)]
    before = [lora.active for lora in adapters]
    for lora in adapters:
        lora.active = False
    try:
        yield
    finally:
        for lora, active in zip(adapters, before, strict=True):
            lora.active = active


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Make the adapters part of the weights that they stand beside, none of which may be in few bits."""
    for module in _adapted(model):
        module.weight += module.lora.product
        del module.lora
        module.__class__ = nn.Linear
