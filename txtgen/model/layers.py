"""Feed-forward blocks, layers, and stacks of layers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import assert_never, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txtgen.config.model import (
    Activation,
    AlibiPosition,
    RotaryPosition,
    T5RelativePosition,
    TransformerConfig,
)
from txtgen.model.attention import CrossAttention, Pattern, RMSNorm, SelfAttention, additive
from txtgen.model.functions import cast_once, dropout, relu_squared
from txtgen.model.position import Rotation, alibi_bias, relative_buckets, rotary, rotary_table, table_length
from txtgen.model.state import LayerCache, Window


def make_norm(config: TransformerConfig) -> nn.Module:
    """A norm over the model width.

    Source: Ba et al. 2016, arXiv 1607.06450 (LayerNorm); Zhang and Sennrich 2019, arXiv 1910.07467 (RMSNorm).
    """
    match config.norm:
        case "layer_norm":
            return nn.LayerNorm(config.d_model, config.norm_eps, bias=config.norm_bias)
        case "rms_norm":
            return RMSNorm(config.d_model, config.norm_eps)
        case _:
            assert_never(config.norm)


def make_activation(name: Activation) -> Callable[[Tensor], Tensor]:
    """The function between two linear maps."""
    match name:
        case "relu":
            return F.relu
        case "relu_squared":
            return relu_squared
        case "gelu":
            return F.gelu
        case "gelu_tanh":
            return lambda x: F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu
        case _:
            assert_never(name)


class FeedForward(nn.Module):
    """Hidden layers of width F applied to every position alone, the first one gated if asked.

    Source: Vaswani et al. 2017, section 3.3; gated: Shazeer 2020, arXiv 2002.05202.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, hidden, bias = config.d_model, config.ff_width, config.ffn_bias
        self.activation = make_activation(config.activation)
        self.dropout = config.ffn_dropout
        self.gate_proj = nn.Linear(width, hidden, bias=bias) if config.gated else None
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        further = range(config.num_ffn_hidden_layers - 1)
        self.hidden_projs = nn.ModuleList(nn.Linear(hidden, hidden, bias=bias) for _ in further)
        self.down_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B,N,D] to [B,N,D]."""
        if self.gate_proj is None:
            hidden = self.activation(self.up_proj(x))
        else:
            x = cast_once(x)
            hidden = self.activation(self.gate_proj(x)) * self.up_proj(x)
        hidden = dropout(hidden, self.dropout, self.training)
        for proj in self.hidden_projs:
            hidden = dropout(self.activation(proj(hidden)), self.dropout, self.training)
        return cast(Tensor, self.down_proj(hidden))


class Layer(nn.Module):
    """Self-attention, cross-attention if there is a source, and feed-forward, each around a residual."""

    def __init__(self, config: TransformerConfig, cross: bool) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.dropout = config.dropout
        self.self_attention = SelfAttention(config)
        self.self_attention_norm = make_norm(config)
        self.cross_attention = CrossAttention(config) if cross else None
        self.cross_attention_norm = make_norm(config) if cross else None
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = make_norm(config)

    def _residual(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        """x plus the block's output, normalised before the block or after the sum."""
        if self.pre_norm:
            return x + dropout(block(norm(x)), self.dropout, self.training)
        return cast(Tensor, norm(x + dropout(block(x), self.dropout, self.training)))

    def forward(
        self, x: Tensor, pattern: Pattern, source: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Map x [B,N,D] to [B,N,D]. `source` [B,S,D] may be left out if the cache has already seen it."""
        x = self._residual(x, self.self_attention_norm, lambda y: self.self_attention(y, pattern, cache))
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            look, mask = self.cross_attention, pattern.source_mask
            x = self._residual(x, self.cross_attention_norm, lambda y: look(y, source, mask, cache))
        return self._residual(x, self.feed_forward_norm, self.feed_forward)


def _scores(bias: Tensor | None, allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The scores of positions, minus infinity where attending is not allowed; None where that is nothing."""
    if allowed is None:
        return bias
    return additive(allowed, dtype) if bias is None else bias.masked_fill(~allowed, float("-inf"))


class Stack(nn.Module):
    """Layers on top of each other, with what they share: norms at both ends and the scores of positions."""

    def __init__(self, config: TransformerConfig, num_layers: int, max_length: int, causal: bool, cross: bool) -> None:
        super().__init__()
        self.config = config
        self.max_length = max_length
        self.causal = causal
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = config.dropout
        self.layers = nn.ModuleList(Layer(config, cross) for _ in range(num_layers))
        self.final_norm = make_norm(config) if config.norm_position == "pre" else None
        position = config.position
        self.rotary = rotary(config.head_width, position) if isinstance(position, RotaryPosition) else None
        self.relative_bias = (
            nn.Embedding(position.num_buckets, config.num_heads) if isinstance(position, T5RelativePosition) else None
        )

    def _bias(self, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The scores [1|B,H,N,J] of pairs of positions, or None where positions enter elsewhere."""
        position = self.config.position
        if isinstance(position, AlibiPosition):
            return alibi_bias(queries, keys, self.config.num_heads, dtype)
        if isinstance(position, T5RelativePosition) and self.relative_bias is not None:
            size, far = position.num_buckets, position.max_distance
            buckets = relative_buckets(queries, keys, size, far, bidirectional=not self.causal)
            return cast(Tensor, self.relative_bias(buckets)).permute(0, 3, 1, 2).to(dtype)
        return None

    def _rotation(self, positions: Tensor, count: int, dtype: torch.dtype) -> Rotation | None:
        """What turns queries and keys at these positions [1|B,N], all below `count`."""
        if self.rotary is None:
            return None
        length = table_length(count, self.max_length)
        cosines, sines = rotary_table(length, *self.rotary, positions.device, dtype)
        return cosines[positions][:, None], sines[positions][:, None]

    def pattern(
        self,
        positions: Tensor,
        allowed: Tensor | None,
        dtype: torch.dtype,
        causal: bool = False,
        keys: Tensor | None = None,
        window: Window | None = None,
        source_mask: Tensor | None = None,
    ) -> Pattern:
        """Who attends to whom, for all layers.

        positions: [1|B,N] of the queries. allowed: [1|B,1,1|N,J] bool, or None: everything, or the triangle
        if `causal`. dtype: of the matrix products. keys: [1|B,J] positions of the keys; None: those of the
        queries.
        """
        keys = positions if keys is None else keys
        bias = self._bias(positions, keys, dtype)
        near = self._near(positions, keys)
        triangle = causal and bias is None
        if causal and not (triangle and near is None):
            length = positions.shape[1]
            allowed = torch.ones(1, 1, length, length, dtype=torch.bool, device=positions.device).tril()
        mask = None if triangle else _scores(bias, allowed, dtype)
        pattern = Pattern(mask, triangle, self._rotation(positions, keys.shape[1], dtype), window, source_mask)
        if near is None:
            return pattern
        narrowed = near if allowed is None else allowed & near
        return replace(pattern, near=replace(pattern, mask=_scores(bias, narrowed, dtype), causal=False))

    def _near(self, positions: Tensor, keys: Tensor) -> Tensor | None:
        """Which keys [1|B,J] are within the sliding window of positions [1|B,N]: [1|B,1,N,J] bool, or None: all."""
        reach = self.config.sliding_window
        if reach is None or not self.causal or keys.shape[1] <= reach:
            return None
        return positions[:, None, :, None] - keys[:, None, None, :] < reach

    def forward(
        self,
        x: Tensor,
        pattern: Pattern,
        source: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """Map embeddings [B,N,D] to the last layer's output [B,N,D]."""
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = dropout(x, self.dropout, self.training)
        for number, layer in enumerate(self.layers):
            full = pattern.near is None or number in self.config.full_attention_layers
            x = layer(x, pattern if full else pattern.near, source, None if caches is None else caches[number])
        return x if self.final_norm is None else cast(Tensor, self.final_norm(x))
