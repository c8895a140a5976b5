"""Small models with random weights in double precision, for comparing one way of computing with another."""

import torch
from torch import Tensor

from txtgen.config.model import (
    AlibiPosition,
    DecoderConfig,
    EncoderDecoderConfig,
    LearnedPosition,
    ModelConfig,
    NoPosition,
    RotaryPosition,
    SinusoidalPosition,
    T5RelativePosition,
)
from txtgen.model import Transformer, build_model

VOCAB = 13
POSITIONS = {
    "sinusoidal": SinusoidalPosition(),
    "learned": LearnedPosition(),
    "rotary": RotaryPosition(base=50.0),
    "alibi": AlibiPosition(),
    "t5_relative": T5RelativePosition(num_buckets=8, max_distance=9),
    "none": NoPosition(),
}
ARCHITECTURES = ("decoder", "encoder_decoder")


def tiny_config(architecture: str = "decoder", position: str = "sinusoidal", **options) -> ModelConfig:
    """Two layers of width 16 with four heads."""
    shared = {
        "d_model": 16,
        "num_heads": 4,
        "d_ff": 24,
        "max_length": 24,
        "vocab_size": VOCAB,
        "position": POSITIONS[position],
    }
    if architecture == "decoder":
        return DecoderConfig(**{"num_layers": 2, **shared, **options})
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2, "max_source_length": 12}
    return EncoderDecoderConfig(**{**layers, **shared, **options})


def tiny_model(architecture: str = "decoder", position: str = "sinusoidal", *, seed: int = 0, **options) -> Transformer:
    """In evaluation mode. Every weight is random, norms and biases too, so that none can be forgotten."""
    model = build_model(tiny_config(architecture, position, **options)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1.0)
    return model


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    """Token ids."""
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def source_for(model: Transformer, rows: int, length: int = 7, seed: int = 1) -> dict[str, Tensor]:
    """Sources of unequal length with random ids under the padding, or nothing for a decoder-only model."""
    if model.encoder is None:
        return {}
    lengths = torch.tensor([length - row % length for row in range(rows)])
    mask = torch.arange(length)[None] < lengths[:, None]
    return {"source_ids": random_ids(rows, length, seed=seed), "source_mask": mask}


def plain(ids: Tensor) -> dict[str, Tensor]:
    """Rows of one document each, without padding."""
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    return {"input_ids": ids, "positions": positions, "segment_ids": torch.ones_like(ids, dtype=torch.int32)}


def logits_of(model: Transformer, ids: Tensor, **options) -> Tensor:
    """Logits of rows of one document each."""
    with torch.no_grad():
        return model(**plain(ids), **options)
