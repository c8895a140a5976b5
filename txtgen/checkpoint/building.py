"""Building the model that a checkpoint describes, and refusing weights that do not fit it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from txtgen.checkpoint.types import Checkpoint
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.model import Quantization
from txtgen.errors import CheckpointError
from txtgen.model import Transformer, build_model
from txtgen.model.quantize import portable, quantize_model
from txtgen.tokenizer import Tokenizer

FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
"""Weights in one of these can be computed with in another one."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, with what turns text into its tokens."""

    model: Transformer
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer | None
    config: CheckpointConfig
    fingerprint: str = ""
    """Of the checkpoint's file; "": it is of none."""


def materialise(
    checkpoint: Checkpoint,
    where: str,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
) -> LoadedModel:
    """The model that a checkpoint describes, in evaluation mode.

    Args:
        checkpoint: of a whole model; where nothing has to be converted, the model has its tensors.
        where: what it is of, for errors.
        device: where to put it; None: the CPU.
        dtype: of its weights, or of what quantised ones become when they are used; None: as they were saved.
        quantization: of its weights; None: as they were saved.

    Raises:
        CheckpointError: it is of an adapter, a tokenizer or weights do not fit the model, or these are quantised
            otherwise already.
    """
    checkpoint.require_whole(where)
    check_tokenizer(checkpoint, where)
    config = checkpoint.config
    model = build_model(config.model, device="meta")
    if config.quantization is not None:
        quantize_model(model, config.quantization)
    load_weights(model, checkpoint.model, where, assign=True)
    if quantization not in (None, config.quantization):
        checkpoint.require_unquantized(f"quantising to {quantization}", where)
        quantize_model(model, quantization)
        config = config.model_copy(update={"quantization": quantization})
    # Scales are saved in fewer bits than the weights around them.
    model.to(device=device, dtype=dtype or model.compute_dtype if config.quantization else dtype).eval()
    return LoadedModel(model, checkpoint.tokenizer, checkpoint.source_tokenizer, config, checkpoint.fingerprint)


def load_weights(model: Transformer, weights: dict[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Copy a state dict into a model, or let the model have its tensors; every name and shape must match.

    Raises:
        CheckpointError: as for `check_weights`.
    """
    check_weights(model.state_dict(), weights, where)
    model.load_state_dict(weights, strict=True, assign=assign)


def check_weights(own: Mapping[str, Tensor], weights: dict[str, Tensor], where: str) -> None:
    """Refuse weights whose names and shapes are not those of a model's own.

    Raises:
        CheckpointError: the first differences in names or shapes, or a weight that is not finite.
    """
    complaints = [f"missing {name}" for name in own if name not in weights]
    complaints += [f"unexpected {name}" for name in weights if name not in own]
    complaints += [
        f"{name} is {list(weights[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    complaints += [
        f"{name} is {weights[name].dtype}, expected {own[name].dtype}"
        for name in own
        if name in weights and weights[name].dtype != own[name].dtype
        if not {weights[name].dtype, own[name].dtype} <= FLOATS
    ]
    if complaints:
        shown = ", ".join(complaints[:5]) + (f" and {len(complaints) - 5} more" if len(complaints) > 5 else "")
        raise CheckpointError(f"the weights do not fit the model: {shown}", where, "use the config that made them")
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise CheckpointError(f"weight {name} is not finite", where, "use an earlier checkpoint")


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are. Read once, and nothing is written: both ends are NaN where any number is."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in torch.aminmax(tensor))


def quantized(checkpoint: Checkpoint, kind: Quantization, where: str) -> Checkpoint:
    """The same checkpoint with its weights in few bits, and no training state.

    Raises:
        CheckpointError: its weights do not fit its model, or are quantised already.
    """
    checkpoint.require_unquantized(f"quantising to {kind}", where)
    loaded = materialise(checkpoint, where, quantization=kind)
    return replace(checkpoint, config=loaded.config, model=portable(loaded.model.state_dict()), training=None)


def check_tokenizer(checkpoint: Checkpoint, where: str) -> None:
    """Refuse a tokenizer that has more tokens than the embedding has rows."""
    model = checkpoint.config.model
    rows = model.vocab_size or 0
    source_rows = getattr(model, "source_vocab_size", None) or rows
    for tokenizer, limit in ((checkpoint.tokenizer, rows), (checkpoint.source_tokenizer, source_rows)):
        if tokenizer is not None and len(tokenizer) > limit:
            raise CheckpointError(
                f"the tokenizer has {len(tokenizer)} tokens, the embedding {limit} rows",
                where,
                "it was put together from parts of two models; use the original",
            )
