"""The Transformer: tensors in, tensors out."""

from txtgen.model.init import init_weights, initial_weight
from txtgen.model.state import TransformerState
from txtgen.model.transformer import Transformer, build_model, count_parameters

__all__ = [
    "Transformer",
    "TransformerState",
    "build_model",
    "count_parameters",
    "init_weights",
    "initial_weight",
]
