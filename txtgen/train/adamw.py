"""AdamW, for embeddings, norms and biases, or for all."""

import torch
from torch import Tensor, nn

from txtgen.distributed import local
from txtgen.train.stepping import Stepping


class AdamW(Stepping):
    """Adam with decoupled weight decay, one fused call of torch's for all parameters of a group.

    Its groups have `params`, `lr`, `betas`, `eps` and `weight_decay`. Source: Loshchilov and Hutter 2017,
    arXiv 1711.05101.
    """

    @torch.no_grad()
    def step(self, found_inf: Tensor | None = None) -> None:
        """Move every parameter that has a gradient."""
        for group in self.groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moving:
                continue
            states = [self._state_of(parameter) for parameter in moving]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [local(parameter) for parameter in moving],
                [local(parameter.grad) for parameter in moving],
                [local(state["exp_avg"]) for state in states],
                [local(state["exp_avg_sq"]) for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                found_inf=found_inf,
            )
            if found_inf is not None:
                torch._foreach_sub_(steps, [found_inf] * len(steps))

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
