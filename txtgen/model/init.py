"""The weights that training starts from."""

import math
from hashlib import blake2b

import torch
from torch import Tensor

from txtgen.config.model import EncoderDecoderConfig, ModelConfig
from txtgen.model.transformer import Transformer


def _num_layers(config: ModelConfig, name: str) -> int:
    """Layers of the stack that the parameter belongs to."""
    if isinstance(config, EncoderDecoderConfig):
        return config.num_encoder_layers if name.startswith("encoder.") else config.num_decoder_layers
    return config.num_layers


def _std(config: ModelConfig, name: str) -> float:
    """Standard deviation of a matrix: less for what is added to the residual stream, so that its sum keeps
    scale.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    if name.endswith((".o_proj.weight", ".down_proj.weight")):
        return 0.0 if config.zero_init_projections else config.init_std / math.sqrt(2 * _num_layers(config, name))
    if config.scale_embeddings and name in ("token_embedding.weight", "source_embedding.weight"):
        # Multiplied by sqrt(d_model), such an embedding has unit scale.
        return 1.0 / math.sqrt(config.d_model)
    return config.init_std


def keyed(seed: int, name: str) -> torch.Generator:
    """What draws the first value of one parameter."""
    key = int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big") >> 1
    return torch.Generator(device="cpu").manual_seed(key)


def initial_weight(config: ModelConfig, name: str, shape: torch.Size, seed: int) -> Tensor:
    """The first value of one parameter, float32 on the CPU: a pure function of its name, its shape and the
    seed.

    Norms are 1, biases and embeddings of n-grams 0, matrices normal with mean 0.
    """
    if name.endswith((".bias", "output_bias")) or name == "ngram_embedding.weight":
        return torch.zeros(shape, device="cpu")
    if name.endswith("_norm.weight"):
        return torch.ones(shape, device="cpu")
    weight = torch.randn(shape, generator=keyed(seed, name), dtype=torch.float32, device="cpu")
    return weight.mul_(_std(config, name))


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> None:
    """Set every parameter from the seed, the same on every device and whatever was drawn before."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_weight(model.config, name, parameter.shape, seed))
