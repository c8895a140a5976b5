"""T5, 1.0 and 1.1 (Flan-T5 among the latter). Source of the architecture: Raffel et al. 2019, arXiv 1910.10683."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from txtgen.config.model import EncoderDecoderConfig, T5RelativePosition
from txtgen.convert.fields import Fields
from txtgen.convert.rules import ACTIVATIONS, Family, Rule, activation_name
from txtgen.errors import CheckpointError

HEAD, SHARED = "lm_head.weight", "shared.weight"


def read(fields: Fields, weights: Mapping[str, Tensor]) -> EncoderDecoderConfig:
    """Our config of a T5. Whether its output layer is tied, only the weights tell for sure."""
    kind = fields.word("feed_forward_proj", "relu")
    name = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"feed_forward_proj is {kind!r}, which txtgen does not have", fields.where, "known are relu and gated-gelu"
        )
    num_layers = fields.layers("num_layers")
    length, rate = fields.count("n_positions", 512), fields.number("dropout_rate", 0.1)
    tied = HEAD not in weights or (SHARED in weights and _same(weights[HEAD], weights[SHARED]))
    return EncoderDecoderConfig(
        vocab_size=fields.count("vocab_size"),
        d_model=fields.count("d_model"),
        num_encoder_layers=num_layers,
        num_decoder_layers=fields.layers("num_decoder_layers", num_layers),
        num_heads=fields.count("num_heads"),
        head_dim=fields.count("d_kv"),
        d_ff=fields.count("d_ff"),
        max_length=length,
        max_source_length=length,
        position=T5RelativePosition(
            num_buckets=fields.count("relative_attention_num_buckets", 32),
            max_distance=fields.count("relative_attention_max_distance", 128),
        ),
        attention_scale=1.0,
        attention_bias=False,
        ffn_bias=False,
        activation=ACTIVATIONS[name],
        gated=kind.startswith("gated-"),
        norm="rms_norm",
        norm_eps=fields.number("layer_norm_epsilon", 1e-6),
        tie_embeddings=tied,
        # Only version 1.0 ties, and only it scales; newer files say the latter by a key of its own.
        scale_output=fields.flag("scale_decoder_outputs", fields.flag("tie_word_embeddings", True)),
        dropout=rate,
        attention_dropout=rate,
        ffn_dropout=rate,
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The config.json of an encoder-decoder of ours, as far as T5 goes."""
    position = config.position if isinstance(config.position, T5RelativePosition) else T5RelativePosition()
    name = activation_name(config.activation)
    if config.gated:
        name = "gated-gelu" if name == "gelu_new" else f"gated-{name}"
    return {
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "d_kv": config.head_width,
        "d_ff": config.ff_width,
        "n_positions": config.max_length,
        "relative_attention_num_buckets": position.num_buckets,
        "relative_attention_max_distance": position.max_distance,
        "feed_forward_proj": name,
        "layer_norm_epsilon": config.norm_eps,
        "dropout_rate": config.dropout,
        "tie_word_embeddings": config.scale_output,
    }


def rules(config: EncoderDecoderConfig) -> Iterator[Rule]:
    """Blocks are lists of sublayers; the scores of positions stand in the first block and serve all."""
    yield Rule(SHARED, "token_embedding.weight")
    yield from _stack(config, "encoder", config.num_encoder_layers)
    yield from _stack(config, "decoder", config.num_decoder_layers)
    if not config.tie_embeddings:
        yield Rule(HEAD, "lm_head.weight")


def _stack(config: EncoderDecoderConfig, stack: str, num_layers: int) -> Iterator[Rule]:
    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield Rule(bias, f"{stack}.relative_bias.weight")
    blocks = {"self_attention": "SelfAttention"}
    if stack == "decoder":
        blocks["cross_attention"] = "EncDecAttention"
    projections = {"gate_proj": "wi_0", "up_proj": "wi_1"} if config.gated else {"up_proj": "wi"}
    for number in range(num_layers):
        theirs, ours = f"{stack}.block.{number}.layer", f"{stack}.layers.{number}"
        for place, (name, block) in enumerate(blocks.items()):
            for letter in "qkvo":
                yield Rule(f"{theirs}.{place}.{block}.{letter}.weight", f"{ours}.{name}.{letter}_proj.weight")
            yield Rule(f"{theirs}.{place}.layer_norm.weight", f"{ours}.{name}_norm.weight")
        place = len(blocks)
        for name, block in {**projections, "down_proj": "wo"}.items():
            yield Rule(f"{theirs}.{place}.DenseReluDense.{block}.weight", f"{ours}.feed_forward.{name}.weight")
        yield Rule(f"{theirs}.{place}.layer_norm.weight", f"{ours}.feed_forward_norm.weight")
    yield Rule(f"{stack}.final_layer_norm.weight", f"{stack}.final_norm.weight")


def copies(config: EncoderDecoderConfig) -> dict[str, str]:
    """The embeddings of both stacks, and the output layer of a tied model."""
    found = {f"{stack}.embed_tokens.weight": SHARED for stack in ("encoder", "decoder")}
    return found | ({HEAD: SHARED} if config.tie_embeddings else {})


T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    EncoderDecoderConfig,
    read,
    write,
    rules,
    copies,
    # The first releases hold scores of positions for cross-attention, which nothing reads.
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)
