import math

import pytest

from txtgen.config.train import ConstantSchedule, CosineSchedule, InverseSqrtSchedule, TrapezoidSchedule
from txtgen.train import Horizon, share_of_peak


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
    rates = [share_of_peak(schedule, step, Horizon(100)) for step in range(1, 11)]
    assert rates == pytest.approx([0.1 * step for step in range(1, 11)])


def test_cosine_passes_the_middle_and_ends_at_its_final_ratio() -> None:
    schedule = CosineSchedule(warmup_steps=0, final_ratio=0.2)
    assert share_of_peak(schedule, 50, Horizon(100)) == pytest.approx(0.6)
    assert share_of_peak(schedule, 100, Horizon(100)) == pytest.approx(0.2)
    assert share_of_peak(schedule, 1000, Horizon(100)) == pytest.approx(0.2)


def test_inverse_square_root_is_that_of_vaswani() -> None:
    schedule = InverseSqrtSchedule(warmup_steps=4000)
    peak = 512**-0.5 * 4000**-0.5
    for step in (1, 100, 4000, 4001, 100_000):
        published = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert math.isclose(peak * share_of_peak(schedule, step, Horizon(200_000)), published)


def test_a_warm_up_that_is_not_given_fits_the_run() -> None:
    assert share_of_peak(CosineSchedule(), 1, Horizon(10)) == pytest.approx(1.0, abs=0.05)
    assert share_of_peak(CosineSchedule(), 20, Horizon(1000)) == pytest.approx(20 / 50)
    assert share_of_peak(CosineSchedule(), 50, Horizon(100_000)) == pytest.approx(0.5)


def test_a_trapezoid_rises_stays_and_falls_to_its_end() -> None:
    schedule = TrapezoidSchedule(warmup_steps=10, cooldown_ratio=0.4, final_ratio=0.1)
    rates = [share_of_peak(schedule, step, Horizon(100)) for step in (5, 10, 60, 80, 101, 120)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.1 + 0.9 * 21 / 41, 0.1, 0.1])
    assert share_of_peak(TrapezoidSchedule(cooldown_ratio=0.0), 100, Horizon(100)) == 1.0
    assert share_of_peak(TrapezoidSchedule(cooldown_ratio=1.0), 1, Horizon(1)) > 0


def test_a_cooldown_of_so_many_steps_is_the_same_in_every_longer_run() -> None:
    one = [share_of_peak(TrapezoidSchedule(cooldown_ratio=0.4), step, Horizon(100)) for step in range(50, 101)]
    schedule = TrapezoidSchedule(warmup_steps=5, cooldown_steps=40)
    assert [share_of_peak(schedule, step, Horizon(100)) for step in range(50, 101)] == one
    assert [share_of_peak(schedule, step + 700, Horizon(800)) for step in range(50, 101)] == one
    assert share_of_peak(TrapezoidSchedule(cooldown_steps=0), 100, Horizon(100)) == 1.0
