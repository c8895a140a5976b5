"""Memory that was freed between what is still used goes back to the system."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from txtgen.memory import give_back_free_memory


def resident() -> float:
    """MiB of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps nothing back")
def test_what_is_free_between_tensors_goes_back() -> None:
    before = resident()
    tensors = [torch.ones(2**14) for _ in range(2000)]  # 64 KiB each, too small to be mapped by itself
    kept = tensors[::20]
    del tensors
    assert resident() - before > 100, "holes between those that are kept"
    give_back_free_memory()
    assert resident() - before < 30
    assert all(bool((tensor == 1).all()) for tensor in kept)
