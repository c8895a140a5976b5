"""`txtgen inspect`: what a checkpoint says of itself, or would if it were made of a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txtgen.commands.models import read_checkpoint
from txtgen.model.quantize import count_weights


@dataclass(frozen=True, slots=True)
class Inspection:
    """path: the file, or the Hugging Face folder. file_bytes: its size. fingerprint: SHA-256 of the file's manifest,
    "" for a folder. parameters: their number, quantised or not. tensors: name, shape, dtype of each. tokenizer: kind,
    vocabulary and fingerprint. config, lineage: as saved. training: step and so on of the state to resume, or None.
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
    """Read and verify a checkpoint, or a Hugging Face folder; nothing is written.

    Raises:
        CheckpointError: it is damaged, or there is none.
        ResourceError: it may not be read.
    """
    path, checkpoint = read_checkpoint(model, runs_path, training=True)
    training = checkpoint.training
    return Inspection(
        path=str(path),
        file_bytes=_size(path),
        fingerprint=checkpoint.fingerprint,
        parameters=count_weights(checkpoint.model),
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


def _size(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
