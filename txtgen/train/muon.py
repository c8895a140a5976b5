"""Muon: momentum whose update of a matrix is made orthogonal, so that it moves all directions equally far."""

from collections import defaultdict
from functools import reduce

import torch
from torch import Tensor

from txtgen.distributed import is_spread, local, of_whole_matrices
from txtgen.train.stepping import Stepping

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of a quintic iteration that takes singular values quickly near 1, not exactly to it."""


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices [...,R,C] with all singular values near 1 (0.7 to 1.2) and the same singular vectors.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    # A GPU has bfloat16 for it, which suffices; on a CPU float32 is as fast or faster.
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32).reshape(-1, *matrices.shape[-2:])
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = _by_gram(x, steps) if x.shape[-1] >= 2 * x.shape[-2] and not x.is_cuda else _directly(x, steps)
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)


def _directly(x: Tensor, steps: int) -> Tensor:
    """x <- (a + b G + c G^2) x with G = x x^T, so many times; x [M,R,C]."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram(x: Tensor, steps: int) -> Tensor:
    """The same for wide x, in products of [R,R] alone but for the first and the last.

    All factors are polynomials in the first G, so they commute: with P = a + b G + c G^2, the next G is P^2 G, and the
    result the product of all P, times x. In bfloat16 this would lose too much.
    """
    a, b, c = NEWTON_SCHULZ
    gram, factors = x @ x.mT, []
    for step in range(steps):
        factors.append(torch.baddbmm(gram, gram, gram, beta=b, alpha=c))
        factors[-1].diagonal(dim1=-2, dim2=-1).add_(a)
        if step < steps - 1:
            gram = factors[-1] @ (factors[-1] @ gram)
    return reduce(torch.matmul, factors) @ x


class Muon(Stepping):
    """Nesterov momentum, orthogonalised, for matrices.

    Its groups have `params`, matrices [R,C]; `lr`, how far a step goes: tall matrices go sqrt(R/C) times as far;
    `momentum`, how much of it stays in a step; `weight_decay`, the share of a weight that goes in a step, times lr.
    """

    @torch.no_grad()
    def step(self, found_inf: Tensor | None = None) -> None:
        """Move every parameter that has a gradient. Matrices of one shape are made orthogonal together."""
        moves = 1.0 if found_inf is None else 1.0 - found_inf
        for group in self.groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                updates = [self._with_momentum(p, group["momentum"], moves) for p in parameters]
                steps = [moves * step for step in _orthogonalised_each(updates, parameters[0])]
                length = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                weights = [local(parameter) for parameter in parameters]
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"] * moves)
                torch._foreach_add_(weights, steps, alpha=-length)

    def _with_momentum(self, parameter: Tensor, momentum: float, moves: float | Tensor) -> Tensor:
        """The gradient, ahead of the momentum that it is added to; 0 where nothing is to move."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter.grad)
        gradient, mean = local(parameter.grad), local(state["momentum"])
        if isinstance(moves, Tensor):
            gradient = torch.where(moves > 0, gradient, 0.0)
        mean.lerp_(gradient, (1 - momentum) * moves)
        return gradient.lerp(mean, momentum)


def _orthogonalised_each(matrices: list[Tensor], like: Tensor) -> list[Tensor]:
    """Matrices of one shape, or the parts that this rank has of them, made orthogonal; `like` tells how they are spread
    over the ranks."""
    if is_spread(like):
        return of_whole_matrices(orthogonalised, matrices, like)
    return list(orthogonalised(torch.stack(matrices)).unbind())
