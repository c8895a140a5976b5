"""The Transformer: tensors in, tensors out."""

from txtgen.model.compiled import CompiledTransformer
from txtgen.model.compiling import may_compile
from txtgen.model.init import init_weights, initial_weight
from txtgen.model.lora import adapters_off
from txtgen.model.native import NativeTransformer
from txtgen.model.parameters import count_parameters, part_of
from txtgen.model.position import is_bounded
from txtgen.model.state import TransformerState
from txtgen.model.stepping import step_model
from txtgen.model.transformer import Transformer, at_least_float32, build_model

__all__ = [
    "CompiledTransformer",
    "NativeTransformer",
    "Transformer",
    "TransformerState",
    "adapters_off",
    "at_least_float32",
    "build_model",
    "count_parameters",
    "init_weights",
    "initial_weight",
    "is_bounded",
    "may_compile",
    "part_of",
    "step_model",
]
