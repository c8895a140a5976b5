"""Memory that runs out: the step is done again, with smaller micro-batches and the same result."""

import copy
from dataclasses import replace
from itertools import repeat

import pytest
import torch

from txtgen.config.train import AdamWConfig, ConstantSchedule, MuonConfig, TrainConfig
from txtgen.errors import ResourceError
from txtgen.evaluate import evaluate_loss
from txtgen.memory import is_out_of_memory
from txtgen.model import build_model
from txtgen.train import HeldBytes, TrainState, build_optimizer, held_bytes, require_memory, train
from txtgen.train.loss import batch_loss

TOLD = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345 bytes."),
]


def tokens(batch) -> int:
    return batch.input_ids.numel() + (0 if batch.source_ids is None else batch.source_ids.numel())


@pytest.fixture
def room(monkeypatch):
    """A machine on which so many tokens fit; what does not fails when its gradients are there already."""

    def limit(most: int, error=TOLD[0]) -> list[int]:
        seen = []

        def limited(model, batch, *arguments):
            sums = batch_loss(model, batch, *arguments)
            seen.append(tokens(batch))
            if tokens(batch) > most:
                if torch.is_grad_enabled():
                    sums.objective.backward()
                raise error
            return sums

        monkeypatch.setattr("txtgen.train.loss.batch_loss", limited)
        monkeypatch.setattr("txtgen.evaluate.loss.batch_loss", limited)
        return seen

    return limit


def learn(model, batch, **changes):
    config = TrainConfig(**{"steps": 3, "schedule": ConstantSchedule(), **changes})
    state = TrainState(model, build_optimizer(model, AdamWConfig(learning_rate=1e-2)))
    return state, list(train(state, repeat(batch), config, seed=3))


@pytest.mark.parametrize("error", TOLD, ids=lambda error: type(error).__name__)
def test_the_step_is_repeated_with_half_as_much_until_it_fits(tiny_model, tiny_batch, room, error) -> None:
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    twin, width = copy.deepcopy(tiny_model), tokens(tiny_batch) // 4
    seen = room(2 * width, error)
    state, reports = learn(tiny_model, tiny_batch)
    assert state.micro_batch_tokens == 2 * width
    assert seen == [4 * width, *[2 * width] * 6]
    straight, expected = learn(twin, tiny_batch, micro_batch_tokens=2 * width)
    assert [report.loss for report in reports] == [report.loss for report in expected]
    for ours, theirs in zip(tiny_model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert straight.micro_batch_tokens is None


def test_a_longer_batch_in_the_midst_of_a_run(tiny_model, tiny_batch, room) -> None:
    width = tokens(tiny_batch) // 4
    short = tiny_batch.rows(0, 2)
    room(3 * width)
    state = TrainState(tiny_model, build_optimizer(tiny_model, AdamWConfig()))
    config = TrainConfig(steps=4, schedule=ConstantSchedule())
    steps = train(state, iter([short, short, tiny_batch, short]), config)
    next(steps), next(steps)
    assert state.micro_batch_tokens is None
    assert len(list(steps)) == 2
    assert state.micro_batch_tokens == 2 * width


def test_a_single_row_that_does_not_fit_ends_the_run_with_advice(tiny_model, tiny_batch, room) -> None:
    room(1)
    before = copy.deepcopy(tiny_model.state_dict())
    with pytest.raises(ResourceError, match=r"single row of .*; weights, .* GB.*sequence_length.*d_model.*dtype"):
        learn(tiny_model, tiny_batch)
    assert all(torch.equal(before[name], weight) for name, weight in tiny_model.state_dict().items())


def test_other_errors_are_no_want_of_memory(tiny_model, tiny_batch, room) -> None:
    room(1, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        learn(tiny_model, tiny_batch)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert all(is_out_of_memory(error) for error in TOLD)


def test_measuring_takes_less_at_a_time_too(tiny_model, tiny_batch, room) -> None:
    expected = evaluate_loss(tiny_model, [tiny_batch, tiny_batch])
    width = tokens(tiny_batch) // 4
    seen = room(2 * width)
    found = evaluate_loss(tiny_model, [tiny_batch, tiny_batch])
    assert seen == [4 * width, *[2 * width] * 4]
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert replace(found, loss=0, perplexity=0, bits_per_byte=0) == replace(
        expected, loss=0, perplexity=0, bits_per_byte=0
    )
    room(1)
    with pytest.raises(ResourceError, match="a single row"):
        evaluate_loss(tiny_model, [tiny_batch])


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()], ids=lambda config: config.kind)
def test_what_is_held_is_known_before_there_is_a_model(tiny_model, tiny_batch, config) -> None:
    outline = build_model(tiny_model.config, device="meta")
    for model in (tiny_model, outline):
        model.decoder.layers[0].requires_grad_(False)
    held = held_bytes(outline, build_optimizer(outline, config))
    optimizer = build_optimizer(tiny_model, config)
    list(train(TrainState(tiny_model, optimizer), repeat(tiny_batch), TrainConfig(steps=1)))
    weights = [*tiny_model.parameters()]
    trained = sum(weight.nbytes for weight in weights if weight.requires_grad)
    moments = [value for part in optimizer.parts.values() for state in part.state.values() for value in state.values()]
    assert held == HeldBytes(
        sum(weight.nbytes for weight in weights), trained, sum(value.nbytes for value in moments if value.dim())
    )
    assert held.weights > held.gradients > 0


@pytest.mark.parametrize("parts", [1, 2])
def test_what_cannot_be_held_is_refused_and_frozen_weights_take_less(tiny_model, monkeypatch, parts) -> None:
    config, cpu = AdamWConfig(), torch.device("cpu")
    size = sum(weight.nbytes for weight in tiny_model.parameters())
    monkeypatch.setattr("txtgen.train.memory.os.sysconf", {"SC_PHYS_PAGES": 4 * size // parts, "SC_PAGE_SIZE": 1}.get)
    require_memory(tiny_model, config, cpu, parts)
    monkeypatch.setattr("txtgen.train.memory.os.sysconf", {"SC_PHYS_PAGES": 3 * size // parts, "SC_PAGE_SIZE": 1}.get)
    with pytest.raises(ResourceError, match="for weights, gradients and optimizer alone; cpu has"):
        require_memory(tiny_model, config, cpu, parts)
    tiny_model.decoder.layers.requires_grad_(False)
    require_memory(tiny_model, config, cpu, parts)
