"""The loss of preferences beside what it says on paper, computed from whole logits."""

import math
from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
import torch
from torch import Tensor

from txtgen.config.model import DecoderConfig, EncoderDecoderConfig
from txtgen.config.objectives import DpoObjective
from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
from txtgen.data.buckets import pad_pairs
from txtgen.data.types import IGNORE, Batch, Example, Origin
from txtgen.distributed import World
from txtgen.errors import DataError
from txtgen.model import Transformer, build_model, init_weights
from txtgen.train import PreferenceLoss, ReferenceTable, TrainState, build_optimizer, pair_logprobs, train
from txtgen.train import preference as preference_module
from txtgen.train.loop import StepReport

SETTINGS = {
    "sigmoid": {"beta": 0.3},
    "smoothed": {"beta": 0.3, "label_smoothing": 0.2},
    "ipo": {"loss": "ipo", "beta": 0.3},
}


class Padding:
    pad_id = 0

    def scored_bytes(self, _labels) -> int:
        return 0


def example(number: int, has_source: bool, vocabulary: int = 13) -> Example:
    """A prompt of two tokens and two answers of unequal length, the tokens drawn by number."""
    draw = np.random.default_rng(number)
    prompt = draw.integers(1, vocabulary, 2)
    parts = []
    for size in draw.integers(2, 9, 2):
        tokens = np.concatenate([prompt, draw.integers(1, vocabulary, size)])
        labels = tokens[1:].copy()
        labels[0] = IGNORE
        parts.append((tokens[:-1], labels))
    (chosen, chosen_labels), (rejected, rejected_labels) = parts
    return Example(
        np.concatenate([chosen, rejected]),
        np.concatenate([chosen_labels, rejected_labels]),
        Origin(0, "pairs.jsonl", number),
        draw.integers(1, vocabulary, 1 + number % 4) if has_source else None,
        rejected=len(chosen),
    )


def pairs(model: Transformer, count: int = 5, rank: int = 0, world_size: int = 1) -> Batch:
    examples = [example(number, model.encoder is not None) for number in range(count)]
    return pad_pairs(examples, Padding(), rank, world_size, {"at": 1})


@pytest.fixture(params=["decoder", "encoder_decoder"])
def model(request) -> Transformer:
    return new_model(request.param)


def new_model(kind: str, seed: int = 1) -> Transformer:
    """With room for one answer in a row, not for two."""
    size = {"d_model": 16, "num_heads": 2, "d_ff": 32, "max_length": 10, "vocab_size": 13}
    config = DecoderConfig(num_layers=2, **size)
    if kind == "encoder_decoder":
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1, "source_vocab_size": 13, "max_source_length": 8}
        config = EncoderDecoderConfig(**layers, **size)
    built = build_model(config)
    init_weights(built, seed)
    return built


def logprobs_alone(model: Transformer, batch: Batch) -> Tensor:
    """The log-probability [B,2] of each answer, every one of them run by itself."""
    found = []
    for row in range(len(batch.labels)):
        for answer in (1, 2):
            place = batch.segment_ids[row] == answer
            ids, labels = batch.input_ids[row][place][None], batch.labels[row][place]
            source = {}
            if batch.source_ids is not None:
                source = {"source_ids": batch.source_ids[row][batch.source_mask[row]][None]}
            positions = torch.arange(ids.shape[1])[None]
            logits = model(ids, positions, torch.ones_like(ids, dtype=torch.int32), **source)[0]
            scored = labels != IGNORE
            found.append(logits[scored].log_softmax(-1).gather(-1, labels[scored][:, None]).sum())
    return torch.stack(found).view(-1, 2)


def on_paper(settings: DpoObjective, logprobs: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
    """As trl's DPOTrainer has it."""
    if settings.loss == "ipo":
        logprobs, reference = logprobs / lengths, reference / lengths
    logits = (logprobs[:, 0] - logprobs[:, 1]) - (reference[:, 0] - reference[:, 1])
    if settings.loss == "ipo":
        return (logits - 1 / (2 * settings.beta)) ** 2
    likely, unlikely = (torch.log(torch.sigmoid(sign * settings.beta * logits)) for sign in (1, -1))
    return -likely * (1 - settings.label_smoothing) - unlikely * settings.label_smoothing


@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_are_those_on_paper(model, monkeypatch, name: str, rows: int) -> None:
    monkeypatch.setattr(preference_module, "chunk_rows", lambda *_: rows)
    settings, model = DpoObjective(**SETTINGS[name]), model.double()
    batch = pairs(model)
    torch.testing.assert_close(pair_logprobs(model, batch), logprobs_alone(model, batch).detach())
    reference = 3 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    reference += logprobs_alone(model, batch).detach()
    scored = batch.labels != IGNORE
    lengths = torch.stack([(scored & (batch.segment_ids == answer)).sum(-1) for answer in (1, 2)], -1)
    expected = on_paper(settings, logprobs_alone(model, batch), reference, lengths).sum()
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    loss = PreferenceLoss(settings)
    sums = loss(model, replace(batch, reference=reference))
    (3 * sums.objective).backward()
    assert sums.objective.item() == pytest.approx(expected.item(), rel=1e-12)
    for weight_name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, 3 * gradients[weight_name], rtol=1e-9, atol=1e-12)
    told = dict(zip(loss.figures, sums.figures, strict=True))
    ratios = (logprobs_alone(model, batch).detach() - reference) / (lengths if name == "ipo" else 1)
    assert told["reward_chosen"].item() == pytest.approx(0.3 * ratios[:, 0].sum().item())
    assert told["reward_margin"].item() == pytest.approx((told["reward_chosen"] - told["reward_rejected"]).item())
    assert told["reward_accuracy"].item() == (ratios[:, 0] > ratios[:, 1]).sum().item() in range(1, 5)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_model_that_is_its_own_reference_loses_the_log_of_two_and_has_no_margin(model, name: str) -> None:
    batch = pairs(model)
    loss = PreferenceLoss(DpoObjective(**SETTINGS[name]))
    sums = loss(model, replace(batch, reference=pair_logprobs(model, batch)))
    expected = (1 / 0.6) ** 2 if name == "ipo" else math.log(2)
    assert sums.objective.item() / 5 == pytest.approx(expected, rel=1e-6)
    assert [figure.item() for figure in sums.figures] == [0.0] * 4


def stepped(model: Transformer, batches, config: TrainConfig) -> tuple[TrainState, list[StepReport]]:
    state = TrainState(model, build_optimizer(model, AdamWConfig(learning_rate=3e-3)))
    return state, list(train(state, batches, config, loss=PreferenceLoss(DpoObjective())))


@pytest.mark.parametrize("micro_batch_tokens", [None, 40])
def test_steps_divide_by_pairs_whatever_the_micro_batches_and_the_padding(model, micro_batch_tokens) -> None:
    batch = pairs(model)
    batch = replace(batch, reference=pair_logprobs(model, batch))
    steps = TrainConfig(steps=4, schedule=ConstantSchedule())
    twin = new_model(model.config.kind)
    _, expected = stepped(twin, repeat(batch), steps)
    padded = torch.nn.functional.pad
    more = replace(
        batch,
        input_ids=padded(batch.input_ids, (0, 3, 0, 1)),
        labels=padded(batch.labels, (0, 3, 0, 1), value=IGNORE),
        positions=padded(batch.positions, (0, 3, 0, 1)),
        segment_ids=padded(batch.segment_ids, (0, 3, 0, 1)),
        source_ids=None if batch.source_ids is None else padded(batch.source_ids, (0, 0, 0, 1)),
        source_mask=None if batch.source_mask is None else padded(batch.source_mask, (0, 0, 0, 1)),
        reference=padded(batch.reference, (0, 0, 0, 1)),
        origins=(*batch.origins, ()),
    )
    config = steps.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
    _, found = stepped(model, repeat(more), config)
    assert found[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert found[0].tokens == batch.num_scored
    assert found[0].count == 5
    for one, other in zip(expected, found, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)
        assert one.told == pytest.approx(other.told, rel=1e-3, abs=1e-5)
    margins = [report.told["reward_margin"] for report in found]
    assert margins == sorted(margins)
    assert margins[-1] > 0.05
    assert found[-1].loss < found[0].loss


def test_a_table_knows_pairs_by_their_tokens(model) -> None:
    batch, other = pairs(model), pairs(model, rank=1, world_size=2)
    values = pair_logprobs(model, batch)
    table = ReferenceTable.of([(batch, values)], World())
    table = ReferenceTable.from_state(table.state())
    assert torch.equal(table.look_up(batch), values)
    assert torch.equal(table.look_up(other), values[1::2])  # padded to the same width, or not
    (attached,) = table.attach([other])
    assert torch.equal(attached.reference, values[1::2])
    empty = pairs(model, count=1, rank=1, world_size=2)
    assert table.look_up(empty).tolist() == [[0.0, 0.0]]
    changed = other.labels.clone()
    changed[0, changed[0] != IGNORE] = 12
    with pytest.raises(DataError, match="was not reckoned"):
        table.look_up(replace(other, labels=changed))
