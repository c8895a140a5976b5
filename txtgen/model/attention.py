"""Attention: queries look at keys and gather values."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from txtgen.config.model import TransformerConfig
from txtgen.errors import UsageError
from txtgen.model.functions import attention, cast_once, rms_norm
from txtgen.model.position import Rotation, rotate
from txtgen.model.state import KeysValues, LayerCache, Window


@dataclass(frozen=True, slots=True)
class Pattern:
    """Who attends to whom: built once per call and shared by all layers of a stack.

    mask: added to the scores, broadcastable to [B,H,N,J], or None. causal: no mask is needed but the usual
    triangle. rotation: turns queries and new keys. window: where new keys go in the cache. source_mask: added
    to the scores of cross-attention, [R,1,1,S], or None. near: the pattern of layers with a sliding window, None
    where the window hides nothing.
    """

    mask: Tensor | None = None
    causal: bool = False
    rotation: Rotation | None = None
    window: Window | None = None
    source_mask: Tensor | None = None
    near: "Pattern | None" = None


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask (True: may attend) as scores to add: 0 where allowed, minus infinity elsewhere."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, float("-inf"))


def packed_mask(segment_ids: Tensor, separate: bool, bidirectional: Tensor | None) -> Tensor:
    """What each position of a packed row may attend to, [1|B,1,T,T] bool; always itself.

    A position sees those before it, if `separate` only those of its own segment. `bidirectional` positions of
    one segment also see one another.
    """
    length = segment_ids.shape[1]
    allowed = torch.ones(1, length, length, dtype=torch.bool, device=segment_ids.device).tril()
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    if bidirectional is not None:
        allowed = allowed | (same & bidirectional[:, :, None] & bidirectional[:, None, :])
    if separate:
        allowed = allowed & same
    return allowed[:, None]


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [...,D] in its own dtype."""
        return rms_norm(x, self.weight, cast(float, self.eps))


class HeadNorm(RMSNorm):
    """RMSNorm over the width of a head, in the dtype of the matrix products also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [...,K] in its own dtype."""
        weight = cast(Tensor, self.weight).to(x.dtype)
        return rms_norm(x, weight, cast(float, self.eps)).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with H query heads over G shared key/value heads.

    Source: Vaswani et al. 2017, section 3.2; shared heads: Ainslie et al. 2023, arXiv 2305.13245; normalised
    queries and keys: Henry et al. 2020, arXiv 2010.04245, as RMSNorm.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, bias = config.head_width, config.attention_bias
        self.scale = config.attention_scale
        self.head_width = width
        self.shared = config.num_heads // config.kv_heads
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.d_model, config.num_heads * width, bias=bias)
        self.k_proj = nn.Linear(config.d_model, config.kv_heads * width, bias=bias)
        self.v_proj = nn.Linear(config.d_model, config.kv_heads * width, bias=bias)
        self.o_proj = nn.Linear(config.num_heads * width, config.d_model, bias=config.output_projection_bias)
        self.q_norm = HeadNorm(width, config.norm_eps) if config.qk_norm else None
        self.k_norm = HeadNorm(width, config.norm_eps) if config.qk_norm else None

    def _heads(self, x: Tensor, norm: HeadNorm | None = None) -> Tensor:
        """[B,N,H*K] as [B,H,N,K], normalised."""
        heads = x.view(x.shape[0], x.shape[1], -1, self.head_width)
        return (heads if norm is None else norm(heads)).transpose(1, 2)

    def queries(self, x: Tensor) -> Tensor:
        """Queries [B,H,N,K] of x [B,N,D]."""
        return self._heads(self.q_proj(x), self.q_norm)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values [B,G,N,K] of x [B,N,D]."""
        return self._heads(self.k_proj(x), self.k_norm), self._heads(self.v_proj(x))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """What the queries gather, projected back to [B,N,D]."""
        left_out = self.dropout if self.training else 0.0
        gathered = attention(queries, keys, values, mask, causal, self.scale, left_out, self.shared)
        return cast(Tensor, self.o_proj(gathered.transpose(1, 2).flatten(2)))


class SelfAttention(Attention):
    """Attention within one sequence."""

    def forward(self, x: Tensor, pattern: Pattern, cache: LayerCache | None = None) -> Tensor:
        """Mix x [B,N,D] along the sequence, together with what the cache holds of it. Returns [B,N,D]."""
        x = cast_once(x)
        queries = self.queries(x)
        keys, values = self.keys_values(x)
        if pattern.rotation is not None:
            queries, keys = rotate(queries, pattern.rotation), rotate(keys, pattern.rotation)
        if cache is not None and pattern.window is not None:
            keys, values = cache.write(keys, values, pattern.window)
        return self.attend(queries, keys, values, pattern.mask, pattern.causal)


class CrossAttention(Attention):
    """Attention from the decoder to the encoded source; it knows no positions."""

    def forward(self, x: Tensor, source: Tensor | None, mask: Tensor | None, cache: LayerCache | None = None) -> Tensor:
        """Let x [B,N,D] look at R sources [R,S,D], row b at source b // (B/R). Returns [B,N,D].

        Rows of one source are folded into the length of a single query, so that nothing is copied for them. A
        cache keeps keys and values of the source, which may then be left out.
        """
        keys, values = self._source(source, cache)
        folded = x.reshape(keys.shape[0], -1, x.shape[-1])
        return self.attend(self.queries(folded), keys, values, mask, causal=False).view_as(x)

    def _source(self, source: Tensor | None, cache: LayerCache | None) -> KeysValues:
        """Keys and values [R,G,S,K] of the source, remembered from the first call on."""
        if source is not None:
            seen = self.keys_values(cast_once(source))
            if cache is not None:
                cache.source = seen
            return seen
        if cache is None or cache.source is None:
            raise UsageError("cross-attention has no source", "", "encode a source first")
        return cache.source
