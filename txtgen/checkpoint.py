"""One .pth file that answers every question about a model: weights, config, tokenizer, lineage, training state.

The file is what `torch.save` writes, plus a last zip entry `txtgen.json` (in the archive's one folder, where
`torch.load` tolerates it) with a SHA-256 of every other entry.
Reading trusts nothing: sizes and hashes are checked before anything is unpickled, and unpickling is restricted
to tensors and plain data (`weights_only=True`).
"""

import errno
import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from txtgen.config.commands import CheckpointConfig
from txtgen.errors import CheckpointError, ResourceError
from txtgen.model import Transformer, build_model
from txtgen.tokenizer import Tokenizer, tokenizer_from_files

FORMAT = 1
MANIFEST = "txtgen.json"
MAX_ENTRIES = 200_000
MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    config: how to build and prompt the model. model: its state dict, plain names. lineage: where it came from.
    training: what a run needs to go on, or None. fingerprint: hex SHA-256 of the file's manifest, "" before saving.
    """

    config: CheckpointConfig
    model: dict[str, Tensor]
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer | None
    lineage: dict[str, Any]
    training: dict[str, Any] | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, with what turns text into its tokens."""

    model: Transformer
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer | None
    config: CheckpointConfig


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A file handle whose content appears under `path` whole, flushed to disk, or not at all.

    Raises:
        ResourceError: the disk is full, read-only, or the place not writable.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with open(temporary, "w+b") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is not None:
            raise _resource_error(path, cause) from error
        raise


def _os_error(error: BaseException) -> OSError | None:
    """The operating system's complaint behind an error; torch hides it in the context of a RuntimeError."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _resource_error(path: Path, cause: OSError) -> ResourceError:
    if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            f"the disk is full ({cause.strerror})", str(path), "free space, or choose another runs_path"
        )
    return ResourceError(f"cannot write: {cause.strerror or cause}", str(path), "check the path and its permissions")


def flush(path: Path) -> None:
    """Make a file's content durable, or what was renamed in a folder; where folders cannot be opened (Windows), the
    system does so by itself."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint durably and verify it. Returns its fingerprint.

    Raises:
        ResourceError: there is no room, or no permission; nothing is left under `path`.
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
        raise _resource_error(path, error) from error
    with replace_file(path) as handle:
        torch.save(content, handle)
        handle.seek(0)
        with zipfile.ZipFile(handle, "a", zipfile.ZIP_STORED) as archive:
            hashes = {name: _hash_entry(archive, name) for name in archive.namelist()}
            manifest = json.dumps({"format": FORMAT, "sha256": hashes}, indent=0).encode()
            archive.writestr(_manifest_name(archive), manifest)
        handle.seek(0)
        return _verify(handle, path)


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


def _hash_entry(archive: zipfile.ZipFile, name: str) -> str:
    digest = hashlib.sha256()
    with archive.open(name) as entry:
        while block := entry.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _manifest_name(archive: zipfile.ZipFile) -> str:
    """Where the manifest stands: beside torch's own records, which share one folder."""
    names = archive.namelist()
    return f"{names[0].partition('/')[0]}/{MANIFEST}" if names else MANIFEST


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"not a usable checkpoint: {what}", str(path), "use an undamaged copy or an earlier checkpoint"
    )


def _verify(handle: IO[bytes], path: Path) -> str:
    """Check sizes and hashes of every entry without unpickling anything. Returns the fingerprint."""
    try:
        return _verify_archive(handle, path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise _damaged(path, _first_look(handle) or f"the archive is damaged ({error})") from error


def _verify_archive(handle: IO[bytes], path: Path) -> str:
    size = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    with zipfile.ZipFile(handle) as archive:
        manifest_name = _manifest_name(archive)
        names = archive.namelist()
        check_records(archive, size, path)
        if manifest_name not in names:
            raise CheckpointError(
                "not a txtgen checkpoint: it has no txtgen.json",
                str(path),
                "a state dict alone is no model: txtgen convert from-hf FOLDER model.pth --weights FILE makes it one",
            )
        if archive.getinfo(manifest_name).file_size > MAX_MANIFEST_BYTES:
            raise _damaged(path, "its manifest is too large")
        manifest = archive.read(manifest_name)
        hashes = json.loads(manifest)["sha256"]
        if sorted(hashes) != sorted(name for name in names if name != manifest_name):
            raise _damaged(path, "its entries are not those of its manifest")
        for name, expected in hashes.items():
            if _hash_entry(archive, name) != expected:
                raise _damaged(path, f"checksum mismatch in entry {name!r}")
    return hashlib.sha256(manifest).hexdigest()


def check_records(archive: zipfile.ZipFile, size: int, path: Path) -> None:
    """Refuse an archive of `size` bytes that `torch.save` did not write: compressed, or with entries that claim more.

    Raises:
        CheckpointError: it is one.
    """
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise _damaged(path, f"it has {len(entries)} entries, more than {MAX_ENTRIES}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _damaged(path, "its entries are compressed, which no checkpoint's are")
    if sum(entry.file_size for entry in entries) > size:
        raise _damaged(path, "its entries claim more bytes than the file has")


def _first_look(handle: IO[bytes]) -> str:
    """What a file that is no zip archive seems to be, or "" if unknown."""
    size = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    head = handle.read(64)
    if size == 0:
        return "the file is empty"
    if head.startswith(b"PK"):
        return "the archive is cut short or damaged"
    looks = {
        b"\x80": "it is a raw pickle, which may hold code and is refused",
        b"\x89PNG": "it is a PNG picture",
        b"<": "it looks like HTML or XML",
        b"\x1f\x8b": "it is a gzip file",
        b"\x00" * 16: "it is full of zeros",
    }
    for start, look in looks.items():
        if head.startswith(start):
            return look
    if head[8:9] == b"{":
        return "it looks like a safetensors file"
    return "it is no zip archive"


def load_checkpoint(path: Path, *, training: bool = False) -> Checkpoint:
    """Read and verify a checkpoint; its tensors are on the CPU.

    Args:
        path: the .pth file.
        training: keep the training state (optimizer and stream).

    Raises:
        CheckpointError: damaged, unsafe, of a newer format, or not a checkpoint.
        ResourceError: it cannot be opened.
    """
    try:
        with open(path, "rb") as handle:
            fingerprint = _verify(handle, path)
            handle.seek(0)
            content = torch.load(handle, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CheckpointError("no such checkpoint file", str(path), "give a .pth file or a run folder") from error
    except OSError as error:
        raise ResourceError(f"cannot read: {error.strerror or error}", str(path), "check its permissions") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        refused = isinstance(error, pickle.UnpicklingError)
        what = "it holds more than tensors and plain data, and is refused" if refused else "its records cannot be read"
        raise _damaged(path, what) from error
    return _unpack(content, path, fingerprint, training)


def _unpack(content: Any, path: Path, fingerprint: str, training: bool) -> Checkpoint:
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise _damaged(path, "it lacks the format number")
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"the checkpoint has format {content['format']}, this txtgen reads up to {FORMAT}",
            str(path),
            "update txtgen",
        )
    weights = content.get("model")
    if not isinstance(weights, dict) or not isinstance(content.get("tokenizer"), dict):
        raise _damaged(path, "it lacks weights or tokenizer")
    for name, tensor in weights.items():
        _check_tensor(name, tensor, path)
    try:
        # JSON is how strict validation accepts a list for a tuple; everything else stays strict.
        config = TypeAdapter(CheckpointConfig).validate_json(json.dumps(content.get("config")))
    except (ValidationError, TypeError, ValueError) as error:
        raise _damaged(path, f"its config is not valid ({_short(error)})") from error
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
        raise _damaged(path, f"its model entry {name!r} is not a tensor")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise _damaged(path, f"tensor {name} of shape {tuple(tensor.shape)} is larger than its data")


def _unpack_tokenizer(packed: Any, path: Path) -> Tokenizer:
    try:
        return tokenizer_from_files(packed["kind"], packed["files"])
    except (KeyError, TypeError) as error:
        raise _damaged(path, "its tokenizer cannot be read") from error


def load_weights(model: Transformer, weights: dict[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Copy a state dict into a model, or let the model have its tensors; every name and shape must match.

    Raises:
        CheckpointError: the first differences in names or shapes, or a weight that is not finite.
    """
    own = model.state_dict()
    complaints = [f"missing {name}" for name in own if name not in weights]
    complaints += [f"unexpected {name}" for name in weights if name not in own]
    complaints += [
        f"{name} is {list(weights[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if complaints:
        shown = ", ".join(complaints[:5]) + (f" and {len(complaints) - 5} more" if len(complaints) > 5 else "")
        raise CheckpointError(f"the weights do not fit the model: {shown}", where, "use the config that made them")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"weight {name} is not finite", where, "use an earlier checkpoint")
    model.load_state_dict(weights, strict=True, assign=assign)


def load_model(path: Path, device: torch.device | None = None, dtype: torch.dtype | None = None) -> LoadedModel:
    """Build the model of a checkpoint in evaluation mode.

    Args:
        path: the .pth file.
        device: where to put it; None: the CPU.
        dtype: of its weights; None: as they were saved.

    Raises:
        CheckpointError: as for `load_checkpoint` and `load_weights`, or a tokenizer that does not fit.
    """
    return materialise(load_checkpoint(path), str(path), device, dtype)


def materialise(
    checkpoint: Checkpoint, where: str, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> LoadedModel:
    """The model that a checkpoint describes, in evaluation mode."""
    check_tokenizer(checkpoint, where)
    model = build_model(checkpoint.config.model, device="meta")
    load_weights(model, checkpoint.model, where, assign=True)
    model.to(device=device, dtype=dtype).eval()
    return LoadedModel(model, checkpoint.tokenizer, checkpoint.source_tokenizer, checkpoint.config)


def check_tokenizer(checkpoint: Checkpoint, where: str) -> None:
    """Refuse a tokenizer that has more tokens than the embedding has rows."""
    model = checkpoint.config.model
    rows = model.vocab_size or 0
    source_rows = getattr(model, "source_vocab_size", None) or rows
    for tokenizer, limit in ((checkpoint.tokenizer, rows), (checkpoint.source_tokenizer, source_rows)):
        if tokenizer is not None and len(tokenizer) > limit:
            raise CheckpointError(
                f"the tokenizer has {len(tokenizer)} tokens, the embedding {limit} rows",
                where,
                "it was put together from parts of two models; use the original",
            )
