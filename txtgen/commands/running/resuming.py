"""What a run goes on from: how its config and machine differ from those of its checkpoint, and how far it is to go."""

import platform
from collections.abc import Collection
from typing import Any

import torch

import txtgen
from txtgen.checkpoint import Checkpoint
from txtgen.commands.devices import device_name, training_dtype
from txtgen.commands.running.changes import Changes, compare
from txtgen.commands.running.run_record import RunPaths
from txtgen.config.loader import config_from_tree
from txtgen.config.runs import FinetuneConfig, PretrainConfig, RunConfig
from txtgen.config.train import UNLIMITED, TrainConfig
from txtgen.config.yaml import read_yaml_file
from txtgen.distributed import World
from txtgen.errors import ConfigError, TxtgenError
from txtgen.train import Horizon, share_of_peak


def changes_since(checkpoint: Checkpoint, config: RunConfig, where: str) -> Changes:
    """What differs from the config that the run was saved with. Another length is risky where the learning rate of the
    next step is another because of it, and else harmless.

    Raises:
        ConfigError: the run is to have fewer steps than it has done.
    """
    found, training, train = compare(checkpoint.config.run, config), checkpoint.training, config.train
    lengths = [key for key in ("train.steps", "train.minutes") if key in found.harmless]
    if not lengths or training is None:
        return found
    done = training["step"]
    if "train.steps" in lengths and train.steps < done:
        raise ConfigError(
            f"train.steps: {_told(found.harmless['train.steps'][0])} -> {train.steps}, but {done} steps are done",
            where,
            "leave it as it was, or raise it; txtgen cooldown finishes a run from an earlier checkpoint",
        )
    steps_before = found.harmless.get("train.steps", (train.steps,))[0]
    before = horizon_of(training, train.model_copy(update={"steps": steps_before}))
    now = horizon_from(training, train)
    old, new = (share_of_peak(train.schedule, done + 1, horizon) for horizon in (before, now))
    if old != new:
        for key in lengths:
            was, is_now = found.harmless.pop(key)
            found.risky[key] = (_told(was), _told(is_now))
        peak = train.optimizer.learning_rate or 1.0
        found.risky[f"learning rate of step {done + 1}"] = (float(f"{peak * old:.3g}"), float(f"{peak * new:.3g}"))
    return found


def _told(steps: Any) -> Any:
    return None if steps == UNLIMITED else steps


def is_own(risky: Collection[str], paths: RunPaths, config: RunConfig) -> bool:
    """Whether a run's own config.yaml says the same under all these keys: then it was accepted when it was written
    there, by a start that ended before its first save, or before one that can still be read."""
    try:
        own = compare(read_yaml_file(paths.config).tree, config)
    except TxtgenError:
        return False
    return not {*own.harmless, *own.risky, *own.impossible}.intersection(risky)


def history(checkpoint: Checkpoint) -> tuple[tuple[str, ...], tuple[dict[str, Any], ...]]:
    """Fingerprints of what a checkpoint descends from, and the changes that users accepted on the way."""
    return tuple(checkpoint.lineage.get("ancestors", ())), tuple(checkpoint.lineage.get("changes", ()))


def differing(checkpoint: Checkpoint, train: TrainConfig, device: torch.device, world: World) -> str:
    """How what decides rounding and dropout differs from what a checkpoint's lineage says, as name old -> new."""
    lineage = checkpoint.lineage
    dtype = training_dtype(train.dtype, device, checkpoint.config.model, lineage)
    now = environment(train, device, dtype, world).items()
    return ", ".join(f"{key} {lineage[key]} -> {value}" for key, value in now if lineage.get(key, value) != value)


def row_length_so_far(training: dict[str, Any] | None, batch_tokens: int) -> int | None:
    """Positions of the packed rows that a run has read, by its place in the data; None: it has read none.

    They stay, whatever is usual by now where a config says nothing.
    """
    place = training["bookmark"] if training else {}
    rows = place.get("size") if place.get("kind") == "rows" else None
    return batch_tokens // rows if isinstance(rows, int) and rows > 0 else None


def horizon_of(training: dict[str, Any], train: TrainConfig) -> Horizon:
    """How long a run is to be by the training state of its checkpoint. train: its config."""
    return Horizon(*training["horizon"][:3]) if "horizon" in training else Horizon(train.steps)


def horizon_from(training: dict[str, Any], train: TrainConfig) -> Horizon:
    """How long a run is to be that goes on from the training state of a checkpoint with a config that may want more or
    less of it."""
    end, *_, steps, minutes = training.get("horizon", [0, None, None])
    fits = minutes is not None and end < min(steps, train.steps)  # then the time ends it, whatever the steps
    if minutes == train.minutes and (steps == train.steps or fits):
        return horizon_of(training, train)
    if train.minutes is None:
        return Horizon(train.steps)
    # At the pace so far, until it is measured anew.
    fitting = round(training["step"] * 60 * train.minutes / max(1e-9, training["seconds"]))
    return Horizon(min(train.steps, max(training["step"] + 1, fitting)))


def config_of(checkpoint: Checkpoint, settings: list[str]) -> PretrainConfig | FinetuneConfig:
    """The config of the run that made a checkpoint, after --set options."""
    tree = dict(checkpoint.config.run)
    source = "the config of the checkpoint's run"
    if tree.pop("command", "pretrain") == "finetune":
        return config_from_tree(FinetuneConfig, tree, settings, source=source)
    return config_from_tree(PretrainConfig, tree, settings, source=source)


def environment(train: TrainConfig, device: torch.device, dtype: torch.dtype, world: World) -> dict[str, Any]:
    """What may change on resume and yet decides rounding and dropout: only where all of it is the same does a resumed
    run equal the straight one bit for bit."""
    return {
        "micro_batch_tokens": train.micro_batch_tokens,
        "compile": train.compile,
        "txtgen": txtgen.__version__,
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "world_size": world.size,
    }
