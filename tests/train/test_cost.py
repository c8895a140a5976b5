"""FLOPs beside torch's own counter; the figures of speed."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from txtgen.data.types import Batch
from txtgen.model import Transformer, build_model, init_weights
from txtgen.train import Contention, Figures, Speed, StepReport, batch_loss, count_flops, matrix_peak, peak_memory_bytes

OPTIONS = {
    "plain": {},
    "untied": {"tie_embeddings": False},
    "gated, further hidden layers": {"gated": True, "num_ffn_hidden_layers": 3},
    "narrow heads, qk-norm": {"head_dim": 6, "qk_norm": True},
    "biases everywhere": {"output_bias": True, "logit_softcap": 5.0},
    "sliding window": {"sliding_window": 3},
}


def changed(model: Transformer, **options) -> Transformer:
    """A model like this one but for some options of its config."""
    other = build_model(model.config.model_copy(update=options))
    init_weights(other, 0)
    return other


def counted(model: Transformer, batch: Batch, training: bool) -> int:
    """By torch, which knows no rule for attention on a CPU, but does for the products that it stands for."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(training):
        objective = batch_loss(model, batch).objective
        if training:
            objective.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_flops_equal_torchs_count(tiny_model, tiny_batch, options: str, training: bool) -> None:
    model = changed(tiny_model, **OPTIONS[options])
    assert count_flops(model, training).of(tiny_batch) == counted(model, tiny_batch, training)


def test_frozen_weights_need_no_gradient(tiny_model, tiny_batch) -> None:
    model = changed(tiny_model, share_embeddings=False)
    everything = count_flops(model).of(tiny_batch)
    for module in (*model.decoder.layers, model.token_embedding, model.source_embedding):
        if module is not None:
            getattr(module, "feed_forward", module).requires_grad_(False)
    assert count_flops(model).of(tiny_batch) == counted(model, tiny_batch, True) < everything


def test_a_model_without_memory_costs_the_same(tiny_model) -> None:
    nowhere = count_flops(build_model(tiny_model.config, device="meta"))
    assert nowhere == count_flops(tiny_model)
    assert nowhere.total(3, 5, 4) == nowhere.total(3, 5, 4, scored=15)


def test_the_peak_is_measured_once() -> None:
    device = torch.device("cpu")
    peak = matrix_peak(device, torch.float32)
    assert peak > 1e8
    assert matrix_peak(device, torch.float32) == peak


def test_peak_memory_never_falls() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    ballast = torch.ones(30_000_000)
    after = peak_memory_bytes(torch.device("cpu"))
    assert before >= 20_000_000
    assert after >= before
    assert after >= ballast.nbytes


def test_speed_is_that_of_the_steps_since_the_last_look(monkeypatch) -> None:
    monkeypatch.setattr("txtgen.train.speed.matrix_peak", lambda *_: 1000.0)
    step = StepReport(
        1,
        Figures(torch.tensor([0.0, 1.0, 180.0, 180.0])),
        names=(),
        count=90,
        learning_rate=0.1,
        tokens=90,
        positions=100,
        seconds=2.0,
        data_seconds=0.5,
        flops=800,
    )
    speed = Speed(torch.device("cpu"), torch.float32)
    speed.add(step)
    speed.add(replace(step, positions=300, seconds=6.0, data_seconds=1.5, flops=2400))
    figures = speed.take()
    assert figures.pop("peak_memory_bytes") > 0
    assert figures == {"tokens_per_second": 50.0, "data_wait_share": 0.25, "flops_per_second": 400.0, "mfu": 0.4}
    speed.add(step)
    assert speed.take()["tokens_per_second"] == 50.0


def test_contention_is_told_where_others_take_much(monkeypatch) -> None:
    readings = iter([(0.0, 0.0, 0.0), (5.0, 10.0, 9.0), (10.0, 20.0, 3.9), (20.0, 40.0, 10.1), (21.0, 42.0, 12.0)])
    monkeypatch.setattr("txtgen.train.speed._processor_times", lambda: next(readings))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    contention = Contention(2, share=0.2, seconds=10.0)
    assert contention.warning() is None  # too early to say
    assert contention.warning() is None  # less than a fifth
    assert "31% of the processors" in contention.warning()
    assert contention.warning() is None
    monkeypatch.setattr("txtgen.train.speed._processor_times", lambda: None)
    assert Contention(2).warning() is None


@pytest.mark.parametrize(("foreign", "told"), [(10.0, False), (13.0, False), (15.0, True)])
def test_one_thread_of_two_cores_only_lacks_what_others_take_beyond_the_other_core(monkeypatch, foreign, told) -> None:
    readings = iter([(0.0, 0.0, 0.0), (10.0, 20.0, foreign)])
    monkeypatch.setattr("txtgen.train.speed._processor_times", lambda: next(readings))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    warning = Contention(1).warning()
    assert (warning is not None) == told
    assert "threads" not in (warning or "")
