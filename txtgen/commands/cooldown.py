"""`txtgen cooldown`: finishes a run in the stable phase of its schedule, in a run of its own.

As long as the learning rate stays at its peak, nothing has been decided about the length of a run. From any checkpoint
of this phase a model can be finished by letting the rate fall, over as many steps as there is time for, while the run
itself may go on. Source: Hägele et al. 2024, arXiv 2405.18392.
"""

from pathlib import Path
from typing import Any

from txtgen.checkpoint import load_checkpoint
from txtgen.commands import finetune, pretrain
from txtgen.commands.changes import compare, require_same_run
from txtgen.commands.starting import Launch, config_of
from txtgen.commands.training import RunResult
from txtgen.config.commands import CooldownConfig, PretrainConfig
from txtgen.config.train import ConstantSchedule, ScheduleConfig, TrainConfig, TrapezoidSchedule
from txtgen.errors import CheckpointError, ConfigError
from txtgen.train import Horizon, learning_rate


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
    before = config_of(checkpoint, [])
    learner = config_of(checkpoint, settings)
    require_same_run(compare(checkpoint.config.run, learner), str(path), accept=False)
    train = cooled(before.train, checkpoint.training, config.steps, config.minutes, str(path))
    updated = learner.model_copy(
        update={"train": train, "name": config.name, "runs_path": config.runs_path or learner.runs_path}
    )
    launch = Launch(stem=f"{checkpoint.lineage.get('run') or path.stem}-cooldown", origin=checkpoint)
    if isinstance(updated, PretrainConfig):
        return pretrain.run(updated, launch)
    return finetune.run(updated, launch)


def cooled(
    train: TrainConfig, training: dict[str, Any], steps: int | None, minutes: float | None, where: str
) -> TrainConfig:
    """How to go on from a training state for so many steps or minutes, with a learning rate that falls all the while.

    Steps that are not given are those of the minutes, or else as many as half of what is done.

    Raises:
        ConfigError: the schedule has no stable phase, or is not in it.
    """
    done: int = training["step"]
    _require_stable(train.schedule, done, train.steps, where)
    if steps is None:
        pace = training["seconds"] / done
        steps = max(1, done // 2 if minutes is None else round(60 * minutes / pace))
    total = done + steps
    warmup = train.schedule.warmup_steps
    fall: dict[str, Any] = {"cooldown_steps": steps}
    if minutes is not None:
        fall = {"cooldown_ratio": steps / total}  # of a run whose length is fitted to the time on the way
        minutes += training["seconds"] / 60  # train.minutes are those of the whole run
    schedule = TrapezoidSchedule(
        warmup_steps=min(100, train.steps // 20) if warmup is None else warmup,
        final_ratio=train.schedule.final_ratio if isinstance(train.schedule, TrapezoidSchedule) else 0.0,
        **fall,
    )
    return train.model_copy(update={"steps": total, "minutes": minutes, "schedule": schedule, "patience": None})


def _require_stable(schedule: ScheduleConfig, step: int, steps: int, where: str) -> None:
    """Raises ConfigError if the learning rate after this step is not at its peak for good."""
    if not isinstance(schedule, TrapezoidSchedule | ConstantSchedule):
        raise ConfigError(
            f"the learning rate of a {schedule.kind} schedule is never stable",
            where,
            "pretrain with schedule: {kind: trapezoid} or {kind: constant} to be able to finish at any time",
        )
    if step == 0 or learning_rate(schedule, step, Horizon(steps), 1.0) < 1.0:
        falling = "is falling already" if step > steps // 2 else "is still rising"
        raise ConfigError(
            f"at step {step} of {steps} the learning rate {falling}",
            where,
            "give a checkpoint between the warm-up and the cooldown, or resume the run itself",
        )
