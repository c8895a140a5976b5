"""Memory that runs out on one rank of two: both do the step again with less at a time, and neither is kept waiting."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_two_ranks import ROWS, batch, new_model, whole

from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
from txtgen.distributed import GradientSums, World, gradients
from txtgen.errors import OutOfMemoryError
from txtgen.evaluate import evaluate_loss
from txtgen.model import Transformer
from txtgen.train import TrainState, build_optimizer, train
from txtgen.train.loss import batch_loss

WIDTH = 7
"""Tokens of a row of `batch`."""


def out_of_memory() -> RuntimeError:
    """As the CPU's allocator says it."""
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345 bytes.")


def new_state(model: Transformer) -> TrainState:
    return TrainState(model, build_optimizer(model, AdamWConfig(learning_rate=0.01)))


def steps_of(state: TrainState, world: World, steps: int, **changes: Any) -> Any:
    config = TrainConfig(steps=steps, schedule=ConstantSchedule(), clip_norm=0.3, **changes)
    return train(state, (batch(number, False, world) for number in itertools.count()), config, world=world, seed=3)


def fails_in_forward(model: Transformer) -> None:
    raise out_of_memory()


def fails_at_the_end_of_backward(model: Transformer) -> None:
    """When the gradients of the layers are being sent already."""

    def fail(_gradient: torch.Tensor) -> None:
        raise out_of_memory()

    def watch(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        output.register_hook(fail)
        handle.remove()

    handle = model.token_embedding.register_forward_hook(watch)


def run_out(
    world: World, at_step: int, on_ranks: tuple[int, ...], fail: Callable[[Transformer], None], limit: int | None
) -> dict[str, Any]:
    """Four steps, in one of which memory runs out once on some ranks, for a pass through the model."""
    model = new_model(world, "tied", "replicate")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    state = new_state(model)
    sent: list[int] = []
    armed = [world.rank in on_ranks]
    original_send, original_loss = GradientSums._send, batch_loss

    def count(sums: Any, bucket: Any) -> None:
        sent[-1] += 1
        original_send(sums, bucket)

    def scarce(model: Transformer, part: Any, *arguments: Any) -> Any:
        sent.append(0)
        if armed[0] and state.step == at_step - 1:
            armed[0] = False
            fail(model)
        return original_loss(model, part, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "BUCKET_BYTES", 300)
        patch.setattr(GradientSums, "_send", count)
        patch.setattr("txtgen.train.loss.batch_loss", scarce)
        reports = list(steps_of(state, world, 4, micro_batch_tokens=limit))
    return {
        "losses": [report.loss for report in reports],
        "norms": [report.grad_norm for report in reports],
        "weights": whole(model),
        "limit": state.micro_batch_tokens,
        "sent": sent,
    }


def with_less_from(world: World, step: int, before: int | None, after: int) -> dict[str, Any]:
    """The same steps where memory suffices, with less at a time from this step on."""
    state = new_state(new_model(world, "tied", "replicate"))
    for module in state.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    reports = []
    steps = steps_of(state, world, 4, micro_batch_tokens=before)
    for number in range(1, 5):
        if number == step:
            state.micro_batch_tokens = after
        reports.append(next(steps))
    return {"losses": [report.loss for report in reports], "weights": whole(state.model)}


@pytest.mark.parametrize(
    ("at_step", "on_ranks", "fail", "limit", "after"),
    [
        (1, (1,), fails_in_forward, None, WIDTH),
        (3, (0,), fails_in_forward, None, WIDTH * 3 // 2),
        (3, (0, 1), fails_in_forward, None, WIDTH),
        (4, (1,), fails_in_forward, 2 * WIDTH, WIDTH),
        (1, (1,), fails_at_the_end_of_backward, None, WIDTH),
        (3, (1,), fails_at_the_end_of_backward, None, WIDTH),
    ],
)
def test_the_step_is_done_again_by_all(ranks, at_step, on_ranks, fail, limit, after) -> None:
    first, second = ranks.run(run_out, at_step, on_ranks, fail, limit)
    straight, _ = ranks.run(with_less_from, at_step, limit, after)
    assert first["limit"] == second["limit"] == after
    assert first["losses"] == second["losses"] == straight["losses"]
    assert first["norms"] == second["norms"]
    for name, weight in straight["weights"].items():
        assert torch.equal(first["weights"][name], weight)
        assert torch.equal(second["weights"][name], weight)
    assert sum(first["sent"]) == sum(second["sent"]) > 5 * 5  # in five passes


def learn_too_large_a_row(world: World) -> Any:
    """What rank 1, for whom not even a row fits, and rank 0 end with."""
    state = new_state(new_model(world, "tied", "replicate"))
    before, original = whole(state.model), batch_loss

    def scarce(*arguments: Any) -> Any:
        if world.rank == 1:
            raise out_of_memory()
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("txtgen.train.loss.batch_loss", scarce)
        try:
            list(steps_of(state, world, 4))
        except OutOfMemoryError as error:
            unchanged = all(torch.equal(weight, before[name]) for name, weight in whole(state.model).items())
            return error.what, state.step, unchanged
    return None


def test_a_single_row_that_does_not_fit_ends_the_run_on_all(ranks) -> None:
    told = f"out of memory with a single row of {WIDTH} tokens"
    assert ranks.run(learn_too_large_a_row) == [(f"rank 1: {told}", 0, True), (told, 0, True)]


def test_a_rank_that_fails_late_has_sent_gradients_already() -> None:
    """What the test above relies on: the last gradients of backward are those of the embedding."""
    model = new_model(World(), "tied", "replicate")
    arrived = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    fails_at_the_end_of_backward(model)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        batch_loss(model, batch(0, False, World())).objective.backward()
    assert any("layers.0" in name for name in arrived)


def measure_with_little_memory(world: World, fits: int) -> Any:
    """The loss of two batches where no more than so many tokens fit at once on rank 1."""
    model = new_model(world, "tied", "replicate")
    original = batch_loss

    def scarce(model: Transformer, part: Any, *arguments: Any) -> Any:
        if world.rank == 1 and part.input_ids.numel() > fits:
            raise out_of_memory()
        return original(model, part, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("txtgen.evaluate.loss.batch_loss", scarce)
        try:
            return evaluate_loss(model, [batch(number, False, world) for number in (1, 2)], world=world).loss
        except OutOfMemoryError as error:
            return error.what
        finally:
            assert world.sum([1.0]) == [2.0]  # neither waits for the other


def test_measuring_takes_less_on_the_rank_that_runs_out(ranks) -> None:
    expected = evaluate_loss(
        new_model(World(), "tied", "replicate"), [batch(number, False, World()) for number in (1, 2)]
    ).loss
    assert ranks.run(measure_with_little_memory, WIDTH) == pytest.approx([expected] * 2, rel=1e-6)
    assert ROWS // 2 * WIDTH > WIDTH


def test_measuring_fails_on_all_ranks_or_on_none(ranks) -> None:
    told = f"out of memory with a single row of {WIDTH} tokens"
    assert ranks.run(measure_with_little_memory, WIDTH - 1) == [f"rank 1: {told}", told]
