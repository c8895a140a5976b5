"""Memory that runs out: how it shows, and what can be done."""

import torch

from txtgen.errors import ResourceError

TOLD = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. The CPU's allocator and the libraries on a GPU say so in words only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TOLD)


def smaller_micro_batch(max_tokens: int, width: int, num_parameters: int) -> int:
    """Half of what went through the model at once, after that was too much.

    Args:
        max_tokens: tokens that went through the model at once.
        width: tokens of a row, source included.
        num_parameters: of the model.

    Raises:
        ResourceError: a single row was too much.
    """
    if max_tokens >= 2 * width:
        return max_tokens // 2
    raise ResourceError(
        f"out of memory with a single row of {width:,} tokens",
        f"weights, gradients and optimizer take about {16 * num_parameters / 1e9:,.2f} GB, activations the rest",
        "lower train.sequence_length (or the longest pair), make model.d_model or num_layers smaller, "
        "or set train.dtype=bfloat16",
    )
