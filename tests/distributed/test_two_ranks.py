"""What two ranks compute together is what one computes: losses, gradients, weights, and the state that is saved."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from txtgen.commands.running.weights import begin, place
from txtgen.config.decoding import BeamConfig, ContrastiveConfig
from txtgen.config.model import DecoderConfig, EncoderDecoderConfig, ModelConfig, RotaryPosition
from txtgen.config.train import AdamWConfig, ConstantSchedule, MuonConfig, TrainConfig
from txtgen.data.types import IGNORE, Batch
from txtgen.decode import PromptBatch, search
from txtgen.distributed import (
    World,
    gathered,
    is_sharded,
    local,
    of_whole_matrices,
    reshard,
    share_out,
)
from txtgen.evaluate import evaluate_loss
from txtgen.model import Transformer, build_model
from txtgen.train import TrainState, build_optimizer, estimate_memory, train
from txtgen.train.estimate import MemoryEstimate

SIZE = {"d_model": 16, "num_heads": 2, "d_ff": 24, "max_length": 16, "vocab_size": 13}
MODELS: dict[str, ModelConfig] = {
    "tied": DecoderConfig(num_layers=2, **SIZE),
    "untied": DecoderConfig(num_layers=1, tie_embeddings=False, output_bias=True, position=RotaryPosition(), **SIZE),
    "pairs": EncoderDecoderConfig(
        num_encoder_layers=1, num_decoder_layers=1, source_vocab_size=13, max_source_length=16, **SIZE
    ),
}
OPTIMIZERS = {
    "adamw": AdamWConfig(learning_rate=0.01),
    "muon": MuonConfig(learning_rate=0.02, adamw=AdamWConfig(learning_rate=0.01)),
}
ROWS = 5
"""Not a multiple of two: a rank has a row less, and a micro-batch less, than the other."""


def batch(number: int, pairs: bool, world: World) -> Batch:
    """A rank's rows of a global batch."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(4, 13, (ROWS, 8), generator=generator)
    labels = ids[:, 1:].clone()
    labels[-1, 4:] = IGNORE
    segments = torch.ones(ROWS, 7, dtype=torch.int32)
    segments[-1, 4:] = 0
    mask = torch.ones(ROWS, 5, dtype=torch.bool)
    mask[1, 3:] = False
    mine = slice(world.rank, None, world.size)
    return Batch(
        input_ids=ids[mine, :-1],
        labels=labels[mine],
        positions=torch.arange(7).expand(ROWS, 7)[mine],
        segment_ids=segments[mine],
        source_ids=torch.randint(4, 13, (ROWS, 5), generator=generator)[mine] if pairs else None,
        source_mask=mask[mine] if pairs else None,
    )


def new_model(world: World, name: str, sharding: str, frozen: bool = False) -> Transformer:
    model = build_model(MODELS[name], device="meta")
    model.token_embedding.weight.requires_grad_(not frozen)
    place(model, sharding, torch.device("cpu"), world)
    begin(model, seed=1)
    return model


def whole(model: Transformer) -> dict[str, Tensor]:
    reshard(model)
    return {name: gathered(weight.detach()).clone() for name, weight in model.named_parameters()}


def learn(
    world: World, name: str, sharding: str, optimizer: str, steps: int = 3, frozen: bool = False, **changes: Any
) -> dict[str, Any]:
    """Train for a few steps; the losses, the norms, the weights, and the optimizer's state as rank 0 would save it."""
    model = new_model(world, name, sharding, frozen)
    state = TrainState(model, build_optimizer(model, OPTIMIZERS[optimizer]))
    config = TrainConfig(**{"steps": steps, "schedule": ConstantSchedule(), "clip_norm": 0.3, **changes})
    batches = (batch(number, name == "pairs", world) for number in itertools.count())
    reports = list(train(state, batches, config, world=world))
    return {
        "losses": [report.loss for report in reports],
        "norms": [report.grad_norm for report in reports],
        "weights": whole(model),
        "optimizer": saved(state),
        "held": sum(local(parameter).numel() for parameter in model.parameters()),
    }


def saved(state: TrainState) -> Any:
    return {
        part: {name: {key: gathered(value).clone() for key, value in entry.items()} for name, entry in entries.items()}
        for part, entries in state.optimizer.state_dict().items()
    }


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_learn_what_one_learns(ranks, name, optimizer, sharding) -> None:
    one = learn(World(), name, "replicate", optimizer, 2)
    first, second = ranks.run(learn, name, sharding, optimizer, 2)
    assert_alike(first, one)
    assert second["losses"] == first["losses"]
    share = sum(weight.numel() for weight in one["weights"].values()) * (1 if sharding == "replicate" else 0.6)
    assert first["held"] <= share


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_micro_batches_and_frozen_weights(ranks, sharding) -> None:
    one = learn(World(), "pairs", "replicate", "muon", frozen=True)
    settings = {"micro_batch_tokens": 14, "frozen": True}
    first, _ = ranks.run(learn_with, "pairs", sharding, "muon", settings)
    assert_alike(first, one)
    before = new_model(World(), "pairs", "replicate").token_embedding.weight
    assert torch.equal(first["weights"]["token_embedding.weight"], before)


def learn_with(world: World, name: str, sharding: str, optimizer: str, settings: dict[str, Any]) -> dict[str, Any]:
    return learn(world, name, sharding, optimizer, **settings)


def go_on(world: World, name: str, sharding: str, optimizer: str, saved_weights: Any, saved_state: Any) -> Any:
    """Two more steps, from a state whose data only rank 0 has."""
    saved_state = copy.deepcopy(saved_state)  # the optimizer takes the tensors themselves
    if not world.is_main:
        saved_weights = {key: weight.to("meta") for key, weight in saved_weights.items()}
        for entries in saved_state.values():
            for entry in entries.values():
                entry.update({key: value.to("meta") for key, value in entry.items()})
    model = new_model(world, name, sharding)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(share_out(saved_weights[key], parameter, world))
    state = TrainState(model, build_optimizer(model, OPTIMIZERS[optimizer]), step=3)
    state.optimizer.load_state_dict(saved_state, world)
    settings = TrainConfig(steps=5, schedule=ConstantSchedule(), clip_norm=0.3)
    batches = (batch(number, name == "pairs", world) for number in itertools.count(3))
    reports = list(train(state, batches, settings, world=world))
    return {
        "losses": [report.loss for report in reports],
        "norms": [report.grad_norm for report in reports],
        "weights": whole(model),
        "optimizer": saved(state),
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_goes_on_with_other_ranks_and_sharding(ranks, optimizer) -> None:
    """Any state is whole on rank 0, and any world takes it up."""
    straight = learn(World(), "tied", "replicate", optimizer, steps=5)
    sharded = ranks.run(learn, "tied", "shard", optimizer)
    expected = {**straight, "losses": straight["losses"][3:], "norms": straight["norms"][3:]}
    alone = learn(World(), "tied", "replicate", optimizer)
    state = (sharded[0]["weights"], sharded[0]["optimizer"])
    assert_alike(go_on(World(), "tied", "replicate", optimizer, *state), expected)
    for begun, sharding in ((sharded[0], "replicate"), (alone, "shard")):
        first, _ = ranks.run(go_on, "tied", sharding, optimizer, begun["weights"], begun["optimizer"])
        assert_alike(first, expected)
        torch.testing.assert_close(first["optimizer"], straight["optimizer"], rtol=1e-3, atol=2e-4)


def estimate(world: World, name: str, sharding: str) -> MemoryEstimate:
    model = new_model(world, name, sharding)
    optimizer = build_optimizer(model, OPTIMIZERS["adamw"])
    return estimate_memory(model, optimizer, batch(0, name == "pairs", world), TrainConfig(), torch.float32)


@pytest.mark.parametrize("name", MODELS)
def test_memory_of_a_rank_is_told(ranks, name) -> None:
    """Ranks with all weights, or with half of them: what a pass keeps is that of their own rows."""
    whole, spread = (ranks.run(estimate, name, sharding) for sharding in ("replicate", "shard"))
    alone = estimate(World(), name, "replicate")
    for rank in (0, 1):
        assert whole[rank].weights == alone.weights
        assert whole[rank].gathered == 0
        assert spread[rank].weights == pytest.approx(alone.weights / 2, rel=0.1)
        assert spread[rank].optimizer == 2 * spread[rank].gradients == 2 * spread[rank].weights
        assert spread[rank].gathered == alone.weights  # it has no more than two layers
        assert spread[rank].activations == whole[rank].activations
        assert whole[rank].activations == pytest.approx(alone.activations * (3, 2)[rank] / ROWS, rel=0.1)


def measure(world: World, name: str, sharding: str, at_once: int | None = None) -> Any:
    """Loss and searches of a model before and after it learns: both need all ranks of a sharded one."""
    model = new_model(world, name, sharding)
    sources = batch(0, True, World())
    prompts = PromptBatch(
        torch.full((2, 1), 1), torch.ones(2, dtype=torch.int64), sources.source_ids[:2], sources.source_mask[:2]
    )
    results = []
    for _ in range(2):
        model.eval()
        loss = evaluate_loss(model, [batch(9, True, world)], world=world, max_tokens=at_once).loss
        for config in (BeamConfig(beam_size=2), ContrastiveConfig()):
            found = search(model, prompts, config, limits=[4, 4], eos_ids=(2,))
            results.append((loss, [[hypothesis.token_ids for hypothesis in group] for group in found]))
        state = TrainState(model, build_optimizer(model, OPTIMIZERS["adamw"]))
        list(train(state, itertools.repeat(batch(0, True, world)), TrainConfig(steps=2), world=world))
    return results, is_sharded(model)


@pytest.mark.parametrize("at_once", [None, 12], ids=["whole", "row_by_row"])
def test_measuring_and_searching_with_a_sharded_model(ranks, at_once) -> None:
    expected, _ = measure(World(), "pairs", "replicate")
    for found, sharded in ranks.run(measure, "pairs", "shard", at_once):
        assert sharded
        assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=1e-5)
    assert expected[0][0] != expected[-1][0]


def double_whole(world: World, rows: int, count: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world.size,))
    matrices = [torch.arange(rows * 3.0).view(rows, 3) + number for number in range(count)]
    spread = [distribute_tensor(matrix, mesh, [Shard(0)]) for matrix in matrices]
    seen: list[torch.Size] = []

    def function(matrix: Tensor) -> Tensor:
        seen.append(matrix.shape)
        return matrix.flip(0).cumsum(0)

    found = of_whole_matrices(function, [local(matrix) for matrix in spread], spread[0])
    expected = [distribute_tensor(function(matrix), mesh, [Shard(0)]) for matrix in matrices]
    same = all(torch.equal(ours, local(theirs)) for ours, theirs in zip(found, expected, strict=True))
    return same, len(seen) - count


@pytest.mark.parametrize(("rows", "count"), [(4, 4), (5, 3), (1, 1), (3, 2)])
def test_whole_matrices_are_computed_once_each(ranks, rows, count) -> None:
    results = ranks.run(double_whole, rows, count)
    assert all(same for same, _ in results)
    assert sum(computed for _, computed in results) == count


def values(world: World) -> Any:
    return (
        world.sum([1.0, float(world.rank)]),
        world.max(3 - world.rank),
        world.any(world.rank == 1),
        world.gather(f"rank {world.rank}"),
        world.from_main(lambda: {"made by": world.rank}),
    )


def test_values_of_all_ranks(ranks) -> None:
    assert ranks.run(values) == [([2.0, 1.0], 3, True, ["rank 0", "rank 1"], {"made by": 0})] * 2


def test_a_row_without_anything_to_learn() -> None:
    row = batch(0, True, World()).unscored()
    assert row.input_ids.shape == (1, 7)
    assert row.num_scored == 0
