"""Optimizers and which parameters they treat how."""

import torch
from torch import nn

from txtgen.config.train import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters: weight decay on the matrices of linear layers, on nothing else.

    The choice is by module, not by shape: an embedding is a matrix too, but a row that the batch does not hold
    would only decay.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = id(parameter) in linears and id(parameter) not in embeddings
            (decayed if decays else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate or 0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use this learning rate from now on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
