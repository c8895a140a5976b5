"""How memory that runs out shows, and how what is free of it goes back to the system."""

import ctypes
import sys

import torch

TOLD = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. The CPU's allocator and the libraries on a GPU say so in words only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TOLD)


def give_back_free_memory() -> None:
    """Let the system have what this process has freed, as far as whole pages go.

    glibc keeps what tensors of up to 32 MB have left between others that are still there, for the next ones: after a
    model was read, its size and more. Elsewhere nothing is done.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
