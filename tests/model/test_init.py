import math

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_config

from txtgen.model import build_model, init_weights, initial_weight


def initialised(seed: int = 7, **options):
    model = build_model(tiny_config(**options))
    init_weights(model, seed)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_seed_decides_everything(architecture):
    torch.manual_seed(1)
    one = initialised(architecture=architecture).state_dict()
    torch.manual_seed(2)
    torch.rand(5)
    two = initialised(architecture=architecture).state_dict()
    other = initialised(architecture=architecture, seed=8).state_dict()
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name
        constant = name.endswith(("bias", "norm.weight"))
        assert torch.equal(weight, other[name]) == constant, name


def test_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    initialised()
    assert torch.equal(before, torch.get_rng_state())


def test_a_weight_depends_on_its_name_alone():
    shallow, deep = initialised(num_layers=1, zero_init_projections=True), initialised(num_layers=3)
    name = "decoder.layers.0.self_attention.q_proj.weight"
    assert torch.equal(shallow.state_dict()[name], deep.state_dict()[name])
    assert torch.equal(deep.state_dict()[name], initial_weight(deep.config, name, torch.Size((16, 16)), 7))
    twin = deep.state_dict()["decoder.layers.1.self_attention.q_proj.weight"]
    assert not torch.equal(twin, deep.state_dict()[name])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spread(architecture):
    model = initialised(architecture=architecture, position="learned", d_model=64, init_std=0.05, tie_embeddings=False)
    for name, weight in model.state_dict().items():
        if name.endswith("norm.weight"):
            assert (weight == 1.0).all()
        elif name.endswith("bias"):
            assert (weight == 0.0).all()
        else:
            expected = 0.05
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                expected /= math.sqrt(2 * 2)
            assert weight.std().item() == pytest.approx(expected, rel=0.15), name
            assert abs(weight.mean().item()) < 0.15 * expected, name


def test_zero_projections_make_each_block_the_identity():
    model = initialised(zero_init_projections=True, position="none")
    for name, weight in model.state_dict().items():
        assert (weight == 0.0).all() == name.endswith(("bias", "o_proj.weight", "down_proj.weight")), name
    ids = torch.arange(6)[None]
    hidden = model.eval().hidden(ids, ids, torch.ones(1, 6))
    torch.testing.assert_close(hidden, model.decoder.final_norm(model.token_embedding(ids)))


def test_scaled_embeddings_start_at_unit_scale():
    model = initialised(scale_embeddings=True, d_model=64, vocab_size=500)
    assert (model.token_embedding.weight * 8.0).std().item() == pytest.approx(1.0, rel=0.05)


def test_logits_start_near_a_uniform_guess():
    model = initialised(d_model=64, vocab_size=500).eval()
    ids = torch.arange(20)[None]
    loss = -model(ids, ids, torch.ones(1, 20)).log_softmax(-1).mean().item()
    assert loss == pytest.approx(math.log(500), rel=0.02)
