from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from txtgen.data.types import IGNORE
from txtgen.model import build_model, init_weights
from txtgen.train import batch_loss, cross_entropy_sums
from txtgen.train import loss as loss_module


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_sums_and_gradient_equal_torch(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = (30 * torch.randn(20, 11, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 11, (20,))
    smoothed = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    plain = F.cross_entropy(logits, labels, reduction="sum")
    (expected,) = torch.autograd.grad(smoothed, logits)
    objective, nll, gradient = cross_entropy_sums(logits.detach(), labels, smoothing)
    assert objective.item() == pytest.approx(smoothed.item(), rel=1e-12)
    assert nll.item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_a_label_that_nobody_expects_has_a_finite_loss() -> None:
    logits = torch.tensor([[0.0, 500.0, 0.0]])
    objective, _, gradient = cross_entropy_sums(logits, torch.tensor([0]))
    assert objective.item() == 500.0
    assert gradient.tolist() == [[-1.0, 1.0, 0.0]]


HEADS = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "capped": {"logit_softcap": 2.0},
    "biased and scaled": {"output_bias": True, "scale_output": True},
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rows", [3, 1000])
def test_chunks_equal_all_logits_at_once(
    tiny_model, tiny_batch, monkeypatch, rows: int, head: str, smoothing: float
) -> None:
    model = build_model(tiny_model.config.model_copy(update=HEADS[head]))
    init_weights(model, 0)
    model.double()
    monkeypatch.setattr(loss_module, "chunk_rows", lambda *_: rows)
    sums = batch_loss(model, tiny_batch, smoothing)
    (3 * sums.objective).backward()
    assert not sums.nll.requires_grad
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    batch = tiny_batch
    hidden = model.hidden(
        batch.input_ids,
        batch.positions,
        batch.segment_ids,
        batch.separate,
        source_ids=batch.source_ids,
        source_mask=batch.source_mask,
    )
    logits = model.head(hidden)
    flat, labels = logits.flatten(0, 1), tiny_batch.labels.flatten()
    expected = F.cross_entropy(flat, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    (3 * expected).backward()
    assert sums.objective.item() == pytest.approx(expected.item(), rel=1e-12)
    assert sums.nll.item() == pytest.approx(
        F.cross_entropy(flat, labels, ignore_index=IGNORE, reduction="sum").item(), rel=1e-12
    )
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        assert batch_loss(model, tiny_batch, smoothing).nll.item() == sums.nll.item()


def test_a_frozen_head_lets_gradients_through(tiny_model, tiny_batch) -> None:
    for parameter in tiny_model.head_parameters:
        parameter.requires_grad_(False)
    batch_loss(tiny_model, tiny_batch).objective.backward()
    assert all(parameter.grad is None for parameter in tiny_model.head_parameters)
    assert any(parameter.grad is not None for parameter in tiny_model.parameters())


def test_bfloat16_agrees_with_float32(tiny_model, tiny_batch) -> None:
    exact = batch_loss(tiny_model, tiny_batch).objective
    with torch.autocast("cpu", torch.bfloat16):
        rough = batch_loss(tiny_model, tiny_batch).objective
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.01)
    assert all(parameter.grad is not None for parameter in tiny_model.head_parameters)


def test_nothing_scored_is_zero(tiny_model, tiny_batch) -> None:
    silent = replace(tiny_batch, labels=torch.full_like(tiny_batch.labels, IGNORE))
    for smoothing in (0.0, 0.1):
        sums = batch_loss(tiny_model, silent, smoothing)
        sums.objective.backward()
        assert sums.objective.item() == sums.nll.item() == 0.0


@pytest.mark.parametrize("scored", ["all", "some", "none"])
def test_nothing_waits_for_the_device(tiny_model, tiny_batch, scored) -> None:
    """Tensors without data stand for those that a GPU has not computed yet: nothing may ask for a value in them."""
    if scored != "some":
        labels = tiny_batch.input_ids if scored == "all" else torch.full_like(tiny_batch.labels, IGNORE)
        tiny_batch = replace(tiny_batch, labels=labels)
    there = torch.device("meta")
    batch_loss(tiny_model.to(there), tiny_batch.to(there), 0.1).objective.backward()
    assert all(weight.grad is not None for weight in tiny_model.parameters())


def test_what_counts_is_found_on_the_way_to_the_device_and_again_in_every_part(tiny_model, tiny_batch) -> None:
    moved = tiny_batch.to(torch.device("cpu"))
    assert moved.labels.flatten()[moved.places].tolist() == [
        label for label in tiny_batch.labels.flatten().tolist() if label >= 0
    ]
    whole = batch_loss(tiny_model, moved)
    assert torch.equal(whole.nll, batch_loss(tiny_model, tiny_batch).nll)
    parts = sum(batch_loss(tiny_model, moved.rows(start, start + 2)).nll for start in (0, 2))
    torch.testing.assert_close(parts, whole.nll)
