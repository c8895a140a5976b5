"""`txtgen inspect`: what a checkpoint says of itself, without building its model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txtgen.checkpoint import load_checkpoint
from txtgen.commands.models import resolve_model


@dataclass(frozen=True, slots=True)
class Inspection:
    """path: the file. file_bytes: its size. fingerprint: SHA-256 of its manifest. parameters: their number.
    tensors: name, shape and dtype of each. tokenizer: kind, vocabulary and fingerprint. config, lineage: as saved.
    training: step and so on of the state to resume, or None.
    """

    path: str
    file_bytes: int
    fingerprint: str
    parameters: int
    tensors: list[dict[str, Any]]
    tokenizer: dict[str, Any]
    config: dict[str, Any]
    lineage: dict[str, Any]
    training: dict[str, Any] | None


def run(model: str | None, runs_path: str = "runs") -> Inspection:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: it is damaged, or there is none.
    """
    path: Path = resolve_model(model, runs_path)
    checkpoint = load_checkpoint(path, training=True)
    training = checkpoint.training
    return Inspection(
        path=str(path),
        file_bytes=path.stat().st_size,
        fingerprint=checkpoint.fingerprint,
        parameters=sum(tensor.numel() for tensor in checkpoint.model.values()),
        tensors=[
            {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in checkpoint.model.items()
        ],
        tokenizer={
            "kind": checkpoint.tokenizer.kind,
            "vocabulary": len(checkpoint.tokenizer),
            "fingerprint": checkpoint.tokenizer.fingerprint(),
        },
        config=checkpoint.config.plain(),
        lineage=checkpoint.lineage,
        training=None
        if training is None
        else {name: training[name] for name in ("step", "tokens", "seconds", "best") if name in training},
    )
