"""How far a run goes and how long it has taken, and what is due after which step."""

import logging
import time
from dataclasses import astuple

from txtgen.commands.running.job import Job
from txtgen.train import Horizon, TimeBudget, TrainState

logger = logging.getLogger(__name__)


class Pace:
    """The clock of a run and its calendar.

    Args:
        job: what was planned.
        state: how far the run is; its horizon is moved here.
        began: when by `time.monotonic` the run began, or would have without interruption.
    """

    def __init__(self, job: Job, state: TrainState, began: float) -> None:
        self.job, self.state, self.train = job, state, job.config.train
        self._began = began
        self.budget: TimeBudget | None = None
        """What the run's minutes are fitted by, if it has any."""
        if self.train.minutes is not None:
            self.budget = TimeBudget(60 * self.train.minutes, self.train.steps, self.elapsed(), state.horizon)

    def elapsed(self) -> float:
        """Seconds of the run so far, earlier parts included."""
        return time.monotonic() - self._began

    @property
    def end(self) -> int:
        """The last step, as far as it is decided."""
        return self.state.horizon.steps if self.state.horizon else self.train.steps

    @property
    def is_over(self) -> bool:
        """Whether all steps are done."""
        return self.state.step >= self.end

    def time_is_up(self) -> bool:
        """Whether the minutes of the run are spent, by the clock of rank 0; every rank must ask."""
        budget = self.budget
        return budget is not None and self.job.world.from_main(lambda: budget.elapsed() >= budget.seconds)

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps (0: never) happens after this one."""
        return every > 0 and self.state.step % every == 0

    def acts(self) -> bool:
        """Whether something is to be done with the weights as they are after this step."""
        periods = (self.train.save_every, self.train.validate_every, self.job.config.samples.every)
        return self.is_over or any(map(self.is_due, periods))

    def validates(self) -> bool:
        """Whether validation is due after this step."""
        return self.is_over or self.is_due(self.train.validate_every)

    def note(self, what: str, seconds: float, every: int) -> None:
        """Take account of what happens every so many steps (0: only at the end) and takes so long."""
        if self.budget is not None:
            self.budget.note(what, seconds, every)

    def must_be_fitted(self) -> bool:
        """Whether the number of steps is to be decided anew, by the clock of rank 0."""
        budget, world = self.budget, self.job.world
        return budget is not None and world.any(budget.is_due(self.state.step) and world.is_main)

    def fit_into_time(self) -> None:
        """Decide anew how many steps the run is to have."""
        budget, step = self.budget, self.state.step
        assert budget is not None
        self.state.horizon = Horizon(*self.job.world.from_main(lambda: astuple(budget.decide(step))))
        logger.info("after step %d: %d steps fit into the time", step, self.end)

    def go_back(self) -> None:
        """Take account of the run's having gone back to an earlier step."""
        if self.budget is not None:
            self.budget.go_back(self.state.horizon)
