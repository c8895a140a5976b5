"""Compiled decoding steps beside the model itself, which is the slow way that they must agree with."""

import logging
import random
import shutil
from functools import partial

import pytest
import torch
from test_state import any_model, extend, start, wander
from tiny_models import ARCHITECTURES, random_ids, tiny_model

from txtgen.config.model import NgramConfig
from txtgen.errors import UsageError
from txtgen.model import CompiledTransformer, NativeTransformer, Transformer, TransformerState, step_model
from txtgen.model.compiled import CALLS, PAYS_FROM
from txtgen.model.padded_state import LEAST, PaddedState, rounded

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile, replaced by what leaves a step as it is and counts its calls."""
    calls = []

    def compile(step, **_options):
        def called(model, tokens, state, stop):
            calls.append((len(tokens), stop))
            return step(model, tokens, state, stop)

        return called

    monkeypatch.setattr(torch, "compile", compile)
    return calls


@pytest.fixture
def traced(monkeypatch):
    """torch.compile up to where code would be made: steps are traced, and what was traced computes. Counts that."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, *, fullgraph, dynamic, mode: real(
        step, fullgraph=fullgraph, dynamic=dynamic, backend="eager"
    ))  # fmt: skip
    yield counters
    torch._dynamo.reset()


def told(caplog) -> list[str]:
    """What txtgen says; torch has records of its own."""
    return [record.message for record in caplog.records if record.name.startswith("txtgen")]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_order_of_operations(uncompiled, architecture, seed):
    choose = random.Random(seed)
    model = any_model(architecture, choose)
    wander(model, choose, way=CompiledTransformer(model, True))
    assert uncompiled


@pytest.mark.parametrize(
    ("architecture", "most"), [("decoder", 1), pytest.param("encoder_decoder", 3, marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore")  # of torch about its own parts
def test_code_is_made_a_few_times_whatever_the_shapes(traced, caplog, architecture, most):
    ngrams = NgramConfig(max_order=3, num_buckets=64)
    options = {"num_layers": 1} if architecture == "decoder" else {"num_decoder_layers": 1, "num_encoder_layers": 1}
    model = tiny_model(architecture, "alibi", max_length=300, ngrams=ngrams, sliding_window=400, **options)
    way, shapes = CompiledTransformer(model, True), set()
    for rows, length, capacity, orders in [
        (3, 4, 12, [[0, 0, 1, 1, 2, 2], [1, 0, 4, 5], [3]]),
        (5, 2, 140, [[4, 1, 2], [0]]),
        (1, 60, 80, [[0, 0, 0], [2, 0]]),
        (2, 127, 270, [[1]]),
    ]:
        _, state, reference = start(model, [length + row % 2 for row in range(rows)], capacity, way)
        extend(way, state, reference, 1, 0)
        for number, order in enumerate(orders):
            state.select(torch.tensor(order))
            reference.select(order)
            for step in (2 * number, 2 * number + 1):
                extend(way, state, reference, 1, step)
            shapes.add((len(state.inner.lengths), rounded(state.inner.stop_after(0), LEAST)))
    assert len(shapes) == 5
    assert 1 <= traced["stats"]["unique_graphs"] <= most
    assert not traced["graph_break"]
    assert not told(caplog)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch about its own parts
def test_many_models_have_each_their_own_code(traced, caplog):
    for seed in range(10):
        model = tiny_model(seed=seed, num_layers=1)
        way = CompiledTransformer(model, True)
        _, state, reference = start(model, [3, 5], way=way)
        for step in range(2):
            extend(way, state, reference, 1, step)
    assert not told(caplog)


def test_rows_and_slots_come_in_few_sizes_and_at_one_address(uncompiled):
    model = tiny_model("encoder_decoder", "t5_relative")
    way, places = CompiledTransformer(model, True), []
    for lengths in ([3, 1, 4, 1, 5], [2, 6, 5], [3, 5]):
        _, state, reference = start(model, lengths, way=way)
        for count in range(len(lengths), 0, -1):
            state.select(torch.arange(count))
            reference.select(list(range(count)))
            extend(way, state, reference, 1, count)
            places.append([cache.keys.data_ptr() for cache in state.inner.caches])
            places[-1] += [tensor.data_ptr() for cache in state.inner.caches for tensor in cache.source]
    assert all(place == places[0] for place in places)
    assert set(uncompiled) == {(8, LEAST), (4, LEAST), (2, LEAST)}
    # Each new shape is tried, and then every step is one call.
    sources = 3  # 8, 4 and 2 of them; the last row has its source to itself, which is yet another shape
    assert len(uncompiled) == len(places) + CALLS * (sources + 1)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_steps_have_one_mode_and_no_gradients(monkeypatch, caplog, mode):
    modes = set()

    def compile(step, **_options):
        def called(model, tokens, state, stop):
            kept = [tokens, state.lengths, *(cache.keys for cache in state.caches)]
            modes.add((torch.is_grad_enabled(), any(tensor.is_inference() for tensor in kept)))
            return step(model, tokens, state, stop)

        return called

    monkeypatch.setattr(torch, "compile", compile)
    way = CompiledTransformer(tiny_model(), True)
    _, state, _ = start(tiny_model(), [3, 5], way=way)
    for rows in ([0, 1], [1, 0, 1], [2]):
        with mode():
            state.select(torch.tensor(rows))
            assert not way.extend(random_ids(len(rows), 1), state).requires_grad
    assert modes == {(False, False)}
    assert not told(caplog)


def test_states_that_are_stepped_in_turns_do_not_disturb_one_another(uncompiled):
    model = tiny_model("decoder", "rotary")
    way = CompiledTransformer(model, True)
    begun = [start(model, lengths, way=way)[1:] for lengths in ([3, 5], [2, 2, 4], [6])]
    for step in range(4):
        for state, reference in begun:
            extend(way, state, reference, 1, step)
    assert uncompiled


def test_several_tokens_are_read_by_the_model_itself(uncompiled):
    model = tiny_model()
    way = CompiledTransformer(model, True)
    _, state, reference = start(model, [3, 5], way=way)
    extend(way, state, reference, 3, 1)
    assert not uncompiled
    with pytest.raises(UsageError, match="does not fit"):
        way.extend(random_ids(2, 13), state)
    with pytest.raises(UsageError, match="cannot cut"):
        state.truncate(torch.tensor([9, 1]))


@pytest.mark.parametrize("when", [0, CALLS + 2])
def test_a_failure_is_told_once_and_nothing_is_lost(monkeypatch, caplog, when):
    left = [when]

    def compile(step, **_options):
        def called(*given):
            left[0] -= 1
            if left[0] < 0:
                step(*given)  # it fails after it has written
                raise RuntimeError("no compiler here\nand more")
            return step(*given)

        return called

    monkeypatch.setattr(torch, "compile", compile)
    model = tiny_model("decoder", "learned", ngrams=NgramConfig(max_order=3, num_buckets=64))
    way = CompiledTransformer(model, True)
    _, state, reference = start(model, [3, 5], way=way)
    with caplog.at_level(logging.WARNING):
        for step in range(6):
            extend(way, state, reference, 1, step)
    assert told(caplog) == ["generating without compiled steps: RuntimeError: no compiler here"]
    assert isinstance(start(model, [3], way=way)[1], TransformerState)
    way.expect(PAYS_FROM)
    assert not way.compiles


def test_code_that_is_wrong_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", lambda step, **_: lambda *given: 1.1 * step(*given))
    model = tiny_model()
    way = CompiledTransformer(model, True)
    _, state, reference = start(model, [3, 5], way=way)
    extend(way, state, reference, 1, 1)
    assert "generating without compiled steps: RuntimeError: it is wrong on this machine, by 0." in caplog.text


def test_a_model_that_has_diverged_is_not_the_fault_of_its_code(uncompiled, caplog):
    model = tiny_model()
    with torch.no_grad():
        model.decoder.layers[0].feed_forward.down_proj.bias.fill_(float("nan"))
    way = CompiledTransformer(model, True)
    _, state, _ = start(model, [3, 5], way=way)
    assert way.extend(random_ids(2, 1), state).isnan().all()
    assert not told(caplog)


# -- who gets it


@pytest.mark.parametrize(
    ("native", "compile", "expected"),
    [
        ("off", False, Transformer),
        ("off", "auto", Transformer),
        ("off", True, CompiledTransformer),
        ("auto", True, CompiledTransformer),
        ("auto", "auto", NativeTransformer),
    ],
)
def test_a_cpu_compiles_nothing_unless_asked(monkeypatch, native, compile, expected):
    monkeypatch.setattr("txtgen.model.stepping.load_library", lambda: None)
    monkeypatch.setattr("txtgen.model.stepping.compare", lambda *_: None)
    monkeypatch.setattr("txtgen.model.native.PackedModel", lambda *_: None)
    assert type(step_model(tiny_model(), native, compile)) is expected


def test_both_ways_cannot_be_asked_for():
    with pytest.raises(UsageError, match="machine code is required"):
        step_model(tiny_model(), "require", True)


def test_auto_waits_until_it_pays(monkeypatch):
    monkeypatch.setattr("txtgen.model.compiling.PAYS_ON", ("cpu",))
    model = tiny_model()
    way = step_model(model, "off", "auto")
    assert isinstance(way, CompiledTransformer)
    way.expect(PAYS_FROM - 1)
    assert isinstance(start(model, [3], way=way)[1], TransformerState)
    way.expect(PAYS_FROM)
    way.expect(1)
    assert isinstance(start(model, [3], way=way)[1], PaddedState)


# -- with the compiler


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore")  # of torch about its own parts
@pytest.mark.parametrize("kind", ["float64", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_code_computes_the_same(caplog, architecture, kind):
    torch._dynamo.reset()
    model = tiny_model(architecture, "rotary", num_kv_heads=2)
    atol = 1e-9
    if kind == "bfloat16":
        model, atol = model.bfloat16(), 0.2
    way = CompiledTransformer(model, True)
    for seed in range(2):
        _, state, reference = start(model, [3, 5, 1], way=way)
        step = partial(extend, way, state, reference, 1, atol=atol)
        step(seed)
        for order in ([0, 0, 1, 1, 2, 2], [1, 0, 5], [2]):
            state.select(torch.tensor(order))
            reference.select(order)
            step(seed + 1)
    assert way.compiles
    assert not told(caplog)
