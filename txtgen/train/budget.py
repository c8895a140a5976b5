"""How many steps fit into a time: decided from the measured pace, again and again, closer and closer to the end."""

import math
import time
from collections.abc import Callable

from txtgen.train.schedule import Horizon


class TimeBudget:
    """The time of a run, and the horizon that ends its schedule just before the time is up.

    A horizon is decided after the second step (the first one is slower), again whenever the number of steps has
    doubled, and again when half of what was left is over, in steps or in time. So the error shrinks with what is left,
    a slower machine ends its schedule too, and between two decisions the learning rate depends on the step alone.

    Args:
        seconds: of the whole run, validation and saving included.
        most_steps: the run ends there even if there is time left.
        spent: seconds of earlier parts of the run.
        horizon: to begin with, if the run goes on from a checkpoint.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        seconds: float,
        most_steps: int,
        spent: float = 0.0,
        horizon: Horizon | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds, self.most_steps = seconds, most_steps
        self.horizon = horizon
        self._clock, self._began = clock, clock() - spent
        self._periodic: dict[str, tuple[float, int]] = {}
        self._step: int | None = None
        self._since, self._apart = 0.0, 0.0
        self._next_step, self._next_time = 0, -math.inf

    def elapsed(self) -> float:
        """Seconds of the run so far."""
        return self._clock() - self._began

    def note(self, name: str, seconds: float, every: int) -> None:
        """Take account of something that happens every so many steps (0: only at the end), and once more at the end."""
        self._periodic[name] = (seconds, every)
        self._apart += seconds

    def is_due(self, step: int) -> bool:
        """Whether the horizon is to be decided after this step; the first step is where measuring begins."""
        if self._step is None:
            self._begin(step)
            return False
        return step > self._step and (step >= self._next_step or self.elapsed() >= self._next_time)

    def decide(self, step: int) -> Horizon:
        """The horizon after this step."""
        assert self._step is not None
        now = self.elapsed()
        pace = max(1e-9, (now - self._since - self._apart) / (step - self._step))
        last = sum(seconds for seconds, _ in self._periodic.values())
        on_the_way = sum(seconds / every for seconds, every in self._periodic.values() if every)
        left = max(0.0, self.seconds - now - last)
        fitting = math.floor(left / (pace + on_the_way))
        steps = min(self.most_steps, step + fitting)
        if self.horizon is None:
            self.horizon = Horizon(steps)
        elif steps != self.horizon.steps:
            self.horizon = self.horizon.moved(step, steps)
        self._begin(step)
        more = steps - step
        self._next_step = min(2 * step, step + math.ceil(more / 2)) if more > 2 else steps
        self._next_time = now + left / 2
        return self.horizon

    def go_back(self, horizon: Horizon | None) -> None:
        """Measure anew, as from the first step on, in a run that is at an earlier step with this horizon."""
        self.horizon, self._step, self._apart = horizon, None, 0.0
        self._next_step, self._next_time = 0, -math.inf

    def _begin(self, step: int) -> None:
        self._step, self._since, self._apart = step, self.elapsed(), 0.0
