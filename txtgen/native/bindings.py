"""The functions of the machine code, and Python's picture of the structures that they read: field by field those of
cpp/transformer.h and cpp/weights.h."""

import ctypes
from ctypes import POINTER, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path
from typing import Any


class Matrix(ctypes.Structure):
    """A packed matrix [N,K]."""

    _fields_ = (("kind", c_int32), ("rows", c_int32), ("width", c_int32), ("data", c_void_p))


class Rows(ctypes.Structure):
    """A matrix [N,K] before it is packed."""

    _fields_ = (
        ("kind", c_int32), ("rows", c_int32), ("width", c_int32),
        ("weights", c_void_p), ("scales", c_void_p), ("bias", c_void_p),
    )  # fmt: skip


class Table(ctypes.Structure):
    """Vectors of tokens."""

    _fields_ = (
        ("kind", c_int32), ("count", c_int32), ("width", c_int32), ("rows", c_void_p), ("scales", c_void_p),
    )  # fmt: skip


class Norm(ctypes.Structure):
    """LayerNorm or RMSNorm."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Layer(ctypes.Structure):
    """One layer of a stack."""

    _fields_ = (
        ("attention_norm", Norm), ("cross_norm", Norm), ("feed_forward_norm", Norm),
        ("query_norm", c_void_p), ("key_norm", c_void_p),
        ("cross_query_norm", c_void_p), ("cross_key_norm", c_void_p),
        ("queries_keys_values", Matrix), ("attention_output", Matrix),
        ("cross_queries", Matrix), ("cross_keys_values", Matrix), ("cross_output", Matrix),
        ("gate", Matrix), ("up", Matrix), ("down", Matrix),
        ("hidden", POINTER(Matrix)), ("num_hidden", c_int32), ("window", c_int32),
    )  # fmt: skip


class Stack(ctypes.Structure):
    """The encoder, or the decoder with its output layer."""

    _fields_ = (
        ("width", c_int32), ("heads", c_int32), ("groups", c_int32), ("head_width", c_int32), ("num_layers", c_int32),
        ("rms", c_int32), ("post_norm", c_int32), ("activation", c_int32), ("scaled_output", c_int32),
        ("short_cells", c_int32),
        ("eps", c_float), ("attention_scale", c_float), ("embedding_scale", c_float), ("softcap", c_float),
        ("layers", POINTER(Layer)),
        ("tokens", Table), ("ngrams", Table), ("ngram_order", c_int32), ("ngram_buckets", c_int32),
        ("positions", c_void_p), ("cosines", c_void_p), ("sines", c_void_p),
        ("slopes", c_void_p), ("distance_scores", c_void_p), ("reach", c_int32),
        ("embedding_norm", Norm), ("final_norm", Norm), ("head", Matrix),
    )  # fmt: skip


class Call(ctypes.Structure):
    """What one call reads, a token a row."""

    _fields_ = (
        ("rows", c_int32), ("one_each", c_int32), ("tokens", c_void_p),
        ("sequences", c_void_p), ("positions", c_void_p), ("stops", c_void_p),
        ("history", c_void_p), ("capacity", c_int32), ("cache", c_void_p),
        ("homes", c_void_p), ("cells", c_void_p),
        ("source_capacity", c_int32), ("source_cache", c_void_p),
        ("sources", c_void_p), ("source_lengths", c_void_p),
        ("num_wanted", c_int32), ("vectors", c_int32), ("wanted", c_void_p), ("out", c_void_p),
    )  # fmt: skip


STRUCTURES = (Matrix, Rows, Table, Norm, Layer, Stack, Call)


class Library:
    """The machine code, loaded.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it lacks a function.
        ValueError: its structures are others.
    """

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        sizes = (c_int32 * len(STRUCTURES)).in_dll(loaded, "txtgen_sizes")
        if list(sizes) != [ctypes.sizeof(structure) for structure in STRUCTURES]:
            raise ValueError("its structures are laid out in another way")
        call, stack = POINTER(Call), POINTER(Stack)
        self.lanes = c_int32.in_dll(loaded, "txtgen_lanes").value
        self.block_bytes = _function(loaded, "txtgen_block_bytes", c_size_t, stack)
        self.packed_bytes = _function(loaded, "txtgen_packed_bytes", c_size_t, c_int32, c_int32, c_int32)
        self.pack = _function(loaded, "txtgen_pack", None, POINTER(Rows), c_void_p, c_int32)
        self.read = _function(loaded, "txtgen_read", c_int32, stack, call, c_int32)
        self.remember_source = _function(loaded, "txtgen_remember_source", c_int32, stack, call, c_void_p, c_int32)
        self.copy_cells = _function(loaded, "txtgen_copy_cells", None, stack, call, c_void_p, c_int32)
        self.score = _function(loaded, "txtgen_score", c_int32, stack, call, c_void_p, c_int32)


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function
