"""BART and Marian: the classic encoder-decoder.

Sources of the architectures: Lewis et al. 2019, arXiv 1910.13461; Junczys-Dowmunt et al. 2018, arXiv 1804.00344.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor

from txtgen.config.model import EncoderDecoderConfig, LearnedPosition, SinusoidalPosition
from txtgen.convert.fields import Fields
from txtgen.convert.rules import Family, Rule, activation, activation_name, linear
from txtgen.errors import CheckpointError

Name = Literal["bart", "marian"]

BIAS = "final_logits_bias"
OFFSET = 2
"""Rows at the top of BART's position embeddings that no position uses."""


def read(name: Name, fields: Fields, weights: Mapping[str, Tensor]) -> EncoderDecoderConfig:
    """Our config of a BART or a Marian. Only the weights tell whether there is a bias on the logits."""
    length = fields.count("max_position_embeddings", 1024)
    shared = name == "bart" or fields.flag("share_encoder_decoder_embeddings", True)
    vocab_size = fields.count("vocab_size")
    return EncoderDecoderConfig(
        vocab_size=vocab_size if shared else fields.count("decoder_vocab_size", vocab_size),
        share_embeddings=shared,
        source_vocab_size=None if shared else vocab_size,
        d_model=fields.count("d_model"),
        num_encoder_layers=fields.layers("encoder_layers"),
        num_decoder_layers=fields.layers("decoder_layers"),
        num_heads=_equal(fields, "encoder_attention_heads", "decoder_attention_heads"),
        d_ff=_equal(fields, "encoder_ffn_dim", "decoder_ffn_dim"),
        max_length=length,
        max_source_length=length,
        position=LearnedPosition() if name == "bart" else SinusoidalPosition(layout="halves"),
        activation=activation(fields, "activation_function", "gelu"),
        norm_position="post",
        embedding_norm=name == "bart",
        scale_embeddings=fields.flag("scale_embedding", False),
        output_bias=BIAS in weights and bool(weights[BIAS].any()),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        dropout=fields.number("dropout", 0.1),
        attention_dropout=fields.number("attention_dropout", 0.0),
        ffn_dropout=fields.number("activation_dropout", 0.0),
    )


def _equal(fields: Fields, encoder: str, decoder: str) -> int:
    """A size that both stacks must have."""
    one, other = fields.count(encoder), fields.count(decoder)
    if one != other:
        raise CheckpointError(
            f"{encoder} is {one}, but {decoder} is {other}", fields.where, "txtgen has models with equal sizes only"
        )
    return one


def write(name: Name, config: EncoderDecoderConfig) -> dict[str, Any]:
    """The config.json of an encoder-decoder of ours, as far as this family goes."""
    shared = config.share_embeddings
    found: dict[str, Any] = {
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size if shared else config.source_vocab_size,
        "d_model": config.d_model,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.ff_width,
        "decoder_ffn_dim": config.ff_width,
        "max_position_embeddings": config.max_length,
        "activation_function": activation_name(config.activation),
        "scale_embedding": config.scale_embeddings,
        "tie_word_embeddings": config.tie_embeddings,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.ffn_dropout,
        "init_std": config.init_std,
        # Ends are never forced unless the generation settings say so.
        "forced_eos_token_id": None,
    }
    if name == "marian":
        found["share_encoder_decoder_embeddings"] = shared
        found["decoder_vocab_size"] = config.vocab_size
    return found


def rules(name: Name, config: EncoderDecoderConfig) -> Iterator[Rule]:
    """Names differ; BART's positions begin at the third row."""
    if config.share_embeddings:
        yield Rule("model.shared.weight", "token_embedding.weight")
    else:
        yield Rule("model.encoder.embed_tokens.weight", "source_embedding.weight")
        yield Rule("model.decoder.embed_tokens.weight", "token_embedding.weight")
    for stack, num_layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        if name == "bart":
            ours = "source_position_embedding" if stack == "encoder" else "position_embedding"
            yield Rule(f"model.{stack}.embed_positions.weight", f"{ours}.weight", skip=OFFSET)
            yield from linear(f"model.{stack}.layernorm_embedding", f"{stack}.embedding_norm", bias=True)
        blocks = {"self_attention": "self_attn"} | ({"cross_attention": "encoder_attn"} if stack == "decoder" else {})
        for number in range(num_layers):
            theirs, layer = f"model.{stack}.layers.{number}", f"{stack}.layers.{number}"
            for block, attention in blocks.items():
                for letter, projection in zip("qkvo", ("q_proj", "k_proj", "v_proj", "out_proj"), strict=True):
                    yield from linear(f"{theirs}.{attention}.{projection}", f"{layer}.{block}.{letter}_proj", bias=True)
                yield from linear(f"{theirs}.{attention}_layer_norm", f"{layer}.{block}_norm", bias=True)
            yield from linear(f"{theirs}.fc1", f"{layer}.feed_forward.up_proj", bias=True)
            yield from linear(f"{theirs}.fc2", f"{layer}.feed_forward.down_proj", bias=True)
            yield from linear(f"{theirs}.final_layer_norm", f"{layer}.feed_forward_norm", bias=True)
    if not config.tie_embeddings:
        yield Rule("lm_head.weight", "lm_head.weight")
    if config.output_bias:
        yield Rule(BIAS, "output_bias", flat=True)


def copies(config: EncoderDecoderConfig) -> dict[str, str]:
    """The embeddings of both stacks where they are shared, and the output layer of a tied model."""
    if not config.share_embeddings:
        return {"lm_head.weight": "model.decoder.embed_tokens.weight"} if config.tie_embeddings else {}
    names = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"]
    return dict.fromkeys([*names, "lm_head.weight"] if config.tie_embeddings else names, "model.shared.weight")


def _family(name: Name, architecture: str) -> Family:
    # A bias of zeros is none; Marian's tables of sines and cosines are computed.
    ignored = (BIAS,) if name == "bart" else (BIAS, "model.*.embed_positions.weight")
    own = partial(read, name), partial(write, name), partial(rules, name)
    return Family(name, architecture, EncoderDecoderConfig, *own, copies, prefix="model.", ignored=ignored)


BART = _family("bart", "BartForConditionalGeneration")
MARIAN = _family("marian", "MarianMTModel")
