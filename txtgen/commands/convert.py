"""`txtgen convert`: models in from Hugging Face's format, and out to it; adapters into their models."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from txtgen.checkpoint import Checkpoint, save_checkpoint
from txtgen.commands.deriving import descended, require_free
from txtgen.commands.models import read_checkpoint, whole
from txtgen.config.commands import ExportConfig, ImportConfig, MergeConfig
from txtgen.convert import export_folder, import_folder
from txtgen.errors import CheckpointError, UsageError


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted. path: what was written. family: Hugging Face's. num_bytes: of the weights."""

    path: str
    family: str
    parameters: int
    tensors: int
    num_bytes: int
    dtype: str
    tokenizer: str
    chat: str


def from_hf(config: ImportConfig) -> Conversion:
    """Write a checkpoint of a Hugging Face folder.

    Raises:
        BusyError: the output exists, and it is not to be overwritten.
        CheckpointError: the folder cannot be used; nothing is written.
        ResourceError: there is no room, or no permission.
    """
    output, folder = Path(config.output), Path(config.folder)
    require_free(output, config.overwrite)
    if not folder.is_dir():
        raise CheckpointError("there is no such folder", str(folder), "give a folder in Hugging Face's format")
    weights = None if config.weights is None else Path(config.weights)
    checkpoint = import_folder(folder, weights=weights, dtype=weights_dtype(config.dtype))
    save_checkpoint(output, checkpoint)
    return _conversion(checkpoint, str(output), str(checkpoint.lineage["family"]), weights_dtype(config.dtype))


def to_hf(config: ExportConfig) -> Conversion:
    """Write a model as a Hugging Face folder; one that is such a folder already in another family, dtype or shards.

    Raises:
        BusyError: there is something in the folder.
        CheckpointError: the model cannot be read, or no family has such models.
        ResourceError: there is no room, or no permission.
    """
    path, checkpoint = found = read_checkpoint(config.model, config.runs_path)
    checkpoint = whole(found)
    checkpoint.require_unquantized("Hugging Face's format", str(path))
    dtype = weights_dtype(config.dtype)
    family = export_folder(
        checkpoint, Path(config.folder), family=config.family, dtype=dtype, max_shard_bytes=config.max_shard_bytes
    )
    return _conversion(checkpoint, config.folder, family, dtype)


@dataclass(frozen=True, slots=True)
class Merged:
    """What was merged. path: what was written. parents: the adapters, as they were found."""

    path: str
    model: str
    adapters: list[str]
    parameters: int
    fingerprint: str


def merge(config: MergeConfig) -> Merged:
    """Write the whole model that a model and adapters of it make.

    Raises:
        BusyError: the output exists, and it is not to be overwritten.
        CheckpointError: the model or an adapter cannot be read, or they do not belong together.
        ResourceError: there is no room, or no permission.
        UsageError: there is no adapter.
    """
    output = Path(config.output)
    require_free(output, config.overwrite)
    found = read_checkpoint(config.model, config.runs_path)
    if not config.adapters and found[1].config.adapter is None:
        raise UsageError("there is nothing to merge", str(found[0]), "add --adapter FILE")
    merged = whole(found, config.adapters, config.runs_path)
    lineage = descended(merged, "merge", [merged.fingerprint])
    fingerprint = save_checkpoint(output, replace(merged, lineage=lineage, fingerprint=""))
    parameters = sum(tensor.numel() for tensor in merged.model.values())
    return Merged(str(output), str(found[0]), list(config.adapters), parameters, fingerprint)


def weights_dtype(name: str) -> torch.dtype | None:
    """The dtype that a name means; None, for auto, is as the weights are."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return None if name == "auto" else names[name]


def _conversion(checkpoint: Checkpoint, path: str, family: str, dtype: torch.dtype | None) -> Conversion:
    tensors = checkpoint.model.values()
    dtype = dtype or next(iter(tensors)).dtype
    parameters = sum(tensor.numel() for tensor in tensors)
    tokenizer = checkpoint.tokenizer
    return Conversion(
        path=path,
        family=family,
        parameters=parameters,
        tensors=len(tensors),
        num_bytes=parameters * dtype.itemsize,
        dtype=str(dtype).removeprefix("torch."),
        tokenizer=f"{tokenizer.kind}, {len(tokenizer):,} tokens",
        chat=checkpoint.config.chat.kind if checkpoint.config.chat else "no",
    )
