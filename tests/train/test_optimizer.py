import copy
from itertools import repeat

import pytest
import torch

from txtgen.config.train import AdamWConfig, ConstantSchedule, MuonConfig, TrainConfig
from txtgen.errors import CheckpointError
from txtgen.train import TrainState, build_optimizer, train
from txtgen.train.adamw import AdamW
from txtgen.train.muon import NEWTON_SCHULZ, Muon, orthogonalised
from txtgen.train.stepping import Stepping


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 5, 8)])
def test_orthogonalised_keeps_singular_vectors_and_evens_out_singular_values(shape) -> None:
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ found @ vh.mT
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(inner, torch.diag_embed(diagonal), rtol=0, atol=1e-4)
    assert diagonal.min() > 0.5
    assert diagonal.max() < 1.3


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 15), (3, 8, 16), (3, 40, 8), (24, 96)])
def test_every_way_to_orthogonalise_is_the_published_iteration(shape) -> None:
    """Also of matrices whose singular values span six powers of ten."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64, generator=generator) * torch.logspace(0, -6, shape[-1])
    x = matrices.mT if shape[-2] > shape[-1] else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    expected = x.mT if shape[-2] > shape[-1] else x
    torch.testing.assert_close(orthogonalised(matrices), expected, rtol=0, atol=2e-3 * expected.abs().max().item())


def test_a_step_is_the_published_one() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in ((5, 3), (3, 5), (5, 3))]
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = Muon([{"params": parameters, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}])
    momenta = [torch.zeros_like(weight) for weight in weights]
    for _ in range(3):
        for number, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.clone()
            momenta[number] = 0.9 * momenta[number] + 0.1 * gradient
            update = orthogonalised(0.1 * gradient + 0.9 * momenta[number])
            length = 0.1 * max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            weights[number] = weights[number] * (1 - 0.1 * 0.5) - length * update
        optimizer.step()
    for weight, parameter in zip(weights, parameters, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-4, atol=1e-5)


def test_adamw_is_torchs_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (7,), (64, 65), ())
    ours, theirs = (
        [torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))) for shape in shapes]
        for _ in range(2)
    )
    settings = {"betas": (0.9, 0.95), "eps": 1e-8}
    groups = [(slice(0, 2), 0.1), (slice(2, 4), 0.0)]
    own = AdamW([{"params": ours[part], "lr": 0.01, "weight_decay": decay, **settings} for part, decay in groups])
    oracle = torch.optim.AdamW(
        [{"params": theirs[part], "weight_decay": decay} for part, decay in groups], lr=0.01, fused=True, **settings
    )
    for step in range(6):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        if step == 3:
            ours[1].grad = theirs[1].grad = None
        found_inf = torch.tensor(float(step == 4))
        oracle.found_inf = found_inf
        own.step(found_inf)
        oracle.step()
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
            torch.testing.assert_close(own.state[one], dict(oracle.state[other]), rtol=0, atol=0)


def test_a_weight_without_a_gradient_stays(tiny_model) -> None:
    optimizer = build_optimizer(tiny_model, MuonConfig(weight_decay=0.5))
    before = copy.deepcopy(tiny_model.state_dict())
    optimizer.step(1.0)
    assert all(torch.equal(before[name], weight) for name, weight in tiny_model.state_dict().items())


def test_muon_takes_the_linear_layers_of_blocks_and_adamw_the_rest(tiny_model) -> None:
    optimizer = build_optimizer(tiny_model, MuonConfig())
    taken = {name: {id(p) for group in part.groups for p in group["params"]} for name, part in optimizer.parts.items()}
    for name, parameter in tiny_model.named_parameters():
        inner = name.endswith("_proj.weight")
        assert (id(parameter) in taken["muon"]) == inner, name
        assert (id(parameter) in taken["adamw"]) == (not inner), name
    tiny_model.requires_grad_(False)
    tiny_model.token_embedding.requires_grad_(True)
    assert list(build_optimizer(tiny_model, MuonConfig()).parts) == ["adamw"]


def test_an_output_layer_of_its_own_is_not_muons() -> None:
    from txtgen.config.model import DecoderConfig
    from txtgen.model import build_model

    model = build_model(DecoderConfig(vocab_size=9, d_model=8, num_layers=1, num_heads=2, tie_embeddings=False))
    muon = build_optimizer(model, MuonConfig()).parts["muon"]
    assert id(model.lm_head.weight) not in {id(p) for group in muon.groups for p in group["params"]}


@pytest.mark.parametrize(
    "config",
    [AdamWConfig(learning_rate=0.02), MuonConfig(adamw=AdamWConfig(learning_rate=0.02))],
    ids=lambda config: config.kind,
)
def test_learns_and_goes_on_exactly(tiny_model, tiny_batch, config) -> None:
    settings = TrainConfig(steps=20, schedule=ConstantSchedule(), optimizer=config)
    twin = copy.deepcopy(tiny_model)
    state = TrainState(tiny_model, build_optimizer(tiny_model, config))
    straight = [report.loss for report in train(state, repeat(tiny_batch), settings)]
    assert straight[-1] < 0.7 * straight[0]
    first = TrainState(twin, build_optimizer(twin, config))
    steps = train(first, repeat(tiny_batch), settings)
    losses = [next(steps).loss for _ in range(9)]
    again = TrainState(copy.deepcopy(twin), build_optimizer(twin, config), step=9)
    again.optimizer = build_optimizer(again.model, config)
    again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    losses += [report.loss for report in train(again, repeat(tiny_batch), settings)]
    assert losses == straight


def numbered(part: Stepping) -> dict:
    """The state of a part as torch's optimizers save it."""
    return {
        "state": {number: part.state[parameter] for number, parameter in enumerate(part.parameters)},
        "param_groups": [{"params": list(range(len(part.parameters)))}],
    }


def test_the_state_of_a_run_that_knew_adamw_only_is_read(tiny_model, tiny_batch) -> None:
    config = AdamWConfig(learning_rate=0.02)
    state = TrainState(tiny_model, build_optimizer(tiny_model, config))
    list(train(state, repeat(tiny_batch), TrainConfig(steps=2)))
    again = build_optimizer(tiny_model, config)
    again.load_state_dict(numbered(state.optimizer.parts["adamw"]))
    torch.testing.assert_close(again.state_dict(), state.optimizer.state_dict())


def test_numbered_states_of_older_checkpoints_are_read(tiny_model, tiny_batch) -> None:
    config = MuonConfig(learning_rate=0.01, adamw=AdamWConfig(learning_rate=0.02))
    state = TrainState(tiny_model, build_optimizer(tiny_model, config))
    list(train(state, repeat(tiny_batch), TrainConfig(steps=2)))
    saved = {name: numbered(part) for name, part in state.optimizer.parts.items()}
    again = build_optimizer(tiny_model, config)
    again.load_state_dict(saved)
    torch.testing.assert_close(again.state_dict(), state.optimizer.state_dict())
    tiny_model.token_embedding.requires_grad_(False)
    with pytest.raises(CheckpointError, match="old freeze"):
        build_optimizer(tiny_model, config).load_state_dict(saved)


def test_the_config_decides_on_rates_and_the_state_on_moments(tiny_model, tiny_batch) -> None:
    old, new = (
        MuonConfig(learning_rate=0.01, momentum=0.9, adamw=AdamWConfig(learning_rate=0.02)),
        MuonConfig(
            learning_rate=0.03, momentum=0.8, weight_decay=0.3, adamw=AdamWConfig(beta2=0.5, eps=1e-3, weight_decay=0.7)
        ),
    )
    state = TrainState(tiny_model, build_optimizer(tiny_model, old))
    list(train(state, repeat(tiny_batch), TrainConfig(steps=2)))
    saved = copy.deepcopy(state.optimizer.state_dict())
    again, fresh = (build_optimizer(tiny_model, new) for _ in range(2))
    again.load_state_dict(saved)
    torch.testing.assert_close(again.state_dict(), saved)
    for ours, theirs in zip(again.groups(), fresh.groups(), strict=True):
        assert {**ours, "params": 0} == {**theirs, "params": 0}


def test_parameters_may_be_frozen_and_thawed_on_the_way(tiny_model, tiny_batch) -> None:
    config = AdamWConfig(learning_rate=0.02)
    tiny_model.token_embedding.requires_grad_(False)
    state = TrainState(tiny_model, build_optimizer(tiny_model, config))
    list(train(state, repeat(tiny_batch), TrainConfig(steps=2)))
    saved = copy.deepcopy(state.optimizer.state_dict())
    tiny_model.requires_grad_(False)
    tiny_model.token_embedding.requires_grad_(True)
    tiny_model.decoder.layers[0].requires_grad_(True)
    again = TrainState(tiny_model, build_optimizer(tiny_model, config), step=2)
    again.optimizer.load_state_dict(saved)
    found = again.optimizer.state_dict()["adamw"]
    assert found["token_embedding.weight"] == {}
    kept = [name for name in found if name.startswith("decoder.layers.0.")]
    torch.testing.assert_close([found[name] for name in kept], [saved["adamw"][name] for name in kept])
    before = tiny_model.token_embedding.weight.clone()
    list(train(again, repeat(tiny_batch), TrainConfig(steps=3)))
    assert not torch.equal(tiny_model.token_embedding.weight, before)


def test_both_learning_rates_follow_the_schedule(tiny_model) -> None:
    optimizer = build_optimizer(tiny_model, MuonConfig(learning_rate=0.04, adamw=AdamWConfig(learning_rate=0.002)))
    optimizer.step(0.5)
    rates = {name: {group["lr"] for group in part.groups} for name, part in optimizer.parts.items()}
    assert rates == {"muon": {0.02}, "adamw": {0.001}}
    assert optimizer.learning_rate == 0.02


@pytest.mark.parametrize(
    "forge",
    [
        lambda moment: moment.flatten()[:1],
        lambda moment: moment.double(),
        lambda moment: moment[:1, :1].expand(moment.shape),
        lambda moment: moment.T.contiguous().T,
        lambda moment: [1.0],
    ],
    ids=["short", "double", "expanded", "transposed", "list"],
)
def test_a_state_that_does_not_fit_is_refused(tiny_model, tiny_batch, forge) -> None:
    """Fused optimizers would read and write past its end."""
    config = AdamWConfig(learning_rate=0.02)
    state = TrainState(tiny_model, build_optimizer(tiny_model, config))
    list(train(state, repeat(tiny_batch), TrainConfig(steps=2)))
    saved = copy.deepcopy(state.optimizer.state_dict())
    moments = saved["adamw"]["decoder.layers.0.feed_forward.up_proj.weight"]
    moments["exp_avg"] = forge(moments["exp_avg"])
    with pytest.raises(CheckpointError, match=r"exp_avg of decoder\.layers\.0"):
        build_optimizer(tiny_model, config).load_state_dict(saved)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_rates_fall_from_layer_to_layer(tiny_model, tiny_batch, kind) -> None:
    """Of a first step of AdamW that has no weight decay, every weight moves by its rate, so what moved tells it."""
    adamw = {"learning_rate": 0.01, "weight_decay": 0.0, "eps": 1e-30}
    if kind == "adamw":
        config = AdamWConfig(layer_decay=0.5, **adamw)
    else:
        config = MuonConfig(layer_decay=0.5, learning_rate=0.1, adamw=AdamWConfig(**adamw))
    optimizer = build_optimizer(tiny_model, config)
    names = {parameter: name for name, parameter in tiny_model.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.groups() for p in group["params"]}
    assert rates.keys() == {*names.values()}
    for name, rate in rates.items():
        full = 0.1 if kind == "muon" and "_proj.weight" in name else 0.01
        lower = {"decoder.layers.0": 0.5, "token_embeddi": 0.25}  # two layers; the encoder has one
        assert rate == full * next((share for start, share in lower.items() if name.startswith(start)), 1.0), name
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.named_parameters()}
    config = TrainConfig(steps=1, schedule=ConstantSchedule(), optimizer=config, compile=False, clip_norm=None)
    assert len(list(train(TrainState(tiny_model, optimizer), repeat(tiny_batch), config))) == 1
    for name, parameter in tiny_model.named_parameters():
        if name.endswith("norm.weight"):
            moved = (parameter.detach() - before[name]).abs()
            torch.testing.assert_close(
                moved[moved > 0], torch.full_like(moved[moved > 0], rates[name]), rtol=1e-3, atol=0
            )


def test_decay_is_said_once() -> None:
    with pytest.raises(ValueError, match=r"adamw\.layer_decay"):
        MuonConfig(adamw=AdamWConfig(layer_decay=0.5))
