"""A loss or gradient that is not finite never reaches the weights, on whichever step, whenever it becomes known."""

import copy
from dataclasses import replace
from itertools import count, repeat

import pytest
import torch

from txtgen.config.train import AdamWConfig, ConstantSchedule, MuonConfig, TrainConfig
from txtgen.data.types import Origin
from txtgen.errors import DivergedError
from txtgen.train import Figures, TrainState, build_optimizer, refuse_non_finite, train
from txtgen.train.loss import batch_loss

NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(params=[AdamWConfig(learning_rate=1e-2), MuonConfig(weight_decay=0.1)], ids=lambda c: c.kind)
def state(request, tiny_model) -> TrainState:
    return TrainState(tiny_model, build_optimizer(tiny_model, request.param))


@pytest.fixture
def poison(monkeypatch):
    """Makes loss or gradient of some steps not finite."""

    def inject(*steps: int, objective: float = 1.0, nll: float = 1.0) -> None:
        numbers = count(1)

        def poisoned(*arguments):
            sums = batch_loss(*arguments)
            if next(numbers) not in steps:
                return sums
            return replace(sums, objective=sums.objective * objective, nll=sums.nll * nll)

        monkeypatch.setattr("txtgen.train.loss.batch_loss", poisoned)

    return inject


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 6, "schedule": ConstantSchedule(), **changes})


def snapshot(state: TrainState) -> dict[str, torch.Tensor]:
    """Every number that a step may change."""
    tensors = {f"model.{name}": weight for name, weight in state.model.state_dict().items()}
    for part, optimizer in state.optimizer.parts.items():
        for number, kept in enumerate(optimizer.state.values()):
            tensors.update({f"{part}.{number}.{name}": value for name, value in kept.items()})
    return copy.deepcopy(tensors)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"objective": NAN}, "the gradient is not finite"),
        ({"objective": INFINITE}, "the gradient is not finite"),
        ({"nll": NAN}, "the loss is not finite"),
        ({"nll": INFINITE, "objective": INFINITE}, "the loss is not finite"),
    ],
)
def test_it_stops_the_run_with_the_weights_of_the_step_before(state, tiny_batch, poison, bad, what) -> None:
    poison(3, **bad)
    batch = replace(tiny_batch, origins=((Origin(0, "corpus.txt", 7),),) * 4)
    steps = train(state, repeat(batch), config())
    next(steps), next(steps)
    before = snapshot(state)
    with pytest.raises(DivergedError, match=rf"{what}; step 3, documents corpus\.txt at byte 7;"):
        next(steps)
    assert same(snapshot(state), before)


def test_a_first_step_that_is_not_finite_leaves_what_was_drawn(state, tiny_batch, poison) -> None:
    poison(1, objective=NAN)
    before = {name: weight.clone() for name, weight in state.model.state_dict().items()}
    with pytest.raises(DivergedError, match="step 1"):
        next(train(state, repeat(tiny_batch), config()))
    assert all(torch.equal(before[name], weight) for name, weight in state.model.state_dict().items())


def test_skipped_steps_change_nothing_but_the_count(state, tiny_batch, poison) -> None:
    poison(2, 3, 5, objective=NAN)
    seen, before = [], {}
    for report in train(state, repeat(tiny_batch), config(on_non_finite="skip", max_non_finite=2)):
        seen.append(report.non_finite)
        assert same(before, snapshot(state)) == bool(report.non_finite)
        before = snapshot(state)
    assert seen == [0, 1, 2, 0, 1, 0]
    assert (state.step, int(state.non_finite)) == (6, 0)
    assert all(tensor.isfinite().all() for tensor in before.values())


def test_too_many_in_a_row_stop_the_run_that_skips(state, tiny_batch, poison) -> None:
    poison(3, 4, 5, objective=NAN)
    with pytest.raises(DivergedError, match=r"3 steps in a row; step 5, "):
        list(train(state, repeat(tiny_batch), config(on_non_finite="skip", max_non_finite=2)))


def test_the_row_goes_on_after_a_resume(state, tiny_batch, poison) -> None:
    poison(1, objective=NAN)
    state.non_finite = 2
    with pytest.raises(DivergedError, match=r"3 steps in a row; step 1, "):
        list(train(state, repeat(tiny_batch), config(on_non_finite="skip", max_non_finite=2)))


def test_figures_that_come_late_stop_the_run_a_step_later_or_when_asked_for(
    state, tiny_batch, poison, monkeypatch
) -> None:
    """As on a GPU, where the loop does not wait for the device."""
    monkeypatch.setattr(Figures, "__init__", _late(Figures.__init__))
    poison(2, objective=NAN)
    steps = train(state, repeat(tiny_batch), config())
    next(steps)
    before = snapshot(state)
    report = next(steps)
    assert same(snapshot(state), before)
    with pytest.raises(DivergedError, match="step 2"):
        refuse_non_finite(report, config())  # whoever wants to save
    with pytest.raises(DivergedError, match="step 2"):
        next(steps)


def test_the_last_step_is_looked_at_however_late(state, tiny_batch, poison, monkeypatch) -> None:
    monkeypatch.setattr(Figures, "__init__", _late(Figures.__init__))
    poison(6, objective=NAN)
    steps = train(state, repeat(tiny_batch), config())
    for _ in range(6):
        next(steps)
    with pytest.raises(DivergedError, match="step 6"):
        next(steps)


def _late(original):
    def late(self, values) -> None:
        original(self, values)
        self.at_hand = False

    return late
