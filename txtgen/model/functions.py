"""Functions whose gradients are written by hand, because those that autograd puts together take a CPU several times as
long."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive: Tensor = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        positive: Tensor = ctx.saved_tensors[0]
        return (positive * gradient).mul_(2)


def relu_squared(x: Tensor) -> Tensor:
    """The square of what is positive in x, 0 elsewhere. Source: So et al. 2021, arXiv 2109.08668."""
    result: Tensor = _ReluSquared.apply(x)  # type: ignore[no-untyped-call]
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale: Tensor = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale, weight = ctx.saved_tensors
        width = x.shape[-1]
        # That of LayerNorm whose mean is 0, which also takes the mean out of the gradient: that is given back.
        of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x, [width], torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        mean = (gradient @ weight).unsqueeze(-1).mul_(scale).div_(width)
        return of_x.add_(mean), of_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [...,D] divided by the root of its mean square over the last dimension, times weight [D].

    Source: Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    if x.is_cpu and torch.is_grad_enabled() and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64):
        result: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return result
    return F.rms_norm(x, weight.shape, weight, eps)


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """x with each element left out with a probability of `share`, the others scaled so that the mean stays.

    Source: Srivastava et al. 2014, JMLR 15.
    """
    if not (training and share):
        return x
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.dropout(x, share)
    return x * _kept(x, share)


LEVELS = 1 << 16


def _kept(x: Tensor, share: float) -> Tensor:
    """What the elements of x are to be multiplied by.

    Torch draws an element of its own mask at a time; here a number that it draws has room for four.
    """
    left_out = min(round(share * LEVELS), LEVELS - 1)
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = drawn[: x.numel()].view(x.shape) >= left_out - LEVELS // 2
    return kept.to(x.dtype).mul_(LEVELS / (LEVELS - left_out))
