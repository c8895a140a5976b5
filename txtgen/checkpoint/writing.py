"""Writing a checkpoint: whole and verified before it stands under its name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from txtgen.archive import seal, verify
from txtgen.checkpoint.types import FORMAT, Checkpoint
from txtgen.errors import CheckpointError, ResourceError
from txtgen.files import os_error, replace_file, retried, write_error
from txtgen.tokenizer import Tokenizer

RECORD_BYTES = 512
"""What a tensor takes in the file beside its data, at most: headers, alignment, its hash."""
ENVELOPE_BYTES = 1 << 20
"""What else is in the file, about: configs, bookmark, tokenizer."""


def save_checkpoint(path: Path, checkpoint: Checkpoint, cancelled: Callable[[], bool] | None = None) -> str:
    """Write a checkpoint durably and verify it. Returns its fingerprint.

    Args:
        path: what is there stays until the new file is whole and verified.
        checkpoint: its tensors may be on any device.
        cancelled: asked now and then whether to stop at once, by KeyboardInterrupt.

    Raises:
        ResourceError: there is no room or no permission, or the disk fails; nothing is left under `path`.
    """
    content = {
        "format": FORMAT,
        "config": checkpoint.config.plain(),
        "model": {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.items()},
        "tokenizer": _pack_tokenizer(checkpoint.tokenizer),
        "source_tokenizer": checkpoint.source_tokenizer and _pack_tokenizer(checkpoint.source_tokenizer),
        "lineage": checkpoint.lineage,
        "training": checkpoint.training,
    }
    _require_plain(content, "checkpoint")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    return retried(lambda: _write(path, content, cancelled))


def _write(path: Path, content: dict[str, Any], cancelled: Callable[[], bool] | None) -> str:
    with replace_file(path, needs=file_bytes(content)) as handle:
        file = handle if cancelled is None else cast(IO[bytes], _Cancellable(handle, cancelled))
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch puts its own error before ours
            if cancelled is not None and cancelled():
                raise KeyboardInterrupt from error
            raise
        seal(file)
        try:
            return verify(file, path)
        except CheckpointError as error:
            if os_error(error) is not None:
                raise
            raise ResourceError(
                f"the disk gives back other bytes than were written ({error.what})", str(path), "check the disk"
            ) from error


class _Cancellable:
    """A file handle that reads and writes until it is told not to."""

    def __init__(self, handle: IO[bytes], cancelled: Callable[[], bool]) -> None:
        self._handle, self._cancelled = handle, cancelled

    def __getattr__(self, name: str) -> Any:
        if self._cancelled():
            raise KeyboardInterrupt
        return getattr(self._handle, name)


def file_bytes(content: Any) -> int:
    """About how many bytes a checkpoint with this content takes: its tensors and what surrounds them."""
    return ENVELOPE_BYTES + sum(tensor.nbytes + RECORD_BYTES for tensor in _tensors(content))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts, lists and tuples."""
    match value:
        case Tensor():
            yield value
        case dict():
            yield from (tensor for item in value.values() for tensor in _tensors(item))
        case list() | tuple():
            yield from (tensor for item in value for tensor in _tensors(item))


def _require_plain(value: Any, where: str) -> None:
    """Refuse to write what restricted unpickling would refuse to read: a subclass of str is enough to lock one out."""
    if type(value) is dict:
        for key, item in value.items():
            _require_plain(key, where)
            _require_plain(item, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            _require_plain(item, f"{where}.{number}")
    elif type(value) not in (str, bytes, int, float, bool, type(None), Tensor, torch.nn.Parameter):
        raise TypeError(f"{where} is a {type(value).__name__}, which no checkpoint may hold")


def _pack_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    special = tokenizer.special
    return {
        "kind": tokenizer.kind,
        "files": tokenizer.files(),
        "special": {
            "pad_id": special.pad_id,
            "unk_id": special.unk_id,
            "bos_id": special.bos_id,
            "eos_id": special.eos_id,
        },
    }
