"""Functions whose gradients are written by hand, because those that autograd puts together take a CPU several times as
long; and dropout and casts that take less than torch's own."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


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


SHORT_SCORES = 1 << 17
"""Scores of one head up to which `attention` makes them anew for the gradient: with more, torch's own is as fast."""

CACHED_SCORES = 1 << 18
"""How many scores are made at a time, so that they stay in the cache."""


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values, mask)
        ctx.causal, ctx.scale = causal, scale
        return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal, scale=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *saved, mask = ctx.saved_tensors
        # A block of them is then a single run of memory, for what reads it and for what writes it.
        queries, keys, values, gradient = (x.contiguous() for x in (*saved, gradient))
        (rows, heads, length, _), others = queries.shape, keys.shape[2]
        if ctx.causal:
            mask = gradient.new_full((1, 1, length, others), float("-inf"), dtype=torch.float32).triu_(1)
        if mask is not None:
            mask = mask.expand(rows, heads, length, others)
        results = [torch.empty_like(x) for x in (queries, keys, values)]
        for block in _blocks(rows, heads, max(1, CACHED_SCORES // (length * others))):
            q, k, v, of_output = (x[block].flatten(0, 1) for x in (queries, keys, values, gradient))
            of_q, of_k, of_v = (x[block].flatten(0, 1) for x in results)
            # Products in float32 where their sums are compared: large scores would be rounded to one another.
            scores = torch.bmm(q.float(), k.float().mT).mul_(ctx.scale)
            if mask is not None:
                scores.view_as(mask[block]).add_(mask[block])
            weights = scores.softmax(-1)
            torch.bmm(weights.to(v.dtype).mT, of_output, out=of_v)
            of_weights = torch.bmm(of_output.float(), v.float().mT)
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_scores = of_scores.mul_(ctx.scale).to(v.dtype)
            torch.bmm(of_scores, k, out=of_q)
            torch.bmm(of_scores.mT, q, out=of_k)
        return *results, None, None, None


def _blocks(rows: int, heads: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and heads in blocks of at most `size` heads: of several rows, or of a part of one."""
    more_rows, more_heads = max(1, size // heads), min(heads, size)
    for row in range(0, rows, more_rows):
        for head in range(0, heads, more_heads):
            yield slice(row, row + more_rows), slice(head, head + more_heads)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """In which autocast computes products on a device; None where it is off."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def cast_once(x: Tensor) -> Tensor:
    """x in autocast's dtype, if autocast would cast it, so that several products share one cast; else as it is."""
    dtype = autocast_dtype(x.device)
    return x if dtype is None or x.dtype != torch.float32 else x.to(dtype)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None = None,
    left_out: float = 0.0,
    shared: int = 1,
) -> Tensor:
    """What queries [B,H,N,K] gather from keys and values [B,G,J,K], each shared by H/G heads: [B,H,N,K].

    mask: added to the scores, broadcastable to [B,H,N,J], or None; a query that sees nothing gets NaN. causal: query i
    sees no key after key i. scale: of the scores, by default the root of 1/K. left_out: the share of keys that each
    query is to overlook at random. shared: H/G, told because a compiler may not know the shapes.

    It is torch's own but for the gradient in bfloat16 on a CPU, where that sets up each of many small products anew:
    for rows of 24 it takes ten times as long. Source of that gradient: Dao et al. 2022, arXiv 2205.14135, appendix B.
    """
    eager = queries.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    constant = mask is None or not mask.requires_grad
    slow = eager and queries.dtype == torch.bfloat16 and constant and not left_out
    if slow and queries.shape[2] * keys.shape[2] <= SHORT_SCORES:
        if shared > 1:
            keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
        scale = queries.shape[3] ** -0.5 if scale is None else scale
        result: Tensor = _Attention.apply(queries, keys, values, mask, causal, scale)  # type: ignore[no-untyped-call]
        return result
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        dropout_p=left_out,
        is_causal=causal,
        scale=scale,
        enable_gqa=shared > 1,
    )


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
