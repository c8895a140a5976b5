"""How a run begins: which folder it gets, and what it goes on from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from txtgen.checkpoint import Checkpoint
from txtgen.commands.devices import select_device
from txtgen.commands.running.changes import require_same_run, told
from txtgen.commands.running.resuming import changes_since, differing, history, is_own
from txtgen.commands.running.run_folder import RunFolder, begun_by, existing_names, next_name
from txtgen.commands.running.run_record import command_of, read_object, require_run, resume_command
from txtgen.commands.running.signals import StopRequest, listen
from txtgen.commands.running.status import Status
from txtgen.commands.running.weights import read_once
from txtgen.config.loader import dump_config
from txtgen.config.runs import FinetuneConfig, RunConfig
from txtgen.config.train import TrainConfig
from txtgen.data import require_files
from txtgen.distributed import World, open_world
from txtgen.errors import BusyError, CheckpointError, DataError
from txtgen.model import Transformer
from txtgen.train import require_memory


@dataclass(frozen=True, slots=True)
class Launch:
    """What the user asked of this start. stem: names the run when the config does not. accept_changes: a resumed run
    may learn otherwise than it did. origin: a checkpoint of another run that this one begins with, training state
    included."""

    stem: str = "run"
    resume: bool = False
    overwrite: bool = False
    accept_changes: bool = False
    origin: Checkpoint | None = None


@dataclass(frozen=True)
class Start:
    """A run that may begin: its folder (locked), where it computes, and the checkpoint that it resumes, if any.

    parents: fingerprints of the checkpoints that a resumed run descends from, the nearest last. changes: those that the
    user accepted in this and earlier resumes, each with its step. stop: what signals asked for. status: where the run
    says what it does.
    """

    folder: RunFolder
    world: World
    device: torch.device
    resumed: Checkpoint | None
    warnings: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    changes: tuple[dict[str, Any], ...] = ()
    accept_changes: bool = False
    stop: StopRequest = field(default_factory=StopRequest)
    status: Status = field(default_factory=lambda: Status(None))

    def require_memory(self, model: Transformer, train: TrainConfig) -> None:
        """Refuse a model, which may be on the meta device, if there is no room here to train it.

        Raises:
            ResourceError: there is none.
        """
        parts = self.world.size if train.sharding == "shard" else 1
        require_memory(model, train.optimizer, self.device, parts)


@contextmanager
def start_run(config: RunConfig, launch: Launch) -> Iterator[Start]:
    """Choose and lock the run's folder, and read the checkpoint to resume.

    Raises:
        BusyError: the folder is in use, or holds a run and neither resume nor overwrite was asked for.
        CheckpointError: there is nothing to resume.
        ConfigError: a resumed run's config was changed, or a device is not available.
    """
    device = select_device(config.device)
    with listen() as stop, open_world(device, config.train.rank_timeout_seconds) as world:
        name, launch = world.from_main(lambda: _folder_name(config, launch, world))
        folder = RunFolder(Path(config.runs_path) / name)
        world.from_main(lambda: _require_files(config, folder))
        if not world.is_main:
            yield replace(_start(folder, world, device, config, launch), stop=stop)
            return
        stop.announces = True
        with folder.lock():
            _make_way(folder, launch)
            saved = folder.saved  # to be told on, whatever becomes of this start
            if world.launch is not None:
                folder.write_note(folder.launch, world.launch)
            start = _start(folder, world, device, config, launch)
            if launch.resume and start.resumed is not None and start.resumed.training is not None:
                step, train = start.resumed.training["step"], config.train
                folder.go_on_from(step, train.keep_last, train.keep_every)
            if start.resumed is None:  # else it waits until there is something to do: see `Session.settle_in`
                folder.write_text(folder.config, dump_config(config))
            status = Status(folder.status)
            with folder.logging(), status.failures():
                status.set("starting", **({"last_checkpoint": saved} if launch.resume and saved else {}))
                yield replace(start, stop=stop, status=status)


def _require_files(config: RunConfig, folder: RunFolder) -> None:
    """Refuse a corpus that is not there.

    Raises:
        DataError: naming the missing source, and where a run that is here already was begun if that is elsewhere.
    """
    try:
        require_files(config.data)
    except DataError as error:
        begun = read_object(folder.about, []).get("folder", os.getcwd())
        advice = "" if begun == os.getcwd() else f"; the run was begun in {begun}: start this command there"
        raise DataError(error.what, error.where, error.fix + advice) from error


def _make_way(folder: RunFolder, launch: Launch) -> None:
    """Move a run that is to be overwritten aside.

    Raises:
        BusyError: one is here, and nobody said what to do with it.
    """
    if launch.resume or not folder.occupied:
        return
    if not launch.overwrite:
        going_on = f"go on with it ({resume_command(command_of(folder.path) or 'pretrain', folder.path)}), "
        raise BusyError(
            "the run folder already holds a run",
            str(folder.path),
            f"{going_on if folder.has_state else ''}move it aside with --overwrite, or choose another --name",
        )
    folder.move_aside()


def _folder_name(config: RunConfig, launch: Launch, world: World) -> tuple[str, Launch]:
    """The name of the run's folder, and how to begin there: ranks that are started again go on with their run."""
    runs_path = Path(config.runs_path)
    if world.launch is not None and (before := begun_by(world.launch, runs_path)):
        return before.path.name, replace(launch, resume=before.occupied, overwrite=False)
    command = "finetune" if isinstance(config, FinetuneConfig) else "pretrain"
    if config.name is not None:
        if launch.resume:
            require_run(config.name, config.runs_path, command)
        return config.name, launch
    if launch.resume:
        named = existing_names(runs_path, launch.stem)
        latest = next((name for name in named if command_of(runs_path / name) in (None, command)), None)
        if latest is None:
            told = f"no {command} run named {launch.stem}-N to resume"
            raise CheckpointError(told, str(runs_path), "start without --resume")
        return latest, launch
    return next_name(runs_path, launch.stem), launch


def _start(folder: RunFolder, world: World, device: torch.device, config: RunConfig, launch: Launch) -> Start:
    if launch.resume and world.from_main(lambda: folder.must_begin_anew):
        return Start(folder, world, device, None, ("no checkpoint was saved yet: the run begins anew",))
    if launch.resume:
        path, checkpoint, warnings = read_once(folder.newest, world)
        parents, changes = history(checkpoint)
        found = changes_since(checkpoint, config, str(path))
        accepted = launch.accept_changes or world.from_main(lambda: is_own(found.risky, folder, config))
        require_same_run(found, "; ".join([str(path), *warnings]), accepted)
        if found.risky:
            step = checkpoint.lineage["step"]
            warnings.append(f"changed after step {step}: {told(found.risky)}")
            changes += ({"step": step, **{key: f"{old!r} -> {new!r}" for key, (old, new) in found.risky.items()}},)
    elif launch.origin is not None:
        checkpoint, warnings = launch.origin, []
        parents, changes = history(checkpoint)
        parents = (*parents, checkpoint.fingerprint)
    else:
        return Start(folder, world, device, None)
    other = differing(checkpoint, config.train, device, world)
    if other:
        warnings.append(
            f"not as the run was saved: {other}. Rounding will differ from the straight run, and what dropout draws may"
        )
    return Start(folder, world, device, checkpoint, tuple(warnings), parents, changes, launch.accept_changes)


Learner = TypeVar("Learner", bound=RunConfig)


def with_learning_rates(config: Learner, ratio: float = 1.0) -> Learner:
    """The config with its learning rates spelt out, so that the saved config hides no default: where the user says
    nothing, those of pretraining times `ratio`."""
    train = config.train.model_copy(update={"optimizer": config.train.optimizer.settled(ratio)})
    return config.model_copy(update={"train": train})
