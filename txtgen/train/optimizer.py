"""Optimizers and which parameters they treat how."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, assert_never, cast

import torch
from torch import Tensor, nn

from txtgen.config.train import AdamWConfig, MuonConfig, OptimizerConfig
from txtgen.distributed import World, reshard, share_out
from txtgen.errors import CheckpointError
from txtgen.model import Transformer
from txtgen.model.depth import depths
from txtgen.train.adamw import AdamW
from txtgen.train.muon import Muon
from txtgen.train.stepping import Stepping

Names = dict[Tensor, str]
"""Of parameters."""


class Optimizers:
    """Optimizers of different parameters that step as one.

    Args:
        parts: by name, each with the learning rate at the peak of the schedule.
        names: of the parameters.
    """

    def __init__(self, parts: dict[str, Stepping], names: Names) -> None:
        self.parts, self._names = parts, names
        self._peaks = [float(group["lr"]) for group in self.groups()]

    @property
    def learning_rate(self) -> float:
        """That of the first part, at the last step."""
        return float(self.groups()[0]["lr"])

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all parts."""
        return [group for part in self.parts.values() for group in part.groups]

    def step(self, share: float, leave_out: Tensor | None = None) -> None:
        """Move the weights, at this share of the peak learning rates; then forget the gradients.

        Args:
            share: of the peak learning rates.
            leave_out: a scalar; where it is true on the device, weights and state stay as they are.
        """
        for group, peak in zip(self.groups(), self._peaks, strict=True):
            group["lr"] = share * peak
        found_inf = None if leave_out is None else leave_out.float()
        for part in self.parts.values():
            part.step(found_inf)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Drop the gradients."""
        for part in self.parts.values():
            part.forget_gradients()

    def state_bytes(self) -> int:
        """What the state takes once every parameter has moved."""
        copies = {name: 1 if isinstance(part, Muon) else 2 for name, part in self.parts.items()}
        return sum(
            copies[name] * parameter.numel() * parameter.element_size()
            for name, part in self.parts.items()
            for parameter in part.parameters
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: for each part, the state of each parameter by its name."""
        return {
            name: {self._names[parameter]: dict(part.state.get(parameter, {})) for parameter in part.parameters}
            for name, part in self.parts.items()
        }

    def load_state_dict(self, state: dict[str, Any], world: World | None = None) -> None:
        """Go on from such a state. Rates and the like stay those of the config; a parameter without one begins anew.

        All ranks do so together, and take the data of the tensors from rank 0.

        Raises:
            CheckpointError: it is of another number of parameters, and does not name them; or of other shapes.
        """
        if "param_groups" in state:
            state = {"adamw": state}  # of a run that began when there was nothing else
        for name, part in self.parts.items():
            saved = _by_name(state.get(name, {}), [self._names[parameter] for parameter in part.parameters])
            for parameter in part.parameters:
                found = saved.get(self._names[parameter]) or {}
                _require_state_of(parameter, self._names[parameter], found)
                part.state[parameter] = {
                    key: share_out(value, parameter, world or World()) for key, value in found.items()
                }


def _require_state_of(parameter: Tensor, name: str, state: dict[str, Any]) -> None:
    """Refuse what is no state of this parameter: fused optimizers look at no shape of what they read and write."""
    for key, value in state.items():
        like = torch.zeros(()) if key == "step" else parameter
        if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
            raise CheckpointError(
                f"the optimizer's {key} of {name} is not of its shape {list(like.shape)} and type",
                "training.optimizer",
                "use an undamaged copy or an earlier checkpoint",
            )
        if value.layout != torch.strided or (value.numel() and not value.is_contiguous()):
            raise CheckpointError(f"the optimizer's {key} of {name} is not whole", "training.optimizer", "use another")


def _by_name(saved: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """A part's saved state by parameter name; older checkpoints number the parameters."""
    if "param_groups" not in saved:
        return saved
    count = sum(len(group["params"]) for group in saved["param_groups"])
    if count != len(names):
        raise CheckpointError(
            f"the optimizer's state is of {count} parameters, {len(names)} are to be trained",
            "training.optimizer",
            "go back to the old freeze",
        )
    return {name: saved["state"].get(number) for number, name in enumerate(names)}


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """The optimizers of the trainable parameters; `config` with its learning rates settled."""
    reshard(model)
    names: Names = {weight: name for name, weight in model.named_parameters() if weight.requires_grad}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    match config:
        case AdamWConfig():
            return Optimizers({"adamw": _adamw(model, parameters, config, names, config.layer_decay)}, names)
        case MuonConfig(adamw=adamw, layer_decay=decay):
            inner = {id(weight) for weight in _inner_matrices(model)}
            matrices = [parameter for parameter in parameters if id(parameter) in inner]
            others = [parameter for parameter in parameters if id(parameter) not in inner]
            parts: dict[str, Stepping] = {}
            if matrices:
                parts["muon"] = _muon(model, matrices, config, names)
            if others:
                parts["adamw"] = _adamw(model, others, adamw, names, decay)
            return Optimizers(parts, names)
        case _:
            assert_never(config)


def _inner_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of linear layers inside blocks: not of the output layer."""
    stacks = [model.decoder, model.encoder] if isinstance(model, Transformer) else [model]
    modules = [module for stack in stacks if stack is not None for module in stack.modules()]
    return [module.weight for module in modules if isinstance(module, nn.Linear)]


def _by_depth(group: dict[str, Any], model: nn.Module, names: Names, decay: float) -> list[dict[str, Any]]:
    """A group in parts, one for each distance from the output, those that are further from it at lower rates."""
    if decay == 1.0:
        return [group]
    depth_of, parts = depths(cast(Transformer, model)), defaultdict[int, list[nn.Parameter]](list)
    for parameter in group["params"]:
        parts[depth_of[names[parameter]]].append(parameter)
    return [{**group, "params": parts[depth], "lr": group["lr"] * decay**depth} for depth in sorted(parts)]


def _muon(model: nn.Module, matrices: list[nn.Parameter], config: MuonConfig, names: Names) -> Muon:
    rates = {"lr": config.settled().learning_rate or 0.0, "momentum": config.momentum}
    group = {"params": matrices, **rates, "weight_decay": config.weight_decay}
    return Muon(_by_depth(group, model, names, config.layer_decay))


def _adamw(
    model: nn.Module, parameters: Iterable[nn.Parameter], config: AdamWConfig, names: Names, decay: float
) -> AdamW:
    """AdamW: weight decay on the matrices of linear layers, on nothing else.

    The choice is by module, not by shape: an embedding is a matrix too, but a row that the batch does not hold
    would only decay.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - embeddings
    decayed = [parameter for parameter in parameters if id(parameter) in linears]
    others = [parameter for parameter in parameters if id(parameter) not in linears]
    rates = {"lr": config.settled().learning_rate or 0.0, "betas": (config.beta1, config.beta2), "eps": config.eps}
    groups = (
        {"params": decayed, **rates, "weight_decay": config.weight_decay},
        {"params": others, **rates, "weight_decay": 0.0},
    )
    return AdamW([part for group in groups for part in _by_depth(group, model, names, decay)])
