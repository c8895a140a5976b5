"""One .pth file that answers every question about a model: weights, config, tokenizer, lineage, training state.

Reading trusts nothing: sizes and hashes are checked before anything is unpickled (archive.py), and unpickling is
restricted to tensors and plain data (`weights_only=True`).
"""

import errno
import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

import txtgen
from txtgen.archive import damaged, seal, verify
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.model import Quantization
from txtgen.errors import CheckpointError, ResourceError
from txtgen.files import os_error, replace_file, retried, write_error
from txtgen.memory import forget_mapped, is_out_of_memory
from txtgen.model import Transformer, build_model
from txtgen.model.quantize import portable, quantize_model
from txtgen.tokenizer import Tokenizer, tokenizer_from_files

FORMAT = 1
READING_FAILS = (
    pickle.UnpicklingError, RuntimeError, MemoryError, EOFError, KeyError, ValueError, TypeError, AttributeError,
)  # fmt: skip
"""What `torch.load` raises where it cannot read."""
FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
"""Weights in one of these can be computed with in another one."""
RECORD_BYTES = 512
"""What a tensor takes in the file beside its data, at most: headers, alignment, its hash."""
ENVELOPE_BYTES = 1 << 20
"""What else is in the file, about: configs, bookmark, tokenizer."""


class NewerFormatError(CheckpointError):
    """A checkpoint, whole and good, of a later version of txtgen."""


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

    def require_unquantized(self, purpose: str, where: str) -> None:
        """Refuse weights in few bits for what needs them as they were trained.

        Raises:
            CheckpointError: they are in few bits.
        """
        kind = self.config.quantization
        if kind is not None:
            what = f"its weights are quantised to {kind}, and {purpose} needs them as they were trained"
            raise CheckpointError(what, where, "use the checkpoint that it was made from (inspect shows its sha256)")

    def require_whole(self, where: str) -> None:
        """Refuse an adapter, which is no model by itself.

        Raises:
            CheckpointError: it is one.
        """
        record = self.config.adapter
        if record is not None:
            raise CheckpointError(
                f"this is an adapter of {record.base_path}", where, "merge them first: txtgen convert merge"
            )


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, with what turns text into its tokens."""

    model: Transformer
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer | None
    config: CheckpointConfig
    fingerprint: str = ""
    """Of the checkpoint's file; "": it is of none."""


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


def load_weights(model: Transformer, weights: dict[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Copy a state dict into a model, or let the model have its tensors; every name and shape must match.

    Raises:
        CheckpointError: as for `check_weights`.
    """
    check_weights(model.state_dict(), weights, where)
    model.load_state_dict(weights, strict=True, assign=assign)


def check_weights(own: Mapping[str, Tensor], weights: dict[str, Tensor], where: str) -> None:
    """Refuse weights whose names and shapes are not those of a model's own.

    Raises:
        CheckpointError: the first differences in names or shapes, or a weight that is not finite.
    """
    complaints = [f"missing {name}" for name in own if name not in weights]
    complaints += [f"unexpected {name}" for name in weights if name not in own]
    complaints += [
        f"{name} is {list(weights[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    complaints += [
        f"{name} is {weights[name].dtype}, expected {own[name].dtype}"
        for name in own
        if name in weights and weights[name].dtype != own[name].dtype
        if not {weights[name].dtype, own[name].dtype} <= FLOATS
    ]
    if complaints:
        shown = ", ".join(complaints[:5]) + (f" and {len(complaints) - 5} more" if len(complaints) > 5 else "")
        raise CheckpointError(f"the weights do not fit the model: {shown}", where, "use the config that made them")
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise CheckpointError(f"weight {name} is not finite", where, "use an earlier checkpoint")


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are. Read once, and nothing is written: both ends are NaN where any number is."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in torch.aminmax(tensor))


def load_model(
    path: Path,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
    mapped: bool = False,
) -> LoadedModel:
    """Build the model of a checkpoint in evaluation mode.

    Args:
        path: the .pth file.
        device: where to put it; None: the CPU.
        dtype: of its weights, or of what quantised ones become when they are used; None: as they were saved.
        quantization: of its weights; None: as they were saved.
        mapped: as for `load_checkpoint`.

    Raises:
        CheckpointError: as for `load_checkpoint` and `load_weights`, a tokenizer that does not fit, or weights that
            are quantised otherwise already.
    """
    return materialise(load_checkpoint(path, mapped=mapped), str(path), device, dtype, quantization)


def materialise(
    checkpoint: Checkpoint,
    where: str,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
) -> LoadedModel:
    """The model that a checkpoint describes, in evaluation mode."""
    checkpoint.require_whole(where)
    check_tokenizer(checkpoint, where)
    config = checkpoint.config
    model = build_model(config.model, device="meta")
    if config.quantization is not None:
        quantize_model(model, config.quantization)
    load_weights(model, checkpoint.model, where, assign=True)
    if quantization not in (None, config.quantization):
        checkpoint.require_unquantized(f"quantising to {quantization}", where)
        quantize_model(model, quantization)
        config = config.model_copy(update={"quantization": quantization})
    # Scales are saved in fewer bits than the weights around them.
    model.to(device=device, dtype=dtype or model.compute_dtype if config.quantization else dtype).eval()
    return LoadedModel(model, checkpoint.tokenizer, checkpoint.source_tokenizer, config, checkpoint.fingerprint)


def quantized(checkpoint: Checkpoint, kind: Quantization, where: str) -> Checkpoint:
    """The same checkpoint with its weights in few bits, and no training state.

    Raises:
        CheckpointError: its weights do not fit its model, or are quantised already.
    """
    checkpoint.require_unquantized(f"quantising to {kind}", where)
    loaded = materialise(checkpoint, where, quantization=kind)
    return replace(checkpoint, config=loaded.config, model=portable(loaded.model.state_dict()), training=None)


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
