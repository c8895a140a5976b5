"""Where to compute, and in which dtype: what the names that users give mean on this machine."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from txtgen.config.model import EncoderDecoderConfig, TransformerConfig
from txtgen.errors import ConfigError


def select_device(name: str) -> torch.device:
    """The device that a name means; auto is the GPU where there is one.

    Raises:
        ConfigError: the machine has no such device.
    """
    available = ["cpu"]
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if name == "auto":
        return _device(available[0])
    if name not in available:
        raise ConfigError(f"device {name} is not available", "device", f"this machine has: {', '.join(available)}")
    return _device(name)


def require_devices(name: str, count: int) -> None:
    """Refuse more processes than this machine has devices for.

    Raises:
        ConfigError: it has fewer GPUs, and each process needs one.
    """
    if select_device(name).type == "cuda" and count > torch.cuda.device_count():
        raise ConfigError(
            f"{count} processes need {count} GPUs", f"this machine has {torch.cuda.device_count()}", "start fewer"
        )


def _device(name: str) -> torch.device:
    """The device of this process: under torchrun every process of a machine has a GPU of its own."""
    rank = os.environ.get("LOCAL_RANK")
    if name != "cuda" or rank is None:
        return torch.device(name)
    if int(rank) >= torch.cuda.device_count():
        where = f"this machine has {torch.cuda.device_count()}"
        raise ConfigError(f"there is no GPU for local rank {rank}", where, "start fewer processes on it")
    return torch.device("cuda", int(rank))


def device_name(device: torch.device) -> str:
    """What tells devices apart that round differently."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


PAYING_WIDTH, PAYING_WIDTH_OF_PAIRS = 128, 256
"""From which `d_model` on bfloat16 pays on a CPU. Pairs come in batches of many shapes, and each is set up anew."""


def training_dtype(
    name: str, device: torch.device, model: TransformerConfig, lineage: Mapping[str, Any] | None = None
) -> torch.dtype:
    """The dtype of the matrix products while training; auto is bfloat16 where the hardware computes in it and gains.

    lineage: of the checkpoint that a run resumes: on a device like that one's, auto is what it was there.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if lineage and lineage.get("device") == device_name(device) and "dtype" in lineage:
        wanted = lineage["dtype"] == "bfloat16"
    else:
        wanted = device.type != "cpu" or _gains(model)
    return torch.bfloat16 if wanted and _native_bfloat16(device) else torch.float32


def _gains(model: TransformerConfig) -> bool:
    """Whether bfloat16 makes training on a CPU faster that computes in it."""
    return model.d_model >= (PAYING_WIDTH_OF_PAIRS if isinstance(model, EncoderDecoderConfig) else PAYING_WIDTH)


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def inference_dtype(name: str) -> torch.dtype | None:
    """The dtype of the weights for generation; None, for auto, is as they were saved."""
    return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[name]
