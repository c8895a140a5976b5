import copy
from itertools import repeat

import pytest
import torch

from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
from txtgen.data.types import IGNORE
from txtgen.train import TrainState, build_optimizer, train


def new_state(model) -> TrainState:
    return TrainState(model, build_optimizer(model, AdamWConfig(learning_rate=1e-2)))


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 3, "schedule": ConstantSchedule(), **changes})


def run(model, batch, seed=0, **changes):
    state = new_state(model)
    return state, list(train(state, repeat(batch), config(**changes), seed=seed))


def test_learns_and_reports(tiny_model, tiny_batch) -> None:
    state, reports = run(tiny_model, tiny_batch, steps=30)
    assert [report.step for report in reports] == list(range(1, 31))
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert reports[0].tokens == tiny_batch.num_scored == 4 * 7 - 3
    assert state.step == 30
    assert state.tokens == 30 * tiny_batch.num_scored
    assert state.bookmark == {"at": 1}


def test_micro_batches_equal_one_batch(tiny_model, tiny_batch) -> None:
    twin = copy.deepcopy(tiny_model)
    _, whole = run(tiny_model, tiny_batch)
    _, parts = run(twin, tiny_batch, micro_batch_tokens=12)
    assert [r.loss for r in parts] == pytest.approx([r.loss for r in whole], rel=1e-5)
    assert [r.grad_norm for r in parts] == pytest.approx([r.grad_norm for r in whole], rel=1e-4)
    for ours, theirs in zip(tiny_model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_loss_is_per_scored_token_whatever_the_padding(tiny_model, tiny_batch) -> None:
    """Rows of nothing but padding change neither loss nor gradient."""
    twin = copy.deepcopy(tiny_model)
    _, plain = run(tiny_model, tiny_batch, steps=1)
    padded = copy.copy(tiny_batch)
    extra = {"labels": IGNORE, "segment_ids": 0, "input_ids": 0, "positions": 0, "source_ids": 0, "source_mask": True}
    for name, value in extra.items():
        tensor = getattr(tiny_batch, name)
        if tensor is not None:
            object.__setattr__(padded, name, torch.cat([tensor, torch.full_like(tensor[:2], value)]))
    _, more = run(twin, padded, steps=1)
    assert more[0].loss == pytest.approx(plain[0].loss, rel=1e-5)
    assert more[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=1e-4)


def test_dropout_depends_on_seed_and_step_alone(tiny_model, tiny_batch) -> None:
    """A run cut after each step and continued with a fresh generator draws the same masks."""
    tiny_model.config = tiny_model.config.model_copy(update={"dropout": 0.5})
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    twin = copy.deepcopy(tiny_model)
    _, straight = run(tiny_model, tiny_batch, seed=3)
    state, losses = new_state(twin), []
    for _ in range(3):
        torch.manual_seed(torch.seed() % 1000)  # whatever happened in between must not matter
        steps = train(state, repeat(tiny_batch), config(), seed=3)
        losses.append(next(steps).loss)
    assert losses == [report.loss for report in straight]
    other = run(copy.deepcopy(twin), tiny_batch, seed=4)[1]
    assert [r.loss for r in other] != losses


def test_weight_decay_is_for_linear_matrices_alone(tiny_model) -> None:
    optimizer = build_optimizer(tiny_model, AdamWConfig(weight_decay=0.3))
    decayed = {id(p) for group in optimizer.groups() if group["weight_decay"] for p in group["params"]}
    for name, parameter in tiny_model.named_parameters():
        assert (id(parameter) in decayed) == name.endswith("_proj.weight"), name


def test_frozen_parameters_stay(tiny_model, tiny_batch) -> None:
    tiny_model.token_embedding.weight.requires_grad_(False)
    before = tiny_model.token_embedding.weight.clone()
    run(tiny_model, tiny_batch)
    assert torch.equal(before, tiny_model.token_embedding.weight)


def test_clipping_bounds_the_step(tiny_model, tiny_batch) -> None:
    _, reports = run(tiny_model, tiny_batch, clip_norm=1e-3, steps=1)
    norm = torch.nn.utils.get_total_norm([p.grad for p in tiny_model.parameters() if p.grad is not None])
    assert reports[0].grad_norm > 1e-3  # reported before clipping
    assert norm == 0.0  # gradients are dropped after the step


def test_bfloat16_learns_too(tiny_model, tiny_batch) -> None:
    state = new_state(tiny_model)
    steps = train(state, repeat(tiny_batch), config(steps=20), dtype=torch.bfloat16)
    losses = [report.loss for report in steps]
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in tiny_model.parameters())
