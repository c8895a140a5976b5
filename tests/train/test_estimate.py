"""What training keeps in memory, told from two rows, is what all rows keep, and nearly what is really allocated."""

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from txtgen.config.loader import config_from_tree
from txtgen.config.model import ModelConfig
from txtgen.config.train import TrainConfig
from txtgen.data import Batch
from txtgen.model import build_model, init_weights
from txtgen.train import TokenLoss, batch_loss, build_optimizer, estimate_memory
from txtgen.train.estimate import kept_bytes

SHAPE = {"d_model": 32, "num_heads": 2, "d_ff": 64, "max_length": 48, "vocab_size": 512}
ALIBI = {"kind": "alibi"}
MODELS = {
    "plain": {"kind": "decoder", "num_layers": 2},
    "modern": {"kind": "decoder", "num_layers": 2, "position": {"kind": "rotary"}, "norm": "rms_norm", "gated": True},
    "dropout": {"kind": "decoder", "num_layers": 3, "dropout": 0.1, "attention_dropout": 0.1, "position": ALIBI},
    "translator": {"kind": "encoder_decoder", "num_encoder_layers": 1, "num_decoder_layers": 2, "num_kv_heads": 1},
}  # fmt: skip


def model_of(name: str):
    model = build_model(config_from_tree(ModelConfig, SHAPE | MODELS[name]))
    init_weights(model, 0)
    return model


def batch_of(name: str, rows: int) -> Batch:
    ids = torch.randint(5, 512, (rows, 40))
    source = torch.randint(5, 512, (rows, 24)) if name == "translator" else None
    return Batch(
        input_ids=ids,
        labels=ids,
        positions=torch.arange(40).repeat(rows, 1),
        segment_ids=torch.ones(rows, 40, dtype=torch.int32),
        source_ids=source,
        source_mask=None if source is None else torch.ones_like(source, dtype=torch.bool),
        origins=((),) * rows,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_two_rows_tell_what_all_rows_keep(name, dtype) -> None:
    model, batch = model_of(name), batch_of(name, 9)
    config = TrainConfig(micro_batch_tokens=batch.input_ids.shape[1] * 7 * (2 if name == "translator" else 1))
    found = estimate_memory(model, build_optimizer(model, config.optimizer), batch, config, dtype)
    rows = 8 if name == "translator" else 7
    own = batch.rows(0, rows)
    # Rows of a view keep the storage of the whole batch alive, which one row does as well.
    assert found.activations == kept_bytes(model, own, TokenLoss(), dtype)


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_near_what_is_allocated(name) -> None:
    model, batch = model_of(name), batch_of(name, 32)
    optimizer = build_optimizer(model, TrainConfig().optimizer)
    found = estimate_memory(model, optimizer, batch, TrainConfig(), torch.float32)

    def step() -> None:
        model.train()
        torch.autograd.backward(batch_loss(model, batch).objective)
        optimizer.step(1.0)

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    allocated = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    assert peak == pytest.approx(found.total - found.weights - found.optimizer, rel=0.15)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_stays_in_memory_of_what_is_counted(name) -> None:
    """A graph whose saved tensors hold on to it is never freed, whatever the garbage collector does."""
    model, batch = model_of(name), batch_of(name, 8)
    kept_bytes(model, batch, TokenLoss(), torch.float32)  # tables of positions are made once, and stay
    before = held_by_tensors()
    assert kept_bytes(model, batch, TokenLoss(), torch.float32) > 100_000
    assert held_by_tensors() == before


def held_by_tensors() -> int:
    """Bytes of all storages that a tensor anywhere refers to."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def test_what_is_not_trained_has_no_gradient_and_no_state() -> None:
    model, config = model_of("plain"), TrainConfig()
    for weights in model.decoder.parameters():
        weights.requires_grad_(False)
    found = estimate_memory(
        model, build_optimizer(model, config.optimizer), batch_of("plain", 2), config, torch.float32
    )
    assert found.gradients == 4 * model.token_embedding.weight.numel()
    assert found.optimizer == 2 * found.gradients
    assert found.weights == 4 * sum(weights.numel() for weights in model.parameters())
