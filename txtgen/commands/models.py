"""From what the user calls a model to a model: one function for every command."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import txtgen
from txtgen.checkpoint import FORMAT, Checkpoint, LoadedModel, load_checkpoint, materialise, save_checkpoint
from txtgen.commands.adapters import Named, with_adapters
from txtgen.commands.devices import inference_dtype, select_device
from txtgen.commands.finding import find_model
from txtgen.config.commands import GenerateConfig, GeneratingConfig, ModelUseConfig
from txtgen.config.ensemble import EQUAL_SHARES, Mixture
from txtgen.config.model import Compile, Native, Quantization
from txtgen.errors import CheckpointError
from txtgen.generator import Generator
from txtgen.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_hf_folder

if TYPE_CHECKING:
    from txtgen.lexicon import Shortlist

logger = logging.getLogger(__name__)


def resolve_model(model: str | Path | None, runs_path: str = "runs") -> Path:
    """The .pth file that is meant by a .pth file, a run folder, a Hugging Face folder, or None for the newest run.

    Of a run folder it is best.pth, or last.pth where no validation has chosen a best one. A Hugging Face folder is
    converted once, and the checkpoint kept in the user's cache for as long as the folder stays as it is.

    Raises:
        CheckpointError: there is none, or it is a Hugging Face folder that cannot be converted.
        ResourceError: the cache cannot be written.
    """
    path = _found(model, runs_path)
    return _converted(path) if path.is_dir() else path


def read_checkpoint(
    model: str | Path | None, runs_path: str = "runs", *, training: bool = False
) -> tuple[Path, Checkpoint]:
    """The checkpoint that is meant, and its .pth file, or the Hugging Face folder that it is made of, unconverted.

    Nothing is written. `training` keeps the training state.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ResourceError: it may not be read.
    """
    path = _found(model, runs_path)
    return path, _imported(path) if path.is_dir() else load_checkpoint(path, training=training)


def read_model(
    model: str | Path | None, runs_path: str = "runs", adapters: Sequence[str | Path] = ()
) -> tuple[Path, Checkpoint]:
    """The whole model that is meant, with adapters applied, and the .pth file or Hugging Face folder that was found.

    Raises:
        CheckpointError: there is none, it cannot be read, or an adapter is not of this model.
        ResourceError: it may not be read, or the cache not be written.
    """
    found = read_found(model, runs_path)
    return found[0], whole(found, adapters, runs_path)


def read_found(model: str | Path | None, runs_path: str = "runs") -> Named:
    """As `read_checkpoint`, but a Hugging Face folder is converted once, as by `resolve_model`."""
    path = _found(model, runs_path)
    return path, load_checkpoint(resolve_model(path))


def whole(found: Named, adapters: Sequence[str | Path] = (), runs_path: str = "runs") -> Checkpoint:
    """A model with adapters applied to it; what was found may be an adapter itself, whose base is the model then.

    Raises:
        CheckpointError: an adapter or a base cannot be read, or they do not belong together.
    """
    path, checkpoint = found
    given = [read_checkpoint(adapter, runs_path) for adapter in adapters]
    record = checkpoint.config.adapter
    if record is None:
        return with_adapters(found, given) if given else checkpoint
    base = Path(record.base_path)
    if not base.exists():
        raise CheckpointError(
            f"the base model of this adapter is not at {base} any more (weights {record.base_sha256[:16]})",
            str(path),
            "name the base as the model and this with --adapter, where there is no such option after merging the two: "
            "txtgen convert merge BASE --adapter ADAPTER --out MODEL.pth",
        )
    return with_adapters(read_found(base), [found, *given])


def _found(model: str | Path | None, runs_path: str) -> Path:
    """The .pth file or the Hugging Face folder that is meant."""
    path = find_model(model, runs_path)
    if model is not None and Path(model) not in (path, path.parent):  # killed before last.pth was made, or it was lost
        logger.warning("%s has no best.pth or last.pth; the newest checkpoint is %s", model, path)
    return path


def _imported(folder: Path) -> Checkpoint:
    """The checkpoint that a Hugging Face folder amounts to."""
    from txtgen.convert import import_folder  # which a .pth does without

    return import_folder(folder)


def _converted(folder: Path) -> Path:
    """The checkpoint made of a Hugging Face folder: of these very files, by this version of txtgen."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    files = sorted((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    state = sha256(repr((txtgen.__version__, FORMAT, facts)).encode()).hexdigest()[:16]
    path = Path(home) / "txtgen" / f"{place}-{state}.pth"
    if not path.is_file():
        logger.warning("converting %s once; the result is kept as %s", folder, path)
        save_checkpoint(path, _imported(folder))
        for old in path.parent.glob(f"{place}-*.pth"):
            if old != path:
                old.unlink(missing_ok=True)
    return path


def resolve_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that is meant by a .model file, a .pth file, a run folder or a Hugging Face folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(name)
    if path.suffix == ".model":
        return load_tokenizer(name)
    if (path / "config.json").is_file():
        return tokenizer_from_hf_folder(path).tokenizer
    return load_checkpoint(resolve_model(name), weights=False).tokenizer


def load(
    model: str | Path | None = None,
    *,
    runs_path: str = "runs",
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    independent: bool = False,
    quantize: Quantization | None = None,
    native: Native = "auto",
    compile: Compile = "auto",
    draft: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    ensemble: Sequence[str | Path] = (),
    mixture: Mixture = EQUAL_SHARES,
    shortlist: str | Path | None = None,
    remembers: bool = False,
) -> Generator:
    """Load a model for generation: a .pth file, a run folder, or the newest run; adapters of it become part of it.

    draft: a smaller model that guesses for it. ensemble: models that decide together with it, as `mixture` says.
    shortlist: a file of `txtgen shortlist`. compile: decoding steps by torch.compile, in place of machine code; "auto":
    on a GPU, for many prompts.

    Of a single prompt, a generator that remembers reads only what the one before and its result did not have.

    Raises:
        CheckpointError: there is none, it is damaged, or another model, an adapter or the short-list does not fit it.
        ConfigError: the device is not available.
        ResourceError: machine code is required, and there is none.
    """

    def read(name: str | Path | None, adapters: Sequence[str | Path] = ()) -> LoadedModel:
        path, checkpoint = read_model(name, runs_path, adapters)
        return materialise(checkpoint, str(path), select_device(device), inference_dtype(dtype), quantize)

    return Generator(
        read(model, adapters),
        batch_size=batch_size,
        independent=independent,
        native=native,
        compile=compile,
        draft=None if draft is None else read(draft),
        ensemble=[read(name) for name in ensemble],
        mixture=mixture,
        shortlist=read_shortlist(shortlist),
        remembers=remembers,
    )


def read_shortlist(path: str | Path | None) -> "Shortlist | None":
    """The vocabulary short-list in a file, if one is named.

    Raises:
        CheckpointError: there is none in it.
        ResourceError: it cannot be read.
    """
    if path is None:
        return None
    from txtgen.lexicon import Shortlist  # with safetensors, which few need

    return Shortlist.load(Path(path))


def load_for(config: ModelUseConfig, *, remembers: bool = False) -> Generator:
    """The generator that a command was told to use; `remembers` as in `Generator`; errors as for `load`."""
    return load(
        config.model,
        runs_path=config.runs_path,
        device=config.device,
        dtype=config.dtype,
        batch_size=config.batch_size,
        independent=config.independent,
        quantize=config.quantize,
        native=config.native,
        adapters=config.adapters,
        ensemble=config.ensemble,
        mixture=config.mixture,
        compile=config.compile if isinstance(config, GeneratingConfig) else False,
        draft=config.draft if isinstance(config, GeneratingConfig) else None,
        shortlist=config.shortlist if isinstance(config, GeneratingConfig) else None,
        remembers=remembers,
    )


@contextmanager
def shared_file(path: Path, fingerprint: str, config: ModelUseConfig) -> Iterator[tuple[Path, str]]:
    """The file of a whole model that several processes on this machine are to map, and its fingerprint: the file that
    is meant, or with adapters a temporary one of what they make together, which is gone afterwards.

    Raises:
        CheckpointError: the model is no longer the one with this fingerprint.
        ResourceError: there is no room for the temporary file.
    """
    checkpoint = load_checkpoint(path, mapped=True)
    if checkpoint.config.adapter is None and not config.adapters:
        yield path, fingerprint
        return
    merged = _unchanged(whole((path, checkpoint), config.adapters, config.runs_path), fingerprint, path)
    with TemporaryDirectory(prefix="txtgen-") as folder:
        file = Path(folder) / "merged.pth"
        fingerprint = save_checkpoint(file, merged)
        del checkpoint, merged  # their weights are in the file
        yield file, fingerprint


def load_shared(
    path: Path, fingerprint: str, config: GenerateConfig, shortlist: "Shortlist | None" = None
) -> Generator:
    """The generator of one of the processes that map a whole model. They hold its weights once between them, as far as
    these stay as they are in the file: another dtype, fewer bits and machine code are each process's own.

    Raises:
        CheckpointError: the file is no longer the one with this fingerprint.
    """
    checkpoint = _unchanged(load_checkpoint(path, mapped=True), fingerprint, path)
    loaded = materialise(checkpoint, str(path), None, inference_dtype(config.dtype), config.quantize)
    return Generator(
        loaded,
        batch_size=config.batch_size,
        independent=config.independent,
        native=config.native,
        compile=config.compile,
        shortlist=shortlist,
    )


def _unchanged(checkpoint: Checkpoint, fingerprint: str, path: Path) -> Checkpoint:
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError("the model has changed meanwhile", str(path), "give the same command again")
    return checkpoint
