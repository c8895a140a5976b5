"""The learning rate as a pure function of the step."""

import math
from typing import assert_never

from txtgen.config.train import ConstantSchedule, CosineSchedule, InverseSqrtSchedule, ScheduleConfig, TrapezoidSchedule


def learning_rate(schedule: ScheduleConfig, step: int, steps: int, peak: float) -> float:
    """The learning rate of optimizer step `step`, counted from 1, in a run of `steps` steps with the given peak."""
    warmup = min(100, steps // 20) if schedule.warmup_steps is None else schedule.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    match schedule:
        case CosineSchedule(final_ratio=final):
            progress = min(1.0, (step - warmup) / max(1, steps - warmup))
            return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
        case TrapezoidSchedule(final_ratio=final):
            # The last step still moves: the end is where the step after it would be.
            left = max(0.0, steps + 1 - step) / (cooldown + 1) if (cooldown := schedule.cooldown(steps)) else 1.0
            return peak * (final + (1 - final) * min(1.0, left))
        case InverseSqrtSchedule():
            return peak * math.sqrt(warmup / step)
        case ConstantSchedule():
            return peak
        case _:
            assert_never(schedule)
