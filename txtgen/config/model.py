"""What a Transformer is made of: two architectures from one set of parts."""

from collections.abc import Iterator
from math import isqrt
from typing import Annotated, Literal

from pydantic import Field

from txtgen.config.base import Config, Count, NonNegative, Share


class SinusoidalPosition(Config):
    """Fixed sines and cosines added to the embeddings. Source: Vaswani et al. 2017, section 3.5."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    layout: Literal["interleaved", "halves"] = "interleaved"
    """Sines in the even columns and cosines in the odd ones, as published; or all sines before all cosines, as in
    Marian."""


class LearnedPosition(Config):
    """A learned vector per position added to the embeddings, as in GPT-2."""

    kind: Literal["learned"] = "learned"


Quantization = Literal["int8", "int4"]
"""In how many bits the weights of linear layers and token embeddings are."""

Native = Literal["auto", "off", "require"]
"""Whether a CPU generates by machine code: where that is to be had, never, or else it is an error."""

Compile = bool | Literal["auto"]
"""Whether what a model computes over and over is compiled; auto: on a GPU, where it pays."""

Factor = Annotated[float, Field(gt=0.0, le=1e6)]


class LinearScaling(Config):
    """Every position divided by `factor`. Source: Chen et al. 2023, arXiv 2306.15595."""

    kind: Literal["linear"] = "linear"
    factor: Factor


class Llama3Scaling(Config):
    """Slow rotations slowed down by `factor`, fast ones kept, those between blended.

    A rotation is slow if it turns less than `low_frequency` times in the length that the model was pretrained with,
    fast from `high_frequency` times on. Source: Llama Team 2024, arXiv 2407.21783, as released.
    """

    kind: Literal["llama3"] = "llama3"
    factor: Factor
    low_frequency: Factor = 1.0
    high_frequency: Factor = 4.0
    original_length: Count

    def problems(self) -> Iterator[tuple[str, str]]:
        """There must be something between the two."""
        if self.high_frequency <= self.low_frequency:
            yield "high_frequency", f"must exceed low_frequency {self.low_frequency}, is {self.high_frequency}"


class YarnScaling(Config):
    """As llama3, but blended evenly over the columns, and with attention sharpened.

    Source: Peng et al. 2023, arXiv 2309.00071.
    """

    kind: Literal["yarn"] = "yarn"
    factor: Factor
    low_frequency: Factor = 1.0
    high_frequency: Factor = 32.0
    original_length: Count
    attention_factor: Factor
    """Multiplies queries and keys after rotation; published: 0.1 * ln(factor) + 1."""
    truncate: bool = True
    """Blend between whole columns."""


RotaryScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="kind")]


class RotaryPosition(Config):
    """Queries and keys rotated by their position. Source: Su et al. 2021, arXiv 2104.09864."""

    kind: Literal["rotary"] = "rotary"
    base: Annotated[float, Field(gt=1.0)] = 10_000.0
    scaling: RotaryScaling | None = None
    """How a model was stretched to sequences longer than those of its pretraining."""


class AlibiPosition(Config):
    """A penalty on attention scores, linear in distance. Source: Press et al. 2021, arXiv 2108.12409."""

    kind: Literal["alibi"] = "alibi"


class T5RelativePosition(Config):
    """A learned score per head and bucket of distance. Source: Raffel et al. 2019, arXiv 1910.10683."""

    kind: Literal["t5_relative"] = "t5_relative"
    num_buckets: Annotated[int, Field(ge=4)] = 32
    max_distance: Annotated[int, Field(ge=8)] = 128

    def problems(self) -> Iterator[tuple[str, str]]:
        """Half of the buckets are exact distances, the others must reach further."""
        if self.num_buckets % 4:
            yield "num_buckets", f"must be a multiple of 4, is {self.num_buckets}"
        if self.max_distance <= self.num_buckets // 2:
            yield "max_distance", f"must exceed half of num_buckets ({self.num_buckets // 2}), is {self.max_distance}"


class NoPosition(Config):
    """No position information: a causal decoder can still count. Source: Haviv et al. 2022, arXiv 2203.16634."""

    kind: Literal["none"] = "none"


PositionConfig = Annotated[
    SinusoidalPosition | LearnedPosition | RotaryPosition | AlibiPosition | T5RelativePosition | NoPosition,
    Field(discriminator="kind"),
]

Activation = Literal["relu", "relu_squared", "gelu", "gelu_tanh", "silu"]


class NgramConfig(Config):
    """Embeddings of the n-grams that end at each token, added to its own.

    What a small model would need many examples and its first layers to find out, which tokens came just before,
    it is told. Source: Pagnoni et al. 2024, arXiv 2412.09871; Huang et al. 2025, arXiv 2501.16975.
    """

    max_order: Annotated[int, Field(ge=2, le=8)] = 4
    """The longest n-grams; all shorter ones from two tokens on have embeddings too."""
    num_buckets: Annotated[int, Field(ge=16, le=2**24)] = 16_384
    """Vectors per order; n-grams that fall into the same bucket share one."""
    dropout: Share = 0.0
    """Share of these vectors that is left out in training, so that the model does not learn its text by heart."""


class TransformerConfig(Config):
    """What both architectures have in common."""

    d_model: Count = 256
    num_heads: Count = 4
    num_kv_heads: Count | None = None
    """Key/value heads shared by groups of query heads (Ainslie et al. 2023); None: as many as num_heads."""
    head_dim: Count | None = None
    """Width of a head; None: d_model / num_heads."""
    d_ff: Count | None = None
    """Width of the feed-forward hidden layers; None: 4 * d_model."""
    num_ffn_hidden_layers: Count = 1
    """Hidden layers inside each feed-forward block."""
    activation: Activation = "gelu"
    gated: bool = False
    """Multiply the first hidden layer by a second projection (Shazeer 2020: silu + gated is SwiGLU)."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_position: Literal["pre", "post"] = "pre"
    norm_eps: Annotated[float, Field(gt=0.0, lt=0.1)] = 1e-5
    ngrams: NgramConfig | None = None
    """Embeddings of the (target) n-grams that end at each token; None: of tokens only."""
    embedding_norm: bool = False
    """Normalise the embeddings before the first layer."""
    qk_norm: bool = False
    """Normalise each query and key head with an RMSNorm (Henry et al. 2020; Dehghani et al. 2023)."""
    position: PositionConfig = SinusoidalPosition()
    attention_scale: Annotated[float, Field(gt=0.0, le=1e3)] | None = None
    """Multiplies the attention scores; None: 1 / sqrt(width of a head). T5 has 1."""
    sliding_window: Count | None = None
    """Decoder positions attend to so many positions only, their own included. Source: Beltagy et al. 2020."""
    full_attention_layers: tuple[NonNegative, ...] = ()
    """Decoder layers, from 0, that the sliding window does not narrow."""
    attention_bias: bool = True
    attention_output_bias: bool | None = None
    """Of the projection behind attention; None: as attention_bias, which is then that of queries, keys and values."""
    ffn_bias: bool = True
    norm_bias: bool = True
    """Bias of LayerNorm; RMSNorm never has one."""
    logit_softcap: Annotated[float, Field(gt=0.0)] | None = None
    """Squash logits into (-c, c) by c * tanh(logits / c) (Gemma Team 2024)."""
    output_bias: bool = False
    """A learned bias per token on the logits."""
    scale_output: bool = False
    """Divide what goes into the output layer by sqrt(d_model), as T5 does with tied embeddings."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(d_model), as Vaswani et al. do."""
    tie_embeddings: bool = True
    """One matrix for the (target) embedding and the output layer."""
    dropout: Share = 0.0
    """On embeddings and on the output of every attention and feed-forward block."""
    attention_dropout: Share = 0.0
    ffn_dropout: Share = 0.0
    """On the hidden layers of the feed-forward blocks."""
    init_std: Annotated[float, Field(gt=0.0, le=1.0)] = 0.02
    zero_init_projections: bool = False
    """Start the output projection of every block at zero, so that each block begins as the identity."""
    max_length: Count = 512
    """Longest sequence of target positions."""
    vocab_size: Count | None = None
    """Rows of the (target) embedding; None: the tokenizer's vocabulary."""

    @property
    def kv_heads(self) -> int:
        """Key/value heads, G."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of one head, K."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def output_projection_bias(self) -> bool:
        """Whether the projection behind attention has a bias."""
        return self.attention_bias if self.attention_output_bias is None else self.attention_output_bias

    @property
    def ff_width(self) -> int:
        """Width of the feed-forward hidden layers, F."""
        return self.d_ff or 4 * self.d_model

    def problems(self) -> Iterator[tuple[str, str]]:
        """Head counts that do not divide, and odd widths where pairs are rotated."""
        if self.head_dim is None and self.d_model % self.num_heads:
            near = max(1, round(self.d_model / self.num_heads)) * self.num_heads
            yield (
                "d_model",
                f"{self.d_model} is not divisible by num_heads {self.num_heads}; try {near} or set head_dim",
            )
        if self.num_heads % self.kv_heads:
            small = [n for n in range(1, isqrt(self.num_heads) + 1) if self.num_heads % n == 0]
            divisors = sorted({*small, *(self.num_heads // n for n in small)})
            yield "num_kv_heads", f"{self.kv_heads} does not divide num_heads {self.num_heads}; try one of {divisors}"
        if isinstance(self.position, RotaryPosition) and self.head_width % 2:
            yield "position", f"rotary needs an even head width, is {self.head_width}"
        if isinstance(self.position, SinusoidalPosition) and self.d_model % 2:
            yield "position", f"sinusoidal needs an even d_model, is {self.d_model}"
        if self.full_attention_layers and self.sliding_window is None:
            yield "full_attention_layers", "there is no sliding_window to be free of"


class DecoderConfig(TransformerConfig):
    """A decoder-only Transformer: one stack, causal."""

    kind: Literal["decoder"] = "decoder"
    num_layers: Count = 4

    @property
    def source_length(self) -> int:
        """Positions of the longest source: 0, it reads none."""
        return 0


class EncoderDecoderConfig(TransformerConfig):
    """An encoder-decoder Transformer: the decoder attends to an encoded source."""

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    num_encoder_layers: Count = 3
    num_decoder_layers: Count = 3
    share_embeddings: bool = True
    """One embedding matrix for source and target; needs one tokenizer for both."""
    max_source_length: Count = 512
    source_vocab_size: Count | None = None

    @property
    def source_length(self) -> int:
        """Positions of the longest source."""
        return self.max_source_length

    def problems(self) -> Iterator[tuple[str, str]]:
        """As for every Transformer; shared embeddings need equal sizes."""
        yield from super().problems()
        if self.share_embeddings and self.source_vocab_size not in (None, self.vocab_size):
            yield (
                "share_embeddings",
                f"needs equal vocabularies, but source_vocab_size is {self.source_vocab_size} "
                f"and vocab_size {self.vocab_size}; set share_embeddings: false",
            )


ModelConfig = Annotated[DecoderConfig | EncoderDecoderConfig, Field(discriminator="kind")]
