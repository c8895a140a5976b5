import math

import pytest
import torch
import torch.nn.functional as F

from txtgen.data.types import IGNORE
from txtgen.evaluate import evaluate_loss


def test_metrics_follow_from_the_logits(tiny_model, tiny_batch) -> None:
    batch = tiny_batch
    object.__setattr__(batch, "bytes", 50)
    metrics = evaluate_loss(tiny_model, [batch, batch])
    tiny_model.eval()
    logits = tiny_model(
        batch.input_ids, batch.positions, batch.segment_ids, source_ids=batch.source_ids, source_mask=batch.source_mask
    )
    nll = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum").item()
    assert metrics.tokens == 2 * batch.num_scored
    assert metrics.loss == pytest.approx(nll / batch.num_scored, rel=1e-5)
    assert metrics.perplexity == pytest.approx(math.exp(metrics.loss))
    assert metrics.bits_per_byte == pytest.approx(nll / math.log(2) / 50, rel=1e-5)


def test_evaluation_is_without_dropout_and_leaves_the_mode(tiny_model, tiny_batch) -> None:
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    tiny_model.train()
    first, second = (evaluate_loss(tiny_model, [tiny_batch]) for _ in range(2))
    assert first == second
    assert tiny_model.training
