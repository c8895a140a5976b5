"""The learning rate as a pure function of the step and of how long the run is to be."""

import math
from dataclasses import dataclass
from typing import assert_never

from txtgen.config.train import ConstantSchedule, CosineSchedule, InverseSqrtSchedule, ScheduleConfig, TrapezoidSchedule


@dataclass(frozen=True, slots=True)
class Horizon:
    """How long a run is to be, as decided after step `since`, when this share of its schedule was behind it.

    A run whose steps are known from the start has one horizon. One that is to fit into a time gets a new one whenever
    its pace is measured: what is left of the schedule is stretched over what is left of the steps, without a jump.
    """

    steps: int
    since: int = 0
    share: float = 0.0

    def position(self, step: int) -> float:
        """Where in a schedule of `steps` steps this step is."""
        if not self.since:
            return float(step)
        done = (step - self.since) / max(1, self.steps - self.since)
        return self.steps * (self.share + (1 - self.share) * min(1.0, done))

    def moved(self, step: int, steps: int) -> "Horizon":
        """The horizon after this step of a run that is now to have so many."""
        return Horizon(steps, step, min(1.0, self.position(step) / max(1, self.steps)))


def warmup_steps(schedule: ScheduleConfig, steps: int) -> int:
    """How long the learning rate rises at the beginning of a run of so many steps."""
    return min(100, steps // 20) if schedule.warmup_steps is None else schedule.warmup_steps


def share_of_peak(schedule: ScheduleConfig, step: int, horizon: Horizon) -> float:
    """The learning rate of optimizer step `step`, counted from 1, in a run with this horizon; its peak is 1."""
    steps, position = horizon.steps, horizon.position(step)
    warmup = warmup_steps(schedule, steps)
    if step <= warmup:
        return step / warmup
    match schedule:
        case CosineSchedule(final_ratio=final):
            progress = min(1.0, max(0.0, position - warmup) / max(1, steps - warmup))
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        case TrapezoidSchedule(final_ratio=final):
            # The last step still moves: the end is where the step after it would be.
            left = max(0.0, steps + 1 - position) / (cooldown + 1) if (cooldown := schedule.cooldown(steps)) else 1.0
            return final + (1 - final) * min(1.0, left)
        case InverseSqrtSchedule():
            return math.sqrt(warmup / step)
        case ConstantSchedule():
            return 1.0
        case _:
            assert_never(schedule)
