"""`txtgen average`: one model whose weights are the mean of those of several checkpoints."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from txtgen.checkpoint import Checkpoint, save_checkpoint
from txtgen.commands.deriving import descended, require_free
from txtgen.commands.models import read_model
from txtgen.config.commands import AverageConfig
from txtgen.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Averaged:
    """What was averaged. path: what was written. parents: the checkpoints, as they were found."""

    path: str
    parents: list[str]
    parameters: int
    fingerprint: str


def run(config: AverageConfig) -> Averaged:
    """Write the uniform average of checkpoints of one architecture and tokenizer.

    All but the weights is that of the last one. Source: Vaswani et al. 2017, section 6.1; Izmailov et al. 2018,
    arXiv 1803.05407.

    Raises:
        BusyError: the output exists, and it is not to be overwritten.
        CheckpointError: a checkpoint cannot be read, or is of another model than the others.
        ResourceError: there is no room, or no permission.
    """
    output = Path(config.output)
    require_free(output, config.overwrite)
    path_of_last, last = read_model(config.models[-1], config.runs_path)
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in last.model.items()}
    paths, parents = [], []
    for model in config.models:
        path, one = read_model(model, config.runs_path)
        one.require_unquantized("an average", str(path))
        _require_alike(one, last, path, path_of_last)
        for name, total in sums.items():
            total += one.model[name]
        paths.append(path)
        parents.append(one.fingerprint)
    weights: dict[str, Tensor] = {name: (total / len(paths)).to(last.model[name].dtype) for name, total in sums.items()}
    lineage = {**descended(last, "average", parents), "parents": parents}
    fingerprint = save_checkpoint(output, replace(last, model=weights, lineage=lineage, training=None, fingerprint=""))
    parameters = sum(tensor.numel() for tensor in weights.values())
    return Averaged(str(output), [str(path) for path in paths], parameters, fingerprint)


def _require_alike(one: Checkpoint, other: Checkpoint, path: Path, other_path: Path) -> None:
    """Raises CheckpointError if two checkpoints are not of one architecture, tokenizer and way of prompting."""
    pairs = {
        "model": (one.config.model, other.config.model),
        "chat format": (one.config.chat, other.config.chat),
        "framing": (one.config.framing, other.config.framing),
        "tokenizer": (one.tokenizer.fingerprint(), other.tokenizer.fingerprint()),
        "source tokenizer": tuple(
            None if tokenizer is None else tokenizer.fingerprint()
            for tokenizer in (one.source_tokenizer, other.source_tokenizer)
        ),
        "weights": (_shapes(one), _shapes(other)),
    }
    different = [name for name, (ours, theirs) in pairs.items() if ours != theirs]
    if different:
        raise CheckpointError(
            f"checkpoints of different models cannot be averaged: they differ in {', '.join(different)}",
            f"{path} and {other_path}",
            "give checkpoints of one run, or of runs from one config",
        )


def _shapes(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in checkpoint.model.items()}
