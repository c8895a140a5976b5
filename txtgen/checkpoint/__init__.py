"""One .pth file that answers every question about a model: weights, config, tokenizer, lineage, training state."""

from txtgen.checkpoint.building import (
    LoadedModel,
    check_tokenizer,
    check_weights,
    is_finite,
    load_weights,
    materialise,
    quantized,
)
from txtgen.checkpoint.reading import NewerFormatError, load_checkpoint
from txtgen.checkpoint.types import FORMAT, Checkpoint
from txtgen.checkpoint.writing import save_checkpoint

__all__ = [
    "FORMAT",
    "Checkpoint",
    "LoadedModel",
    "NewerFormatError",
    "check_tokenizer",
    "check_weights",
    "is_finite",
    "load_checkpoint",
    "load_weights",
    "materialise",
    "quantized",
    "save_checkpoint",
]
