"""Reading a checkpoint trusts nothing: sizes and hashes are checked before anything is unpickled (archive.py), and
unpickling is restricted to tensors and plain data (`weights_only=True`).
"""

import errno
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

import txtgen
from txtgen.archive import damaged, verify
from txtgen.checkpoint.types import FORMAT, Checkpoint
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.errors import CheckpointError, ResourceError
from txtgen.files import os_error
from txtgen.memory import forget_mapped, is_out_of_memory
from txtgen.tokenizer import Tokenizer, tokenizer_from_files

READING_FAILS = (
    pickle.UnpicklingError, RuntimeError, MemoryError, EOFError, KeyError, ValueError, TypeError, AttributeError,
)  # fmt: skip
"""What `torch.load` raises where it cannot read."""


class NewerFormatError(CheckpointError):
    """A checkpoint, whole and good, of a later version of txtgen."""


def load_checkpoint(path: Path, *, training: bool = False, mapped: bool = False, weights: bool = True) -> Checkpoint:
    """Read and verify a checkpoint; its tensors are on the CPU.

    Args:
        path: the .pth file.
        training: the training state (optimizer and stream) too; else its tensors take no memory.
        mapped: somebody has just read and checked this very file (its fingerprint tells); do not read its tensors
            again, but map them into memory, where processes share them.
        weights: False: leave the model out, which most of a file is.

    Raises:
        CheckpointError: damaged, unsafe, or not a checkpoint; NewerFormatError: of a later version.
        ResourceError: it cannot be opened or read, or the memory does not hold it.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for somebody to write into it
            what = "a folder" if path.is_dir() else "a pipe or device"
            raise CheckpointError(f"no such checkpoint file, but {what}", str(path), "give a .pth file or a run folder")
        with open(path, "rb") as handle:
            fingerprint = verify(handle, path, tensors=weights and not mapped)
            handle.seek(0)
            # Of what is mapped, only what is used is read; it must have a name.
            named = None if training and weights and not mapped else _name_of(handle)
            source = named or (path if mapped or not weights else handle)
            mmap = source is not handle
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise CheckpointError("no such checkpoint file", str(path), "give a .pth file or a run folder") from error
    except OSError as error:
        raise ResourceError(f"cannot read: {error.strerror or error}", str(path), "check its permissions") from error
    except READING_FAILS as error:
        if (cause := os_error(error)) is not None and cause.errno not in (None, errno.EINVAL):
            raise ResourceError(f"cannot read: {cause.strerror}", str(path), "check the disk") from error
        if is_out_of_memory(error):
            raise _too_large(path) from error
        refused = isinstance(error, pickle.UnpicklingError)
        what = "it holds more than tensors and plain data, and is refused" if refused else "its records cannot be read"
        raise damaged(path, what) from error
    found = _unpack(content, path, fingerprint, training and weights)
    if not weights:
        return replace(found, model={})
    return replace(found, model=_copied(found.model, path)) if mmap and not mapped else found


def _name_of(handle: IO[bytes]) -> Path | None:
    """A name of what is open. Its own may be another file's by now: a run replaces last.pth again and again."""
    name = Path(f"/proc/self/fd/{handle.fileno()}")  # of Linux; elsewhere there is none
    return name if name.exists() else None


def _copied(mapped: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors of a file in memory of their own, where nothing changes with the file."""
    copies, storages = {}, dict[int, torch.UntypedStorage]()
    try:
        for name, tensor in mapped.items():
            storage = tensor.untyped_storage()
            if (own := storages.get(storage.data_ptr())) is None:
                own = storages[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
                forget_mapped(storage)
            copies[name] = tensor.new_empty(0).set_(own, tensor.storage_offset(), tensor.shape, tensor.stride())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _too_large(path) from error
    return copies


def _too_large(path: Path) -> ResourceError:
    return ResourceError("the memory does not hold it", str(path), "free some memory")


def _unpack(content: Any, path: Path, fingerprint: str, training: bool) -> Checkpoint:
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise damaged(path, "it lacks the format number")
    if content["format"] > FORMAT:
        lineage = content.get("lineage")
        version = lineage.get("txtgen") if isinstance(lineage, dict) else None
        raise NewerFormatError(
            f"the checkpoint has format {content['format']} (of txtgen {version}), "
            f"this txtgen {txtgen.__version__} reads up to {FORMAT}",
            str(path),
            "update txtgen",
        )
    weights = content.get("model")
    if not isinstance(weights, dict) or not isinstance(content.get("tokenizer"), dict):
        raise damaged(path, "it lacks weights or tokenizer")
    for name, tensor in weights.items():
        _check_tensor(name, tensor, path)
    try:
        # JSON is how strict validation accepts a list for a tuple; everything else stays strict.
        config = TypeAdapter(CheckpointConfig).validate_json(json.dumps(content.get("config")))
    except (ValidationError, TypeError, ValueError) as error:
        if isinstance(error, ValidationError) and all(each["type"] == "extra_forbidden" for each in error.errors()):
            what = f"the checkpoint's config says more than this txtgen knows ({_short(error)})"
            raise NewerFormatError(what, str(path), "update txtgen") from error
        raise damaged(path, f"its config is not valid ({_short(error)})") from error
    source = content.get("source_tokenizer")
    return Checkpoint(
        config=config,
        model=cast(dict[str, Tensor], weights),
        tokenizer=_unpack_tokenizer(content["tokenizer"], path),
        source_tokenizer=None if source is None else _unpack_tokenizer(source, path),
        lineage=content.get("lineage") or {},
        training=content.get("training") if training else None,
        fingerprint=fingerprint,
    )


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def _check_tensor(name: Any, tensor: Any, path: Path) -> None:
    """Refuse views that claim more than their storage holds: a small file must not become a giant tensor."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise damaged(path, f"its model entry {name!r} is not a tensor")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise damaged(path, f"tensor {name} of shape {tuple(tensor.shape)} is larger than its data")


def _unpack_tokenizer(packed: Any, path: Path) -> Tokenizer:
    try:
        return tokenizer_from_files(packed["kind"], packed["files"])
    except (KeyError, TypeError) as error:
        raise damaged(path, "its tokenizer cannot be read") from error
