import math
import random

from txtgen.train import SpikeWatch


def losses(count: int) -> list[float]:
    draws = random.Random(3)
    return [2.0 + 4.0 * math.exp(-step / 50) + draws.gauss(0, 0.05) for step in range(count)]


def test_a_run_that_learns_has_no_spike() -> None:
    watch = SpikeWatch()
    assert [watch.add(step, loss) for step, loss in enumerate(losses(1000), 1)] == [None] * 1000


def test_each_spike_is_told_once_when_it_begins() -> None:
    watch, found = SpikeWatch(), {}
    values = losses(1000)
    values[400:403] = [8.0, 9.0, 7.0]
    values[700] = 4.0
    for step, loss in enumerate(values, 1):
        usual = watch.add(step, loss)
        if usual is not None:
            found[step] = usual
    assert list(found) == watch.steps == [401, 701]
    assert abs(found[401] - 2.0) < 0.1


def test_a_loss_that_stays_high_becomes_the_usual_one() -> None:
    watch = SpikeWatch()
    for step, loss in enumerate([*losses(300), *([9.0] * 300)], 1):
        watch.add(step, loss)
    assert watch.steps == [301]
