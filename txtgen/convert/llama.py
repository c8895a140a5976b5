"""Llama and its relatives: Mistral, Qwen2, Qwen3.

Sources of the architectures: Touvron et al. 2023, arXiv 2302.13971; Jiang et al. 2023, arXiv 2310.06825; Yang et al.
2024, arXiv 2407.10671; Yang et al. 2025, arXiv 2505.09388.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor

from txtgen.config.model import (
    DecoderConfig,
    LinearScaling,
    Llama3Scaling,
    RotaryPosition,
    RotaryScaling,
    YarnScaling,
)
from txtgen.convert.fields import Fields
from txtgen.convert.rules import Family, Rule, activation, activation_name, linear
from txtgen.errors import CheckpointError

Name = Literal["llama", "mistral", "qwen2", "qwen3"]

SLIDING, FULL = "sliding_attention", "full_attention"
ORIGINAL = "original_max_position_embeddings"
"""The length that a model was stretched from."""


def read(name: Name, fields: Fields, _weights: Mapping[str, Tensor]) -> DecoderConfig:
    """Our config of one of the family."""
    width, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    num_layers = fields.layers("num_hidden_layers")
    # Qwen2 has biases on queries, keys and values only; Mistral has none at all.
    biased = name == "qwen2" or (name != "mistral" and fields.flag("attention_bias", False))
    max_length = fields.count("max_position_embeddings", {"llama": 2048, "mistral": 131_072}.get(name, 32_768))
    window, full_layers = _window(name, fields, num_layers)
    return DecoderConfig(
        vocab_size=fields.count("vocab_size"),
        d_model=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.count("num_key_value_heads", 8 if name == "mistral" else num_heads),
        head_dim=fields.count("head_dim", 128 if name == "qwen3" else width // num_heads),
        d_ff=fields.count("intermediate_size"),
        max_length=max_length,
        position=RotaryPosition(base=_base(fields), scaling=_scaling(fields, max_length)),
        sliding_window=window,
        full_attention_layers=full_layers,
        activation=activation(fields, "hidden_act", "silu"),
        gated=True,
        norm="rms_norm",
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        qk_norm=name == "qwen3",
        attention_bias=biased,
        attention_output_bias=biased and name != "qwen2",
        ffn_bias=name == "llama" and fields.flag("mlp_bias", False),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        attention_dropout=fields.number("attention_dropout", 0.0),
    )


def _window(name: Name, fields: Fields, num_layers: int) -> tuple[int | None, tuple[int, ...]]:
    """The sliding window, and the layers that it does not narrow."""
    if name == "llama":
        return None, ()
    if name == "mistral":
        # A missing key means 4096, a null none: here the two are not the same.
        none = fields.values.get("sliding_window", 4096) is None
        return None if none else fields.count("sliding_window", 4096), ()
    if not fields.flag("use_sliding_window", False) or "sliding_window" not in fields:
        return None, ()
    first = fields.values.get("max_window_layers", 28)
    kinds = fields.words("layer_types")
    if not kinds:
        if type(first) is not int or first < 0:
            fields.count("max_window_layers")
        kinds = [SLIDING if number >= first else FULL for number in range(num_layers)]
    if len(kinds) != num_layers or not set(kinds) <= {SLIDING, FULL}:
        fields.only("layer_types", f"a list of {num_layers} times {SLIDING} or {FULL}")
    full = tuple(number for number, kind in enumerate(kinds) if kind == FULL)
    return (None, ()) if len(full) == num_layers else (fields.count("sliding_window"), full)


def _rope(fields: Fields) -> Fields:
    """What is said of rotation: in one section today, in two places before. Of two sections the old one counts."""
    return fields.section("rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters")


def _base(fields: Fields) -> float:
    return _rope(fields).number("rope_theta", fields.number("rope_theta", 10_000.0))


def _scaling(fields: Fields, max_length: int) -> RotaryScaling | None:
    rope = _rope(fields)
    rope.only("partial_rotary_factor", 1.0)
    # Beside the section it counts more than in it, as Phi-3 and transformers have it.
    written = fields if ORIGINAL in fields else rope
    match rope.word("rope_type", rope.word("type", "default")):
        case "default":
            return None
        case "linear":
            return LinearScaling(factor=rope.number("factor"))
        case "llama3":
            return Llama3Scaling(
                factor=rope.number("factor"),
                low_frequency=rope.number("low_freq_factor"),
                high_frequency=rope.number("high_freq_factor"),
                original_length=written.count(ORIGINAL, max_length),
            )
        case "yarn":
            original = written.count(ORIGINAL, max_length)
            factor = rope.number("factor", max_length / original)
            return YarnScaling(
                factor=factor,
                low_frequency=rope.number("beta_slow", 1.0),
                high_frequency=rope.number("beta_fast", 32.0),
                original_length=original,
                attention_factor=rope.number("attention_factor", _yarn_attention(rope, factor)),
                truncate=rope.flag("truncate", True),
            )
        case other:
            raise CheckpointError(
                f"rope_type is {other!r}, which txtgen does not have",
                rope.where,
                "known are default, linear, llama3 and yarn",
            )


def _yarn_attention(rope: Fields, factor: float) -> float:
    """How much longer queries and keys become where the file does not say it."""

    def stretch(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    over, under = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    if not (over and under):
        return stretch(1.0)
    if not stretch(under):
        raise rope.wrong("mscale_all_dim", "a number that does not make the queries vanish")
    return stretch(over) / stretch(under)


def write(name: Name, config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a decoder of ours, as far as this relative goes."""
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.ff_width,
        "max_position_embeddings": config.max_length,
        "hidden_act": activation_name(config.activation),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
    }
    if isinstance(config.position, RotaryPosition):
        # Both spellings, for readers old and new.
        rope = _written_scaling(config.position.scaling)
        found["rope_theta"] = config.position.base
        found["rope_scaling"] = rope or None
        found["rope_parameters"] = {"rope_type": "default", **rope, "rope_theta": config.position.base}
    if name in ("llama", "qwen3"):
        found["attention_bias"] = config.attention_bias
    if name == "llama":
        found["mlp_bias"] = config.ffn_bias
    if name == "mistral":
        found["sliding_window"] = config.sliding_window
    if name in ("qwen2", "qwen3"):
        found["use_sliding_window"] = config.sliding_window is not None
        found["sliding_window"] = config.sliding_window
        window = config.sliding_window is not None
        full = [not window or number in config.full_attention_layers for number in range(config.num_layers)]
        found["layer_types"] = [FULL if whole else SLIDING for whole in full]
        found["max_window_layers"] = next((n for n, whole in enumerate(full) if not whole), config.num_layers)
    return found


def _written_scaling(scaling: RotaryScaling | None) -> dict[str, Any]:
    match scaling:
        case None:
            return {}
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency,
                "high_freq_factor": scaling.high_frequency,
                "original_max_position_embeddings": scaling.original_length,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_slow": scaling.low_frequency,
                "beta_fast": scaling.high_frequency,
                "original_max_position_embeddings": scaling.original_length,
                "attention_factor": scaling.attention_factor,
                "truncate": scaling.truncate,
            }


def rules(config: DecoderConfig) -> Iterator[Rule]:
    """Names differ, matrices do not."""
    yield Rule("model.embed_tokens.weight", "token_embedding.weight")
    for number in range(config.num_layers):
        theirs, ours = f"model.layers.{number}", f"decoder.layers.{number}"
        yield Rule(f"{theirs}.input_layernorm.weight", f"{ours}.self_attention_norm.weight")
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from linear(f"{theirs}.self_attn.{name}", f"{ours}.self_attention.{name}", config.attention_bias)
        yield from linear(f"{theirs}.self_attn.o_proj", f"{ours}.self_attention.o_proj", config.output_projection_bias)
        if config.qk_norm:
            for name in ("q_norm", "k_norm"):
                yield Rule(f"{theirs}.self_attn.{name}.weight", f"{ours}.self_attention.{name}.weight")
        yield Rule(f"{theirs}.post_attention_layernorm.weight", f"{ours}.feed_forward_norm.weight")
        for name in ("gate_proj", "up_proj", "down_proj"):
            yield from linear(f"{theirs}.mlp.{name}", f"{ours}.feed_forward.{name}", config.ffn_bias)
    yield Rule("model.norm.weight", "decoder.final_norm.weight")
    if not config.tie_embeddings:
        yield Rule("lm_head.weight", "lm_head.weight")


def copies(config: DecoderConfig) -> dict[str, str]:
    """The output layer of a tied model."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}


def _family(name: Name, architecture: str) -> Family:
    return Family(
        name, architecture, DecoderConfig, partial(read, name), partial(write, name), rules, copies,
        prefix="model.", ignored=("*.rotary_emb.inv_freq",),
    )  # fmt: skip


LLAMA = _family("llama", "LlamaForCausalLM")
MISTRAL = _family("mistral", "MistralForCausalLM")
QWEN2 = _family("qwen2", "Qwen2ForCausalLM")
QWEN3 = _family("qwen3", "Qwen3ForCausalLM")
