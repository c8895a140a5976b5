import copy

import pytest
import torch
from tiny_models import ARCHITECTURES, logits_of, random_ids, source_for, tiny_model

from txtgen.model.quantize import BLOCK, QuantizedLinear, dequantize, quantize, quantize_model

every_kind = pytest.mark.parametrize("kind", ["int8", "int4"])
# Half a step of a block's largest weight, and what the scale loses in bfloat16.
STEPS = {"int8": 0.51 / 127, "int4": 1.01 / 8}


def matrix(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-4, 2, rows)[:, None]
    return torch.randn(rows, width, generator=random) * sizes


@every_kind
@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 77])
def test_no_weight_moves_by_more_than_its_block_allows(kind, width):
    weight = matrix(9, width)
    codes, scale = quantize(weight, kind)
    assert scale.shape == (9, -(-width // BLOCK))
    assert codes.shape == ((9, width) if kind == "int8" else (9, -(-width // 2)))
    moved = (dequantize(codes, scale, width) - weight).abs()
    for start in range(0, width, BLOCK):
        block = slice(start, start + BLOCK)
        largest = weight[:, block].abs().amax(-1, keepdim=True)
        assert (moved[:, block] <= largest * STEPS[kind]).all()


@every_kind
def test_rows_are_quantised_alike_however_many_at_a_time(monkeypatch, kind):
    weight = matrix(23, 45)
    whole = quantize(weight, kind)
    for at_once in (1, 45, 5 * 45 + 7, 22 * 45):
        monkeypatch.setattr("txtgen.model.quantize.WEIGHTS_AT_ONCE", at_once)
        parts = quantize(weight, kind)
        assert torch.equal(parts.codes, whole.codes)
        assert torch.equal(parts.scale, whole.scale)


@every_kind
def test_what_is_on_the_grid_stays_as_it_is(kind):
    low, high = (-127, 127) if kind == "int8" else (-8, 7)
    whole = torch.randint(low, high + 1, (5, 70), generator=torch.Generator().manual_seed(0)).float()
    whole[:, ::BLOCK] = low
    weight = whole * torch.tensor([[2.0], [0.5], [2.0**-40], [1.0], [2.0**30]])
    assert torch.equal(dequantize(*quantize(weight, kind), 70), weight)


@every_kind
def test_blocks_of_zeros_stay_zero(kind):
    codes, scale = quantize(torch.zeros(3, 40), kind)
    assert torch.equal(dequantize(codes, scale, 40), torch.zeros(3, 40))
    assert torch.equal(scale, torch.ones(3, 2))


def test_two_codes_stand_in_a_byte_the_earlier_one_low():
    codes, scale = quantize(torch.tensor([[-8.0, 7.0, 0.0]]), "int4")
    assert codes.tolist() == [[0x0 | 0xF << 4, 0x8 | 0x8 << 4]]
    assert scale.tolist() == [[1.0]]


@every_kind
def test_scales_survive_bfloat16(kind):
    scale = quantize(matrix(50, 100), kind).scale
    assert torch.equal(scale, scale.bfloat16().float())


@every_kind
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_model_is_the_model_with_its_rounded_weights(architecture, kind, tied):
    options = {"tie_embeddings": tied, "gated": True, "num_ffn_hidden_layers": 2}
    model = tiny_model(architecture, "learned", **options)
    rounded, quantised = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if weight.dim() == 2 and "position" not in name:
                weight.copy_(dequantize(*quantize(weight, kind), weight.shape[1]))
    quantize_model(quantised, kind)
    ids, source = random_ids(3, 7), source_for(model, 3)
    exact = logits_of(rounded, ids, **source)
    assert torch.equal(logits_of(quantised, ids, **source), exact)
    assert not torch.equal(exact, logits_of(model, ids, **source))
    assert quantised.compute_dtype == torch.float64


@every_kind
def test_it_follows_the_dtype_of_the_model(kind):
    model = tiny_model("decoder", "rotary").float()
    quantize_model(model, kind)
    table = model.token_embedding
    before, codes = table.weight, table.codes
    assert logits_of(model.bfloat16(), random_ids(2, 5)).dtype == torch.bfloat16
    assert table.codes is codes
    assert table.weight.dtype == torch.bfloat16
    assert torch.equal(model.float().token_embedding.weight, before)


def test_names_and_biases_stay():
    model = tiny_model("encoder_decoder", "learned")
    bias = model.decoder.layers[0].self_attention.q_proj.bias
    quantize_model(model, "int4")
    proj = model.decoder.layers[0].self_attention.q_proj
    assert isinstance(proj, QuantizedLinear)
    assert proj.bias is bias
    names = set(model.state_dict())
    wanted = {"token_embedding", "decoder.layers.1.cross_attention.o_proj", "encoder.layers.0.feed_forward.up_proj"}
    assert {f"{name}.{part}" for name in wanted for part in ("codes", "scale")} <= names
    assert "position_embedding.weight" in names
