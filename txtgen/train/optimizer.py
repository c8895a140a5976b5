"""Optimizers and which parameters they treat how."""

from collections.abc import Iterable
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from txtgen.config.train import AdamWConfig, MuonConfig, OptimizerConfig
from txtgen.model import Transformer
from txtgen.train.muon import Muon


class Optimizers:
    """Optimizers of different parameters that step as one.

    Args:
        parts: by name, each with the learning rate at the peak of the schedule.
    """

    def __init__(self, parts: dict[str, torch.optim.Optimizer]) -> None:
        self.parts = parts
        self._peaks = [float(group["lr"]) for group in self.groups()]

    @property
    def peak(self) -> float:
        """The learning rate of the first part at the peak of the schedule."""
        return self._peaks[0]

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all parts."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self, share: float) -> None:
        """Move the weights, at this share of the peak learning rates; then forget the gradients."""
        for group, peak in zip(self.groups(), self._peaks, strict=True):
            group["lr"] = share * peak
        for part in self.parts.values():
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of optimizers that were built alike."""
        if "param_groups" in state:
            state = {"adamw": state}  # of a run that began when there was nothing else
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """The optimizers of the trainable parameters; `config` with its learning rates settled."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    match config:
        case AdamWConfig():
            return Optimizers({"adamw": _adamw(model, parameters, config)})
        case MuonConfig(adamw=adamw):
            inner = {id(weight) for weight in _inner_matrices(model)}
            matrices = [parameter for parameter in parameters if id(parameter) in inner]
            others = [parameter for parameter in parameters if id(parameter) not in inner]
            parts: dict[str, torch.optim.Optimizer] = {}
            if matrices:
                rate = config.settled().learning_rate or 0.0
                parts["muon"] = Muon(matrices, rate, config.momentum, config.weight_decay)
            if others:
                parts["adamw"] = _adamw(model, others, adamw)
            return Optimizers(parts)
        case _:
            assert_never(config)


def _inner_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of linear layers inside blocks: not of the output layer."""
    stacks = [model.decoder, model.encoder] if isinstance(model, Transformer) else [model]
    modules = [module for stack in stacks if stack is not None for module in stack.modules()]
    return [module.weight for module in modules if isinstance(module, nn.Linear)]


def _adamw(model: nn.Module, parameters: Iterable[nn.Parameter], config: AdamWConfig) -> torch.optim.Optimizer:
    """AdamW: weight decay on the matrices of linear layers, on nothing else.

    The choice is by module, not by shape: an embedding is a matrix too, but a row that the batch does not hold
    would only decay.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - embeddings
    decayed = [parameter for parameter in parameters if id(parameter) in linears]
    others = [parameter for parameter in parameters if id(parameter) not in linears]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.settled().learning_rate or 0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
