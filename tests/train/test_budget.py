"""A run that is fitted into a time ends in it, at the end of its schedule."""

from itertools import pairwise

import pytest

from txtgen.config.train import (
    UNLIMITED,
    ConstantSchedule,
    CosineSchedule,
    InverseSqrtSchedule,
    TrainConfig,
    TrapezoidSchedule,
)
from txtgen.train import Horizon, TimeBudget, share_of_peak

SCHEDULES = [
    CosineSchedule(final_ratio=0.0),
    TrapezoidSchedule(),
    InverseSqrtSchedule(warmup_steps=10),
    ConstantSchedule(warmup_steps=5),
]


class Run:
    """The clock of a run whose steps, validations and saves take as long as they are told to."""

    def __init__(self, schedule, pace, seconds: float, most_steps: int = UNLIMITED, every: int = 50) -> None:
        self.now, self.rates = 1000.0, []
        self.horizon, step = Horizon(most_steps), 0
        budget = TimeBudget(seconds, most_steps, clock=lambda: self.now)
        self.now += 2.0  # before the first step
        while step < self.horizon.steps:
            step += 1
            self.rates.append(share_of_peak(schedule, step, self.horizon))
            self.now += pace(step)
            if step % every == 0:
                self.act(budget, every)
            if budget.is_due(step):
                self.horizon = budget.decide(step)
        self.act(budget, every)
        self.step, self.spent = step, budget.elapsed()

    def act(self, budget: TimeBudget, every: int) -> None:
        for name, seconds in (("validation", 3.0), ("saving", 1.0)):
            self.now += seconds
            budget.note(name, seconds, every)


PACES = {
    "even": lambda step: 0.5,
    "slow first step": lambda step: 40.0 if step == 1 else 0.5,
    "slower later": lambda step: 0.4 if step < 300 else 0.8,
    "faster later": lambda step: 0.8 if step < 300 else 0.4,
    "now and then very slow": lambda step: 10.0 if step % 97 == 0 else 0.4,
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
def test_it_ends_within_five_percent_of_the_time_at_the_end_of_its_schedule(schedule, pace) -> None:
    run = Run(schedule, pace, seconds=600.0)
    assert 0.95 * 600 <= run.spent <= 1.05 * 600
    assert run.step == run.horizon.steps
    if schedule.kind in ("cosine", "trapezoid"):
        assert run.rates[-1] < 0.02
        after = run.rates[max(100, run.step // 20) :]
        assert max(b - a for a, b in pairwise(after)) < 0.05  # no jump where it was decided anew
        assert max(a - b for a, b in pairwise(after)) < 0.05


def test_where_steps_are_given_too_whichever_comes_first_ends_the_run() -> None:
    schedule = CosineSchedule(final_ratio=0.0)
    run = Run(schedule, PACES["even"], seconds=600.0, most_steps=200)
    assert run.step == 200
    assert run.rates == [share_of_peak(schedule, step, Horizon(200)) for step in range(1, 201)]


def test_a_machine_that_stood_still_for_too_long_ends_the_run_at_once() -> None:
    run = Run(CosineSchedule(), lambda step: 5000.0 if step == 100 else 0.5, seconds=600.0)
    assert run.step == 100


def test_a_resumed_run_has_what_is_left_of_the_time_and_goes_on_without_a_jump() -> None:
    now = [0.0]
    before = Horizon(1000, 400, 0.45)
    budget = TimeBudget(600.0, UNLIMITED, spent=300.0, horizon=before, clock=lambda: now[0])
    assert not budget.is_due(501)
    now[0] = 1.0
    assert budget.is_due(502)
    found = budget.decide(502)
    assert found.steps == 502 + 299
    assert found.position(502) / found.steps == pytest.approx(before.position(502) / before.steps)
    assert found.position(found.steps) == found.steps


def test_a_run_that_went_back_measures_its_pace_anew() -> None:
    now = [0.0]
    budget = TimeBudget(3600.0, UNLIMITED, clock=lambda: now[0])
    for step in range(1, 2491):
        now[0] += 1.0
        if budget.is_due(step):
            horizon = budget.decide(step)
    assert horizon.steps == pytest.approx(3600, abs=2)
    budget.go_back(horizon)  # to step 2000
    decided = []
    for step in range(2001, 3200):
        now[0] += 1.0
        if step > horizon.steps:
            break
        if budget.is_due(step):
            horizon = budget.decide(step)
            decided.append((step, horizon.steps))
    assert decided[0] == (2002, pytest.approx(3110, abs=2))
    assert all(steps == pytest.approx(3110, abs=2) for _, steps in decided)


def test_steps_that_are_not_given_are_as_many_as_fit() -> None:
    assert TrainConfig(minutes=3.0).steps == UNLIMITED
    assert TrainConfig(minutes=3.0, steps=7).steps == 7
    assert TrainConfig().steps == 1000
