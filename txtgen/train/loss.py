"""Losses as sums plus a count of scored tokens: dividing is left to whoever knows all ranks and micro-batches."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from txtgen.data.types import IGNORE, Batch
from txtgen.model import Transformer

CHUNK_ELEMENTS = 1 << 24
"""Logits are made float32 in pieces of about this many elements (64 MiB)."""


@dataclass(frozen=True, slots=True)
class LossSums:
    """objective: what is minimised, a scalar with gradient. nll: plain negative log-likelihood in nats, detached."""

    objective: Tensor
    nll: Tensor


def cross_entropy_sums(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> LossSums:
    """Summed cross-entropy of logits [N,V] against labels [N] int64; IGNORE is not scored.

    Label smoothing spreads a share of the target evenly over the vocabulary. Source: Szegedy et al. 2015.
    """
    if not label_smoothing:
        total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
        return LossSums(total, total.detach())
    log_probs = F.log_softmax(logits.float(), dim=-1)
    scored = labels != IGNORE
    gold = log_probs.gather(-1, labels.clamp_min(0)[:, None]).squeeze(-1)
    nll = -(gold * scored).sum()
    uniform = -(log_probs.mean(dim=-1) * scored).sum()
    return LossSums((1 - label_smoothing) * nll + label_smoothing * uniform, nll.detach())


def batch_loss(model: Transformer, batch: Batch, label_smoothing: float = 0.0) -> LossSums:
    """Run the model over a batch [B,T] and sum the loss over its scored positions, logits made in chunks."""
    hidden = model.hidden(
        batch.input_ids,
        batch.positions,
        batch.segment_ids,
        separate=batch.separate,
        bidirectional=batch.bidirectional,
        source_ids=batch.source_ids,
        source_mask=batch.source_mask,
    )
    scored = batch.labels != IGNORE
    labels = batch.labels[scored]
    hidden = hidden[scored]
    vocabulary = model.config.vocab_size or 1
    chunk = max(1, CHUNK_ELEMENTS // vocabulary)
    sums = [
        cross_entropy_sums(model.head(hidden[start : start + chunk]), labels[start : start + chunk], label_smoothing)
        for start in range(0, max(1, len(labels)), chunk)
    ]
    if len(sums) == 1:
        return sums[0]
    return LossSums(torch.stack([s.objective for s in sums]).sum(), torch.stack([s.nll for s in sums]).sum())
