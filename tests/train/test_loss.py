import pytest
import torch
import torch.nn.functional as F

from txtgen.data.types import IGNORE
from txtgen.train import cross_entropy_sums
from txtgen.train import loss as loss_module


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_sums_equal_torch(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 11, dtype=torch.float64)
    labels = torch.randint(0, 11, (20,))
    labels[::3] = IGNORE
    sums = cross_entropy_sums(logits, labels, smoothing)
    smoothed = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    plain = F.cross_entropy(logits, labels, reduction="sum")
    assert sums.objective.item() == pytest.approx(smoothed.item(), rel=1e-6)
    assert sums.nll.item() == pytest.approx(plain.item(), rel=1e-6)
    assert not sums.nll.requires_grad


def test_nothing_scored_is_zero() -> None:
    labels = torch.full((4,), IGNORE)
    for smoothing in (0.0, 0.1):
        assert cross_entropy_sums(torch.randn(4, 5), labels, smoothing).objective.item() == 0.0


def test_chunks_change_nothing(tiny_model, tiny_batch, monkeypatch) -> None:
    whole = loss_module.batch_loss(tiny_model, tiny_batch, 0.1)
    whole.objective.backward()
    gradients = {name: p.grad.clone() for name, p in tiny_model.named_parameters()}
    tiny_model.zero_grad()
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 3 * tiny_model.config.vocab_size)
    chunked = loss_module.batch_loss(tiny_model, tiny_batch, 0.1)
    chunked.objective.backward()
    assert chunked.nll.item() == pytest.approx(whole.nll.item(), rel=1e-6)
    for name, parameter in tiny_model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-6)
