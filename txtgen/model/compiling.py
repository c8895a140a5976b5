"""What torch.compile is tried for, and what is said where it fails."""

import torch

from txtgen.config.model import Compile

PAYS_ON = ("cuda",)
"""Devices where `auto` tries. A CPU gains little or nothing, after up to minutes of compiling."""


def may_compile(wanted: Compile, device: torch.device) -> bool:
    """Whether compiling is tried at all."""
    return device.type in PAYS_ON if wanted == "auto" else wanted


def cause(error: Exception) -> str:
    """The error in a line. What torch.compile raises often wraps what really happened."""
    inner = getattr(error, "inner_exception", error)
    return f"{type(inner).__name__}: {str(inner).strip().partition(chr(10))[0]}"
