"""Adapters: beside the weights, switched off, and as part of them, the model computes what it should."""

from dataclasses import replace

import pytest
import torch

from txtgen.config.finetuning import LoraConfig
from txtgen.errors import ConfigError
from txtgen.model import Transformer
from txtgen.model.lora import Lora, LoraLinear, adapters_off, add_adapters, initial_adapter, merge_adapters
from txtgen.model.packing import PackedModel
from txtgen.model.quantize import QuantizedLinear, dequantize_model, quantize_model
from txtgen.native import UnavailableError


def logits(model: Transformer, batch) -> torch.Tensor:
    rest = {name: getattr(batch, name) for name in ("positions", "segment_ids", "source_ids", "source_mask")}
    return model(batch.input_ids, **rest)


def adapted(model: Transformer, config: LoraConfig, seed: int = 0) -> Transformer:
    """The model with an adapter that changes something."""
    add_adapters(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("stabilised", [False, True])
def test_merged_equals_unmerged(tiny_model, tiny_batch, stabilised: bool) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    base = logits(tiny_model, tiny_batch)
    adapted(tiny_model, LoraConfig(rank=3, alpha=4.0, rank_stabilised=stabilised))
    beside = logits(tiny_model, tiny_batch)
    assert (beside - base).abs().max() > 0.01
    merge_adapters(tiny_model)
    torch.testing.assert_close(logits(tiny_model, tiny_batch), beside, atol=1e-5, rtol=0)
    assert {name: tensor.shape for name, tensor in tiny_model.state_dict().items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    assert not any(isinstance(module, LoraLinear) for module in tiny_model.modules())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_over_few_bits_it_is_beside_what_they_stand_for(tiny_model, tiny_batch, kind) -> None:
    quantize_model(tiny_model, kind)
    adapted(tiny_model, LoraConfig(rank=3))
    beside = logits(tiny_model, tiny_batch)
    whole = {name: tensor for name, tensor in tiny_model.state_dict().items() if ".lora." in name}
    with adapters_off(tiny_model):
        few = logits(tiny_model, tiny_batch)
    assert (beside - few).abs().max() > 0.01
    for module in list(tiny_model.modules()):
        if isinstance(module, QuantizedLinear):
            module.__class__ = QuantizedLinear
            if hasattr(module, "lora"):
                del module.lora
    dequantize_model(tiny_model)
    torch.testing.assert_close(logits(tiny_model, tiny_batch), few, atol=1e-6, rtol=0)
    add_adapters(tiny_model, LoraConfig(rank=3))
    tiny_model.load_state_dict({**tiny_model.state_dict(), **whole})
    merge_adapters(tiny_model)
    torch.testing.assert_close(logits(tiny_model, tiny_batch), beside, atol=1e-5, rtol=0)


def test_gradients_over_few_bits_are_those_over_the_weights_that_they_stand_for(tiny_model, tiny_batch) -> None:
    quantize_model(tiny_model, "int8")
    adapted(tiny_model, LoraConfig(rank=3))
    trained = {name: parameter for name, parameter in tiny_model.named_parameters() if ".lora." in name}
    for name, parameter in tiny_model.named_parameters():
        parameter.requires_grad_(name in trained)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        loss = logits(tiny_model, tiny_batch).square().sum()
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in trained.items()}
    for name, module in list(tiny_model.named_modules()):
        if isinstance(module, QuantizedLinear):
            plain = torch.nn.Linear(module.width, len(module.codes), bias=module.bias is not None)
            plain.weight, plain.bias = torch.nn.Parameter(module.weight, requires_grad=False), module.bias
            if hasattr(module, "lora"):
                plain.__class__, plain.lora = LoraLinear, module.lora
            parent, _, child = name.rpartition(".")
            setattr(tiny_model.get_submodule(parent), child, plain)
    for parameter in trained.values():
        parameter.grad = None
    logits(tiny_model, tiny_batch).square().sum().backward()
    for name, parameter in trained.items():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-4, rtol=1e-5)


def test_off_is_the_base_to_the_bit_and_a_new_one_changes_nothing(tiny_model, tiny_batch) -> None:
    base = logits(tiny_model, tiny_batch)
    adapted(tiny_model, LoraConfig(rank=2, targets=("q_proj", "feed_forward.*")))
    changed = logits(tiny_model, tiny_batch)
    with adapters_off(tiny_model):
        assert torch.equal(logits(tiny_model, tiny_batch), base)
    assert torch.equal(logits(tiny_model, tiny_batch), changed)
    start = initial_adapter(tiny_model, seed=7)
    assert all(torch.equal(start[name], again) for name, again in initial_adapter(tiny_model, seed=7).items())
    assert any(not torch.equal(start[name], other) for name, other in initial_adapter(tiny_model, seed=8).items())
    tiny_model.load_state_dict({**tiny_model.state_dict(), **start})
    assert torch.equal(logits(tiny_model, tiny_batch), base)
    assert all(tensor.any() for name, tensor in start.items() if ".down." in name)


def test_two_add_up(tiny_model, tiny_batch) -> None:
    name = "decoder.layers.0.self_attention.v_proj"
    weight = tiny_model.get_submodule(name).weight
    total = weight.detach().clone()
    for seed, rank in ((1, 2), (2, 5)):
        adapted(tiny_model, LoraConfig(rank=rank), seed)
        total += tiny_model.get_submodule(name).lora.product
        merge_adapters(tiny_model)
    torch.testing.assert_close(tiny_model.get_submodule(name).weight, total)


def test_scale_and_names() -> None:
    config = LoraConfig(rank=16, alpha=8.0)
    assert config.scale == 0.5
    assert config.model_copy(update={"rank_stabilised": True}).scale == 2.0
    lora = Lora(6, 4, config, torch.device("cpu"))
    assert {name: tuple(p.shape) for name, p in lora.named_parameters()} == {
        "down.weight": (16, 6),
        "up.weight": (4, 16),
    }


def test_targets_choose_layers(tiny_model) -> None:
    add_adapters(tiny_model, LoraConfig(rank=1, targets=("decoder.layers.1.*.k_proj", "up_proj")))
    found = {name for name, module in tiny_model.named_modules() if isinstance(module, LoraLinear)}
    names = [name for name, _ in tiny_model.named_modules()]
    keys = {name for name in names if name.startswith("decoder.layers.1.") and name.endswith("k_proj")}
    assert found == keys | {name for name in names if name.endswith("up_proj")}


def test_a_target_that_names_nothing_is_refused(tiny_model) -> None:
    with pytest.raises(ConfigError, match=r"'query' names no linear layer; adapter.targets; there are .*q_proj"):
        add_adapters(tiny_model, LoraConfig(targets=("query",)))


@pytest.mark.parametrize("kind", [None, "int8"])
def test_machine_code_does_not_pass_over_it(tiny_model, kind) -> None:
    if kind:
        quantize_model(tiny_model, kind)
    adapted(tiny_model, LoraConfig(rank=1))
    with pytest.raises(UnavailableError, match="Lora"):
        PackedModel(tiny_model, library=None)


def test_it_is_dropped_out_while_training(tiny_model, tiny_batch) -> None:
    model = adapted(tiny_model, LoraConfig(rank=2, dropout=0.5)).train()
    with adapters_off(model):
        assert torch.equal(logits(model, tiny_batch), logits(model, tiny_batch))
    assert not torch.equal(logits(model, tiny_batch), logits(model, tiny_batch))
    model.eval()
    assert torch.equal(logits(model, tiny_batch), logits(model, replace(tiny_batch)))
