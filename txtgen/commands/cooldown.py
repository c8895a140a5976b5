"""`txtgen cooldown`: finishes a run in the stable phase of its schedule, in a run of its own.

As long as the learning rate stays at its peak, nothing has been decided about the length of a run. From any checkpoint
of this phase a model can be finished by letting the rate fall, over as many steps as there is time for, while the run
itself may go on. Source: Hägele et al. 2024, arXiv 2405.18392.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from txtgen.checkpoint import load_checkpoint
from txtgen.commands import finetune, pretrain
from txtgen.commands.running.changes import compare, require_same_run
from txtgen.commands.running.resuming import config_of, horizon_of
from txtgen.commands.running.session import RunResult
from txtgen.commands.running.starting import Launch
from txtgen.config.commands import CooldownConfig
from txtgen.config.runs import PretrainConfig
from txtgen.config.train import UNLIMITED, ConstantSchedule, ScheduleConfig, TrainConfig, TrapezoidSchedule
from txtgen.errors import CheckpointError, ConfigError
from txtgen.train import Horizon, share_of_peak, warmup_steps


def run(config: CooldownConfig, settings: list[str]) -> RunResult:
    """Go on from a checkpoint in a new run whose learning rate falls to its end.

    Up to its last step it equals, bit for bit, a run that was meant to end there: a trapezoid whose cooldown begins
    after the checkpoint's step.

    Args:
        config: what to finish, and in how many steps or minutes.
        settings: --set options of keys that may change when a run goes on.

    Raises:
        CheckpointError: the checkpoint has no training state.
        ConfigError: its schedule has no stable phase, or is not in it.
        TxtgenError: whatever stops a run.
    """
    path = Path(config.checkpoint)
    path = path / "last.pth" if path.is_dir() else path
    checkpoint = load_checkpoint(path, training=True)
    if checkpoint.training is None:
        raise CheckpointError(
            "the checkpoint has no training state to go on from", str(path), "give last.pth or checkpoints/step-N.pth"
        )
    learner = config_of(checkpoint, settings)
    require_same_run(compare(checkpoint.config.run, learner), str(path), config.accept_changes)
    train, horizon = cooled(learner.train, checkpoint.training, config.steps, config.minutes, str(path))
    # A run of its own: its time begins now, and what was best in the other run is not in its folder.
    training = {**checkpoint.training, "horizon": horizon, "seconds": 0.0, "best": {}, "no_better": 0}
    updated = learner.model_copy(
        update={"train": train, "name": config.name, "runs_path": config.runs_path or learner.runs_path}
    )
    launch = Launch(
        stem=f"{checkpoint.lineage.get('run') or path.stem}-cooldown",
        overwrite=config.overwrite,
        accept_changes=config.accept_changes,
        origin=replace(checkpoint, training=training),
    )
    del checkpoint  # which would hold on to what the run takes over
    if isinstance(updated, PretrainConfig):
        return pretrain.run(updated, launch)
    return finetune.run(updated, launch)


def cooled(
    train: TrainConfig, training: dict[str, Any], steps: int | None, minutes: float | None, where: str
) -> tuple[TrainConfig, list[Any]]:
    """How to go on from a training state for so many steps or minutes, with a learning rate that falls all the while.

    Without either, half as many steps as are done. Returns the config, and the horizon to begin with as a training
    state has it.

    Raises:
        ConfigError: the schedule has no stable phase, or is not in it.
    """
    done: int = training["step"]
    before = horizon_of(training, train)
    _require_stable(train.schedule, done, before, where)
    final = train.schedule.final_ratio if isinstance(train.schedule, TrapezoidSchedule) else 0.0
    if minutes is None:
        steps = done // 2 or 1 if steps is None else steps
        total = most = done + steps
        warmup = warmup_steps(train.schedule, before.steps)
        schedule = TrapezoidSchedule(warmup_steps=warmup, cooldown_steps=steps, final_ratio=final)
        since = 0
    else:
        # As many steps as fit, first estimated and then measured; all of the schedule is still to come.
        total, most, since = done + max(1, round(60 * minutes * done / training["seconds"])), UNLIMITED, done
        schedule = TrapezoidSchedule(warmup_steps=0, cooldown_ratio=1.0, final_ratio=final)
    changed = {"steps": most, "minutes": minutes, "schedule": schedule, "patience": None}
    return train.model_copy(update=changed), [total, since, 0.0, most, minutes]


def _require_stable(schedule: ScheduleConfig, step: int, horizon: Horizon, where: str) -> None:
    """Raises ConfigError if the learning rate after this step is not at its peak for good."""
    if not isinstance(schedule, TrapezoidSchedule | ConstantSchedule):
        raise ConfigError(
            f"the learning rate of a {schedule.kind} schedule is never stable",
            where,
            "pretrain with schedule: {kind: trapezoid} or {kind: constant} to be able to finish at any time",
        )
    if step == 0 or share_of_peak(schedule, step, horizon) < 1.0:
        falling = "is falling already" if step > horizon.steps // 2 else "is still rising"
        raise ConfigError(
            f"at step {step} of {horizon.steps} the learning rate {falling}",
            where,
            "give a checkpoint between the warm-up and the cooldown, or resume the run itself",
        )
