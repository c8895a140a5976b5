"""What training costs: floating-point operations, beside what the machine can do, and memory."""

import sys
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from txtgen.data.types import Batch
from txtgen.model import Transformer
from txtgen.model.quantize import QuantizedLinear


@dataclass(frozen=True, slots=True)
class FlopCounts:
    """Floating-point operations of a model's matrix products, by what they grow with.

    target, source: a position of the decoder or of the encoder. scored: a position that is turned into logits.
    target_pairs, cross_pairs, source_pairs: a pair of positions in attention. Of causal attention all pairs are
    counted, as is usual (Chowdhery et al. 2022, appendix B), whether or not the machine computes them.
    """

    target: int
    source: int
    scored: int
    target_pairs: int
    cross_pairs: int
    source_pairs: int

    def total(self, rows: int, length: int, source_length: int = 0, scored: int | None = None) -> int:
        """For `rows` rows of so many target and source positions, `scored` of them all (None: every target one)."""
        positions = rows * length
        return (
            self.target * positions
            + self.source * rows * source_length
            + self.scored * (positions if scored is None else scored)
            + self.target_pairs * positions * length
            + self.cross_pairs * positions * source_length
            + self.source_pairs * rows * source_length**2
        )

    def of(self, batch: Batch) -> int:
        """For a batch, its padding included."""
        rows, length = batch.input_ids.shape
        return self.total(rows, length, 0 if batch.source_ids is None else batch.source_ids.shape[1], batch.num_scored)


def count_flops(model: Transformer, training: bool = True) -> FlopCounts:
    """Forward, and if `training` backward: one product for the gradient of what comes in, one for that of a weight
    that is trained. Nothing is counted that activation checkpointing computes a second time.

    The model may be on the meta device.
    """

    def linear(stack: nn.Module, cross: bool) -> int:
        """A position's way through the linear layers of a stack, or through those that read the encoder's output."""
        return sum(
            _products(_is_trained(module), training) * module.in_features * module.out_features
            for name, module in stack.named_modules()
            if isinstance(module, nn.Linear | QuantizedLinear)
            and cross == ("cross_attention.k_proj" in name or "cross_attention.v_proj" in name)
        )

    config, head = model.config, model.head_parameters[0]
    # Queries with keys, weights with values; the gradients of all four.
    pair = 2 * _products(True, training) * config.num_heads * config.head_width
    encoder_layers = 0 if model.encoder is None else len(model.encoder.layers)
    decoder_layers = len(model.decoder.layers)
    encoder = 0 if model.encoder is None else linear(model.encoder, cross=False)
    return FlopCounts(
        target=linear(model.decoder, cross=False),
        source=encoder + linear(model.decoder, cross=True),
        scored=_products(head.requires_grad, training) * head.numel(),
        target_pairs=pair * decoder_layers,
        cross_pairs=pair * decoder_layers if model.encoder is not None else 0,
        source_pairs=pair * encoder_layers,
    )


def _is_trained(module: nn.Linear | QuantizedLinear) -> bool:
    """Whether the weight of a linear layer is; one in few bits never is."""
    return isinstance(module, nn.Linear) and module.weight.requires_grad


def _products(weight_is_trained: bool, training: bool) -> int:
    """Operations per number of a matrix: a multiplication and an addition, in the forward pass and in the backward."""
    return 2 * (1 + (1 + weight_is_trained if training else 0))


@cache
def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """The most floating-point operations a second that products of large matrices reach here, measured once.

    Best of as many products as fit into `seconds`, at least three, in the number of threads that is set.
    """
    size, most = 512, 1024 if device.type == "cpu" else 8192
    while True:
        matrix = torch.ones(size, size, device=device, dtype=dtype)
        taken = [_timed(matrix) for _ in range(2)][-1]
        if size >= most or taken > seconds / 4:
            break
        size *= 2
    started, best = time.perf_counter(), taken
    for count in range(1000):
        if count >= 3 and time.perf_counter() - started >= seconds:
            break
        best = min(best, _timed(matrix))
    return 2.0 * size**3 / best


def _timed(matrix: torch.Tensor) -> float:
    """Seconds that a product of the matrix with itself takes."""
    synchronise(matrix.device)
    started = time.perf_counter()
    torch.mm(matrix, matrix)
    synchronise(matrix.device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory used so far: tensors on a GPU, the whole process on a CPU. None: the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
