"""How memory that runs out shows, and how what is free of it goes back to the system."""

import ctypes
import mmap
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


def forget_mapped(storage: torch.UntypedStorage) -> None:
    """Let the system have the memory of a storage that is mapped from a file.

    Whoever uses the storage again reads the file anew. Elsewhere than on Linux, the system takes the memory when it
    needs it.
    """
    if sys.platform == "linux":
        page, start = mmap.PAGESIZE, storage.data_ptr()
        first, end = -(-start // page) * page, (start + storage.nbytes()) // page * page
        if end > first:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)
