"""GPT-2. Source of the architecture: Radford et al. 2019."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from txtgen.config.model import DecoderConfig, LearnedPosition
from txtgen.convert.fields import Fields
from txtgen.convert.rules import Family, Rule, activation, activation_name, linear


def read(fields: Fields, _weights: Mapping[str, Tensor]) -> DecoderConfig:
    """Our config of a GPT-2."""
    fields.only("scale_attn_weights", True)
    fields.only("add_cross_attention", False)
    width = fields.count("n_embd")
    return DecoderConfig(
        vocab_size=fields.count("vocab_size"),
        d_model=width,
        num_layers=fields.layers("n_layer"),
        num_heads=fields.count("n_head"),
        d_ff=fields.count("n_inner", 4 * width),
        max_length=fields.count("n_positions", 1024),
        position=LearnedPosition(),
        activation=activation(fields, "activation_function", "gelu_new"),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        dropout=fields.number("resid_pdrop", 0.1),
        attention_dropout=fields.number("attn_pdrop", 0.1),
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a decoder of ours, as far as GPT-2 goes."""
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ff_width,
        "n_positions": config.max_length,
        "activation_function": activation_name(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "initializer_range": config.init_std,
    }


def rules(config: DecoderConfig) -> Iterator[Rule]:
    """GPT-2 keeps queries, keys and values in one matrix, and its matrices as [inputs, outputs]."""
    yield Rule("transformer.wte.weight", "token_embedding.weight")
    yield Rule("transformer.wpe.weight", "position_embedding.weight")
    for number in range(config.num_layers):
        theirs, ours = f"transformer.h.{number}", f"decoder.layers.{number}"
        yield from linear(f"{theirs}.ln_1", f"{ours}.self_attention_norm", bias=True)
        for part in ("weight", "bias"):
            projections = tuple(f"{ours}.self_attention.{name}_proj.{part}" for name in "qkv")
            yield Rule(f"{theirs}.attn.c_attn.{part}", projections, transposed=part == "weight")
        yield from linear(f"{theirs}.attn.c_proj", f"{ours}.self_attention.o_proj", bias=True, transposed=True)
        yield from linear(f"{theirs}.ln_2", f"{ours}.feed_forward_norm", bias=True)
        yield from linear(f"{theirs}.mlp.c_fc", f"{ours}.feed_forward.up_proj", bias=True, transposed=True)
        yield from linear(f"{theirs}.mlp.c_proj", f"{ours}.feed_forward.down_proj", bias=True, transposed=True)
    yield from linear("transformer.ln_f", "decoder.final_norm", bias=True)
    if not config.tie_embeddings:
        yield Rule("lm_head.weight", "lm_head.weight")


def factors(fields: Fields, config: DecoderConfig) -> dict[str, float]:
    """Scores that shrink with the depth of their layer are those of queries that do."""
    if not fields.flag("scale_attn_by_inverse_layer_idx", False):
        return {}
    layers = range(config.num_layers)
    return {
        f"decoder.layers.{number}.self_attention.q_proj.{part}": 1.0 / (number + 1)
        for number in layers
        for part in ("weight", "bias")
    }


def copies(config: DecoderConfig) -> dict[str, str]:
    """The output layer of a tied model."""
    return {"lm_head.weight": "transformer.wte.weight"} if config.tie_embeddings else {}


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    DecoderConfig,
    read,
    write,
    rules,
    copies,
    factors,
    prefix="transformer.",
    ignored=("*.attn.bias", "*.attn.masked_bias"),  # buffers of old versions
)
