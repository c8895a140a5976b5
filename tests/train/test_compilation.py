"""Compiled layers: where they are tried and kept, that they compute the same, and what happens where they fail."""

import copy
import shutil
from dataclasses import replace
from itertools import repeat

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
from txtgen.distributed import World
from txtgen.train import (
    Compilation,
    TrainState,
    batch_loss,
    build_optimizer,
    checkpoint_activations,
    compile_layers,
    settle_compilation,
    train,
)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture
def compiler(monkeypatch):
    """torch.compile, replaced by what notes how it was called, and how often what it made was."""

    class Compiler:
        called = 0

        def __call__(self, function, dynamic):
            self.made.append(dynamic)

            def compiled(*args, **kwargs):
                self.called += 1
                return function(*args, **kwargs)

            return compiled

    found = Compiler()
    found.made = []
    monkeypatch.setattr(torch, "compile", found)
    return found


@pytest.fixture
def passes(monkeypatch):
    """A device on which `auto` tries, and the seconds of a pass without and with compiled layers."""

    def take(*seconds: float) -> list[int]:
        left, counts = list(seconds), []
        monkeypatch.setattr("txtgen.model.compiling.PAYS_ON", ("cpu",))

        def pass_seconds(model, part, dtype, count):
            counts.append(count)
            return left.pop(0)

        monkeypatch.setattr("txtgen.train.compilation._pass_seconds", pass_seconds)
        return counts

    return take


def settle(model, batch, wanted, before=None, world=None) -> Compilation:
    return settle_compilation(model, wanted, batch, torch.float32, world or World(), Compilation(before))


def learn(model, batch, dtype=torch.float32, **changes):
    config = TrainConfig(**{"steps": 2, "schedule": ConstantSchedule(), **changes})
    state = TrainState(model, build_optimizer(model, AdamWConfig(learning_rate=1e-2)))
    return state, list(train(state, repeat(batch), config, dtype=dtype))


@pytest.mark.parametrize("wanted", ["auto", False])
def test_a_cpu_compiles_nothing_unless_asked(tiny_model, tiny_batch, compiler, wanted) -> None:
    state, _ = learn(tiny_model, tiny_batch, compile=wanted)
    assert state.compilation == Compilation(False, here=True)
    assert compiler.made == []
    assert not any("forward" in vars(layer) for layer in tiny_model.layers)


@pytest.mark.parametrize(("eager", "compiled", "kept"), [(0.2, 0.1, True), (0.1, 0.2, False), (0.1, 0.1, False)])
def test_auto_keeps_what_is_faster(tiny_model, tiny_batch, compiler, passes, eager, compiled, kept) -> None:
    passes(eager, compiled)
    found = settle(tiny_model, tiny_batch, "auto")
    assert found.compiled is kept
    assert len(compiler.made) == len(tiny_model.layers)
    assert all(("forward" in vars(layer) and hasattr(layer.forward, "func")) is kept for layer in tiny_model.layers)
    assert kept or found.told == (
        f"the layers are not compiled: {1e3 * compiled:.1f} ms compiled, {1e3 * eager:.1f} ms without"
    )


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_does_as_before_without_measuring(tiny_model, tiny_batch, compiler, passes, before) -> None:
    counts = passes(9.0)
    found = settle(tiny_model, tiny_batch, "auto", before)
    assert found == Compilation(before, here=True)
    assert counts == [1] * before
    assert len(compiler.made) == before * len(tiny_model.layers)


def test_where_it_cannot_do_as_before_it_says_so(tiny_model, tiny_batch, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    found = settle(tiny_model, tiny_batch, True, before=True)
    assert found.compiled is False
    assert "up to now they were compiled, so rounding will differ" in found.told
    assert settle(tiny_model, tiny_batch, False, before=True).before is True


def test_several_ranks_decide_the_same(tiny_model, tiny_batch, compiler, passes) -> None:
    class Two(World):
        def any(self, flag: bool) -> bool:
            return True

    passes(0.2, 0.1)
    found = settle(tiny_model, tiny_batch, "auto", world=Two())
    assert found == Compilation(False, True, "another rank could not")
    assert not any(hasattr(layer.forward, "func") for layer in tiny_model.layers)


def test_a_failure_is_told_and_training_goes_on_as_without(tiny_model, tiny_batch, monkeypatch) -> None:
    twin = copy.deepcopy(tiny_model)

    def broken(function, dynamic):
        def compiled(*args, **kwargs):
            raise RuntimeError("no compiler here\nand more")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    state, found = learn(tiny_model, tiny_batch, compile=True)
    _, expected = learn(twin, tiny_batch, compile=False)
    assert state.compilation == Compilation(False, True, "RuntimeError: no compiler here")
    assert [report.loss for report in found] == [report.loss for report in expected]
    assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), twin.parameters(), strict=True))


def test_it_is_tried_once_on_a_micro_batch_and_leaves_no_trace(tiny_model, tiny_batch, compiler) -> None:
    twin, names = copy.deepcopy(tiny_model), list(tiny_model.state_dict())
    rows = {"micro_batch_tokens": 2 * (7 if tiny_batch.source_ids is None else 12)}
    state, found = learn(tiny_model, tiny_batch, compile=True, **rows)
    _, expected = learn(twin, tiny_batch, **rows)
    assert state.compilation == Compilation(True, here=True)
    assert compiler.made == [tiny_batch.source_ids is not None] * len(tiny_model.layers)
    assert compiler.called == (1 + 2 * 2) * len(tiny_model.layers)
    assert [report.loss for report in found] == [report.loss for report in expected]
    assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), twin.parameters(), strict=True))
    assert list(tiny_model.state_dict()) == names
    tiny_model.eval()
    batch_loss(tiny_model, tiny_batch)
    assert compiler.called == (1 + 2 * 2) * len(tiny_model.layers)


def gradients(model, batch, dtype=torch.float32) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        objective = batch_loss(model, batch).objective
    objective.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore")  # of torch about its own parts
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same_to_rounding(tiny_model, tiny_batch, checkpointing) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    fast = copy.deepcopy(tiny_model)
    if checkpointing:
        checkpoint_activations(fast)
    compile_layers(fast, dynamic=tiny_batch.source_ids is not None)
    shapes = (
        [tiny_batch] if tiny_batch.source_ids is None else [tiny_batch, shorter(tiny_batch, 5), shorter(tiny_batch, 3)]
    )
    for batch in shapes:
        expected, found = gradients(tiny_model, batch), gradients(fast, batch)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    # Layers of one kind share their code, over all shapes, and none is left in pieces.
    assert counters["stats"]["unique_graphs"] == (1 if tiny_model.encoder is None else 2)
    assert not counters["graph_break"]


def shorter(batch, length: int):
    cut = {name: getattr(batch, name)[:, :length] for name in ("input_ids", "labels", "positions", "segment_ids")}
    return replace(batch, **cut, source_ids=batch.source_ids[:, :4], source_mask=batch.source_mask[:, :4])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch about its own parts
def test_without_a_compiler_the_reason_says_so(tiny_model, tiny_batch) -> None:
    import torch._inductor.config as inductor
    from torch._inductor.utils import fresh_cache

    torch._dynamo.reset()
    with fresh_cache(), inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        state, reports = learn(tiny_model, tiny_batch, compile=True)
    assert not state.compilation.compiled
    assert "compiler" in state.compilation.reason.lower()
    assert len(reports) == 2


class Casts(TorchDispatchMode):
    """Counts how often something of this shape is cast to bfloat16."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.count += (kwargs or {}).get("dtype") is torch.bfloat16
        return func(*args, **(kwargs or {}))


def test_a_weight_is_cast_once_a_step_and_gradients_are_those_of_single_micro_batches(tiny_model, tiny_batch) -> None:
    twin, width = copy.deepcopy(tiny_model), 7 if tiny_batch.source_ids is None else 12
    weight = tiny_model.decoder.layers[0].feed_forward.up_proj.weight
    assert weight.shape != (width, weight.shape[1])
    with Casts(weight.shape) as casts:
        _, reports = learn(tiny_model, tiny_batch, torch.bfloat16, steps=1, clip_norm=None, micro_batch_tokens=width)
    assert casts.count == len(tiny_model.layers)
    for row in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            objective = batch_loss(twin, tiny_batch.rows(row, row + 1)).objective
        objective.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in twin.parameters() if p.grad is not None])
    assert reports[0].grad_norm == pytest.approx(float(norm) / tiny_batch.num_scored, rel=1e-5)


def test_what_is_computed_a_second_time_uses_the_same_casts(tiny_model, tiny_batch) -> None:
    twin = copy.deepcopy(tiny_model)
    checkpoint_activations(twin)
    options = {"micro_batch_tokens": 7 if tiny_batch.source_ids is None else 12, "steps": 3}
    _, expected = learn(tiny_model, tiny_batch, torch.bfloat16, **options)
    _, found = learn(twin, tiny_batch, torch.bfloat16, **options)
    assert [report.grad_norm for report in found] == [report.grad_norm for report in expected]
    assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), twin.parameters(), strict=True))
