"""Activation checkpointing: the same gradients, less kept for them."""

import copy

import pytest
import torch

from txtgen.model import Transformer, build_model, init_weights
from txtgen.train import batch_loss, checkpoint_activations


def gradients(model: Transformer, batch) -> tuple[dict[str, torch.Tensor], int]:
    """Of a step, by name, and the bytes that were kept between the passes, weights not counted."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective = batch_loss(model, batch).objective
        size = sum(kept.values())
    objective.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_gradients_are_the_same_to_the_bit_and_less_is_kept(tiny_model, tiny_batch, norm, dtype) -> None:
    options = {"dropout": 0.3, "attention_dropout": 0.2, "ffn_dropout": 0.1, "norm": norm, "activation": "relu_squared"}
    plain = build_model(tiny_model.config.model_copy(update=options))
    init_weights(plain, 0)
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        expected, all_kept = gradients(plain, tiny_batch)
        found, few_kept = gradients(saving, tiny_batch)
    assert few_kept < 0.5 * all_kept
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert plain.state_dict().keys() == saving.state_dict().keys()


def test_nothing_is_computed_twice_where_nothing_is_trained(tiny_model, tiny_batch, monkeypatch) -> None:
    checkpoint_activations(tiny_model)
    monkeypatch.setattr("txtgen.train.checkpointing.checkpoint", None)
    tiny_model.eval()
    assert batch_loss(tiny_model, tiny_batch).objective.isfinite()
