"""Weights in the files of others: safetensors and what `torch.save` writes, whole or in shards."""

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from txtgen.archive import check_records
from txtgen.convert.fields import read_json
from txtgen.errors import CheckpointError, ResourceError, TxtgenError

NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What the weights in a folder are called, the better ones first."""

WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Where training scripts put the weights in a dict with other things."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What weights may be of: models compute in these."""


class Weights(Mapping[str, Tensor]):
    """The tensors of some files by name, read when they are asked for.

    Those of safetensors stay on the disk until they are used, and take no memory that the system could not have back.

    Args:
        place: what to call all of them in an error: their file, or the folder of several.
        files: which file holds which names.
        rename: from a name here to the name in the file.
    """

    def __init__(self, place: Path, files: Mapping[str, Path], rename: Mapping[str, str] | None = None) -> None:
        self.place = place
        self._files = dict(files)
        self._rename = rename or {name: name for name in files}
        self._open: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of this name.

        Raises:
            CheckpointError: its file is damaged, or the tensor is no plain dense one of finite numbers.
        """
        inner = self._rename[name]
        path = self._files[inner]
        try:
            source = self._source(path)
            tensor = source[inner] if isinstance(source, dict) else source.get_tensor(inner)
        except (SafetensorError, KeyError) as error:
            raise _damaged(path, f"it holds no readable tensor {inner}") from error
        return _checked(tensor, inner, path).detach()

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor; reads none."""
        return name in self._rename

    def __iter__(self) -> Iterator[str]:
        """All names."""
        return iter(self._rename)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._rename)

    def where(self, name: str) -> str:
        """The file that holds a tensor."""
        return str(self._files[self._rename[name]])

    def renamed(self, names: Mapping[str, str]) -> "Weights":
        """The same tensors under other names: from each new name to the one here."""
        return Weights(self.place, self._files, {new: self._rename[old] for new, old in names.items()})

    def _source(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = safe_open(path, "pt") if path.suffix == ".safetensors" else load_pickled(path)
        return self._open[path]


def _checked(tensor: Any, name: str, path: Path) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        raise _damaged(path, f"{name} is no dense tensor of floating-point numbers")
    if tensor.dtype not in DTYPES:
        known = ", ".join(_dtype_name(dtype) for dtype in DTYPES)
        raise CheckpointError(
            f"tensor {name} is of {_dtype_name(tensor.dtype)}, in which txtgen does not compute",
            str(path),
            f"use the weights in one of {known}",
        )
    if tensor.is_meta or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise _damaged(path, f"tensor {name} of shape {list(tensor.shape)} is larger than its data")
    if not all_finite(tensor):
        raise _damaged(path, f"tensor {name} holds values that are not finite")
    return tensor


def _dtype_name(dtype: torch.dtype) -> str:
    """As config.json calls it."""
    return str(dtype).removeprefix("torch.")


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither infinities nor NaN; found without a copy of it."""
    return not tensor.numel() or all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor.detach()))


def narrowed(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A finite tensor in a dtype.

    Raises:
        CheckpointError: its values are too large for that.
    """
    made = tensor.to(dtype)
    if made.dtype != tensor.dtype and not all_finite(made):
        raise CheckpointError(f"its values are too large for {_dtype_name(dtype)}", name, "choose another dtype")
    return made


def open_weights(folder: Path) -> Weights:
    """The weights of a Hugging Face folder.

    Raises:
        CheckpointError: there are none, or their files are damaged, incomplete or unsafe.
        ResourceError: they may not be read.
    """
    for name in NAMES:
        path = folder / name
        if path.is_file():
            return _open_shards(path) if name.endswith(".json") else open_file(path)
    raise CheckpointError("no weights in this folder", str(folder), f"it needs one of {', '.join(NAMES)}")


def open_file(path: Path) -> Weights:
    """The weights of one file.

    Raises:
        CheckpointError: it is damaged or unsafe.
        ResourceError: it may not be read.
    """
    return Weights(path, dict.fromkeys(_names_in(path), path))


def _open_shards(index: Path) -> Weights:
    """The weights of several files that an index lists."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(index, "it has no weight_map")
    files: dict[str, Path] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise _damaged(index, f"it puts {name} into {file!r}, which is no file of this folder")
        files[name] = index.parent / file
    for path in dict.fromkeys(files.values()):
        held = set(_names_in(path))
        missing = [name for name, file in files.items() if file == path and name not in held]
        if missing:
            raise _damaged(path, f"it lacks {missing[0]}, which {index.name} puts there")
    return Weights(index.parent, files)


def _names_in(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return [name for name, value in load_pickled(path).items() if isinstance(value, Tensor)]
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except SafetensorError as error:
        raise _damaged(path, f"it is cut short or no safetensors file ({error})") from error


def load_pickled(path: Path) -> dict[str, Any]:
    """The state dict in a file that `torch.save` wrote, by itself or within a dict of a training script.

    Raises:
        CheckpointError: it is damaged, or holds more than tensors and plain data.
        ResourceError: it may not be read.
    """
    try:
        content = _unpickled(path)
    except TxtgenError:
        raise
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnpicklingError as error:
        raise _damaged(path, "it holds more than tensors and plain data, or is damaged, and is refused") from error
    except Exception as error:
        # The readers of zip archives and pickles stumble over damage in every way that Python knows.
        raise _damaged(path, "its records cannot be read") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise _damaged(path, "it holds no weights by name")
    return {str(name): value for name, value in content.items()}


def _unpickled(path: Path) -> Any:
    """Whatever plain data `torch.save` wrote; a zip archive only once its checksums hold."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            check_records(archive, path.stat().st_size, path)
            broken = archive.testzip()
        if broken is not None:
            raise _damaged(path, f"its record {broken} has a wrong checksum")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # whatever it is, it is read or refused
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"not usable weights: {what}", str(path), "use an undamaged copy from a source you trust")


def _missing(path: Path) -> CheckpointError:
    return CheckpointError("there is no such file of weights", str(path), "give a complete Hugging Face folder")


def _unreadable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"cannot read: {error.strerror or error}", str(path), "check its permissions")
