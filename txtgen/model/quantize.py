"""Weights in 8 or 4 bits: how they are written, and the modules that hold them.

A row of K weights is cut into blocks of 32 neighbours, the last one perhaps shorter. Each block has a scale, and a
weight is its code times the scale of its block:

    int8   codes [N,K] int8, -127 ... 127
    int4   codes [N,ceil(K/2)] uint8, two in a byte, the earlier one in its low half, each -8 ... 7 with 8 added
    scale  [N,ceil(K/32)], in the dtype of the model; every one of them is exact in bfloat16, in which it may be stored

Modules keep the names of what they replace: `q_proj.codes` and `q_proj.scale` stand in for `q_proj.weight`.

Source: Dettmers et al. 2022, arXiv 2110.02861 (a scale per block); the sizes are those of Q8_0 and Q4_0 in llama.cpp.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from txtgen.config.model import Quantization

BLOCK = 32
"""Weights that share a scale. A scale per row of 256 weights is no worse for a small model, but the larger a model, the
more single weights and activations stand out, and they coarsen only their own block."""

WEIGHTS_AT_ONCE = 1 << 22
"""Of a matrix: what is computed on the way to their codes takes several times their memory."""


class Quantized(NamedTuple):
    """A matrix [N,K] as codes and scales, as the module's docstring says."""

    codes: Tensor
    scale: Tensor


def quantize(weight: Tensor, kind: Quantization) -> Quantized:
    """The codes nearest to weight [N,K], which is of any floating dtype and finite; on the meta device, empty ones."""
    rows, width = weight.shape
    if weight.is_meta:
        columns, dtype = (width, torch.int8) if kind == "int8" else (-(-width // 2), torch.uint8)
        codes = torch.empty(rows, columns, dtype=dtype, device="meta")
        return Quantized(codes, torch.empty(rows, -(-width // BLOCK), dtype=weight.dtype, device="meta"))
    parts = [_quantize_rows(part, kind) for part in torch.split(weight, max(1, WEIGHTS_AT_ONCE // width))]
    return Quantized(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _quantize_rows(weight: Tensor, kind: Quantization) -> Quantized:
    rows, width = weight.shape
    blocks = F.pad(weight.float(), (0, -width % BLOCK)).view(rows, -1, BLOCK)
    if kind == "int8":
        scale = _exact(blocks.abs().amax(-1) / 127)
        codes = _codes(blocks, scale, -127, 127)[:, :width].to(torch.int8)
    else:
        # There is one more code below zero than above: it goes to the weight that is largest in size.
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
        scale = _exact(largest / -8)
        nibbles = F.pad(_codes(blocks, scale, -8, 7)[:, :width] + 8, (0, width % 2), value=8).to(torch.uint8)
        codes = nibbles[:, ::2] | nibbles[:, 1::2] << 4
    return Quantized(codes, scale.to(weight.dtype))


def _exact(scale: Tensor) -> Tensor:
    """Scales as bfloat16 can hold them; 1 where all weights of a block are 0."""
    scale = scale.bfloat16().float()
    return torch.where(scale == 0.0, 1.0, scale)


def _codes(blocks: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """[N,K] float32, K filled up to whole blocks."""
    return (blocks / scale[..., None]).round_().clamp_(low, high).flatten(1)


def dequantize(codes: Tensor, scale: Tensor, width: int) -> Tensor:
    """The matrix [N,width] that codes and scales stand for, in the dtype of the scales. It is what any faster way of
    computing with them must agree with."""
    if codes.dtype == torch.uint8:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(1)[:, :width].to(torch.int8) - 8
    if width % BLOCK:
        codes = F.pad(codes, (0, -width % BLOCK))
    return (codes.view(len(codes), -1, BLOCK) * scale[..., None]).flatten(1)[:, :width]


class _QuantizedWeight(nn.Module):
    """A matrix [N,K] that is a weight to whoever asks, made of codes and scales every time."""

    codes: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, kind: Quantization) -> None:
        super().__init__()
        codes, scale = quantize(weight, kind)
        self.kind, self.width = kind, weight.shape[1]
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """[N,K], in the dtype of the scales."""
        return dequantize(self.codes, self.scale, self.width)


class QuantizedLinear(_QuantizedWeight):
    """A linear map with few bits a weight; its bias stays as it is."""

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        super().__init__(linear.weight.detach(), kind)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x [...,K] to [...,N]. The weights stay as they are, but gradients go through to x."""
        if torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, _Linear.apply(x, self.codes, self.scale, self.bias))  # type: ignore[no-untyped-call]
        return F.linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """A linear map that makes its weight anew for the gradient, so that none is kept until then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.width = x.shape[-1]
        return F.linear(x, dequantize(codes, scale, ctx.width), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale = ctx.saved_tensors
        weight = dequantize(codes, scale, ctx.width)
        bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return gradient @ weight.to(gradient.dtype), None, None, bias


class QuantizedEmbedding(_QuantizedWeight):
    """Vectors of tokens with few bits a weight."""

    def __init__(self, embedding: nn.Embedding, kind: Quantization) -> None:
        super().__init__(embedding.weight.detach(), kind)

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors [...,K] of ids."""
        flat = ids.flatten()
        return dequantize(self.codes[flat], self.scale[flat], self.width).view(*ids.shape, self.width)


TOKEN_TABLES = ("token_embedding", "source_embedding")
"""Beside linear layers these are quantised. Positions, n-grams and norms are few, or looked up one by one."""


def quantize_model(model: nn.Module, kind: Quantization) -> None:
    """Replace the linear layers and token embeddings of a Transformer by quantised ones. It cannot be trained then.

    On the meta device they get room for codes and scales that are loaded later.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            new: nn.Module = QuantizedLinear(module, kind)
        elif name in TOKEN_TABLES:
            new = QuantizedEmbedding(cast(nn.Embedding, module), kind)
        else:
            continue
        _put(model, name, new)


def dequantize_model(model: nn.Module) -> None:
    """Replace quantised modules of a Transformer by plain ones with the weights that they stand for."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            new: nn.Module = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            new.bias = module.bias
        elif isinstance(module, QuantizedEmbedding):
            new = nn.Embedding(len(module.codes), module.width, device="meta")
        else:
            continue
        new.weight = nn.Parameter(module.weight)
        _put(model, name, new)


def _put(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of another one."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def portable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its scales in bfloat16, in which they are as exact, for writing."""
    return {name: tensor.bfloat16() if name.endswith(".scale") else tensor for name, tensor in state.items()}


def count_weights(state: Mapping[str, Tensor]) -> int:
    """Weights that a state dict stands for, quantised or not; an odd row of 4-bit codes counts as one longer."""
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(".scale")}
    return sum(tensor.numel() * (2 if tensor.dtype == torch.uint8 else 1) for tensor in weights.values())
