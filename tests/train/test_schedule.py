import math

import pytest

from txtgen.config.train import ConstantSchedule, CosineSchedule, InverseSqrtSchedule, TrapezoidSchedule
from txtgen.train import Horizon, learning_rate


@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(warmup_steps=10),
        InverseSqrtSchedule(warmup_steps=10),
        ConstantSchedule(warmup_steps=10),
        TrapezoidSchedule(warmup_steps=10),
    ],
    ids=lambda schedule: schedule.kind,
)
def test_warm_up_is_linear_and_ends_at_the_peak(schedule) -> None:
    rates = [learning_rate(schedule, step, Horizon(100), 2.0) for step in range(1, 11)]
    assert rates == pytest.approx([0.2 * step for step in range(1, 11)])


def test_cosine_passes_the_middle_and_ends_at_its_final_ratio() -> None:
    schedule = CosineSchedule(warmup_steps=0, final_ratio=0.2)
    assert learning_rate(schedule, 50, Horizon(100), 1.0) == pytest.approx(0.6)
    assert learning_rate(schedule, 100, Horizon(100), 1.0) == pytest.approx(0.2)
    assert learning_rate(schedule, 1000, Horizon(100), 1.0) == pytest.approx(0.2)


def test_inverse_square_root_is_that_of_vaswani() -> None:
    schedule = InverseSqrtSchedule(warmup_steps=4000)
    peak = 512**-0.5 * 4000**-0.5
    for step in (1, 100, 4000, 4001, 100_000):
        published = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert math.isclose(learning_rate(schedule, step, Horizon(200_000), peak), published)


def test_a_warm_up_that_is_not_given_fits_the_run() -> None:
    assert learning_rate(CosineSchedule(), 1, Horizon(10), 1.0) == pytest.approx(1.0, abs=0.05)
    assert learning_rate(CosineSchedule(), 20, Horizon(1000), 1.0) == pytest.approx(20 / 50)
    assert learning_rate(CosineSchedule(), 50, Horizon(100_000), 1.0) == pytest.approx(0.5)


def test_a_trapezoid_rises_stays_and_falls_to_its_end() -> None:
    schedule = TrapezoidSchedule(warmup_steps=10, cooldown_ratio=0.4, final_ratio=0.1)
    rates = [learning_rate(schedule, step, Horizon(100), 2.0) for step in (5, 10, 60, 80, 101, 120)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 0.2 + 1.8 * 21 / 41, 0.2, 0.2])
    assert learning_rate(TrapezoidSchedule(cooldown_ratio=0.0), 100, Horizon(100), 2.0) == 2.0
    assert learning_rate(TrapezoidSchedule(cooldown_ratio=1.0), 1, Horizon(1), 2.0) > 0


def test_a_cooldown_of_so_many_steps_is_the_same_in_every_longer_run() -> None:
    one = [learning_rate(TrapezoidSchedule(cooldown_ratio=0.4), step, Horizon(100), 2.0) for step in range(50, 101)]
    schedule = TrapezoidSchedule(warmup_steps=5, cooldown_steps=40)
    assert [learning_rate(schedule, step, Horizon(100), 2.0) for step in range(50, 101)] == one
    assert [learning_rate(schedule, step + 700, Horizon(800), 2.0) for step in range(50, 101)] == one
    assert learning_rate(TrapezoidSchedule(cooldown_steps=0), 100, Horizon(100), 2.0) == 2.0
