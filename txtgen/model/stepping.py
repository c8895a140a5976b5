"""Which way of computing a model generates by: PyTorch, compiled or not, or machine code where that is to be had and
right."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from txtgen.config.model import Compile, EncoderDecoderConfig, Native
from txtgen.errors import ResourceError, UsageError
from txtgen.model.agreement import disagreement
from txtgen.model.compiled import CompiledTransformer
from txtgen.model.compiling import may_compile
from txtgen.model.native import NativeTransformer
from txtgen.model.quantize import QuantizedEmbedding, quantize_model
from txtgen.model.transformer import Transformer, build_model
from txtgen.native import Library, UnavailableError, load_library

logger = logging.getLogger(__name__)


def step_model(
    model: Transformer, native: Native, compile: Compile = False
) -> Transformer | NativeTransformer | CompiledTransformer:
    """The model itself, or what does the same faster: machine code, made of its weights as they are now, or the model
    with compiled steps. Who asks for these gets no machine code.

    Raises:
        ResourceError: machine code is required, and there is none for this model on this machine.
        UsageError: both are asked for.
    """
    device = next(model.parameters()).device
    if compile is True and native == "require":
        raise UsageError("steps are to be compiled, and machine code is required", "compile", "leave one of them out")
    if compile is True or native == "off" or (native == "auto" and device.type != "cpu"):
        return CompiledTransformer(model, compile) if may_compile(compile, device) else model
    try:
        library = load_library()
        compare(model, library)
        return NativeTransformer(model, library)
    except UnavailableError as error:
        if native == "require":
            raise ResourceError(
                f"no machine code: {error}", "native", "mend that, or leave it to native: auto"
            ) from error
        logger.warning("generating without machine code: %s", error)
        return model


def compare(model: Transformer, library: Library) -> None:
    """Let machine code and PyTorch read a few tokens with a tiny model of the same kind.

    Raises:
        UnavailableError: they do not agree.
    """
    tiny = _tiny_model(model)
    ids = torch.arange(12).view(2, 6)
    prompt = _Prompt(ids, torch.tensor([6, 4]), None if model.encoder is None else ids.flip(0))
    quick, exact = (_read(way, prompt) for way in (NativeTransformer(tiny, library), tiny))
    short = "float32" if model.compute_dtype == torch.float32 else "short"
    kind = "quantised" if isinstance(model.token_embedding, QuantizedEmbedding) else short
    if wrong := disagreement(quick, exact, kind):
        raise UnavailableError(wrong)


@dataclass(frozen=True)
class _Prompt:
    input_ids: Tensor
    lengths: Tensor
    source_ids: Tensor | None
    source_mask: Tensor | None = None
    bidirectional: Tensor | None = None


def _read(way: Any, prompt: _Prompt) -> Tensor:
    """Logits of what follows a prompt, and of what follows a token and two tokens after it."""
    first, state = way.prefill(prompt, capacity=9)
    steps = [way.extend(prompt.input_ids[:, :count], state) for count in (1, 2)]
    return torch.cat((first[:, None], *steps), 1)


def _tiny_model(model: Transformer) -> Transformer:
    """A float32 model with one layer of odd sizes, all else as in the model; its dtype holds the weights exactly."""
    config = model.config
    sizes: dict[str, Any] = {"d_model": 40, "num_heads": 4, "head_dim": 10, "d_ff": 50, "vocab_size": 40}
    sizes |= {"num_kv_heads": None if config.kv_heads == config.num_heads else 2, "max_length": 9}
    sizes |= {"sliding_window": config.sliding_window and 3, "full_attention_layers": ()}
    sizes |= {"ngrams": config.ngrams and config.ngrams.model_copy(update={"num_buckets": 16})}
    if isinstance(config, EncoderDecoderConfig):
        sizes |= {"num_encoder_layers": 1, "num_decoder_layers": 1, "max_source_length": 6, "source_vocab_size": 40}
    else:
        sizes |= {"num_layers": 1}
    tiny = build_model(config.model_copy(update=sizes)).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tiny.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3, generator=random)
            parameter.copy_(parameter.to(model.compute_dtype))
    if isinstance(model.token_embedding, QuantizedEmbedding):
        quantize_model(tiny, model.token_embedding.kind)
    return tiny
