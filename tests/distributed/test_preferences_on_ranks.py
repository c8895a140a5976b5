"""Pairs of answers on two ranks: the table is that of all pairs, and steps are those of one rank."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from txtgen.commands.running.reference import reference_table
from txtgen.commands.running.weights import begin, place, read_once
from txtgen.config.model import DecoderConfig
from txtgen.config.objectives import DpoObjective
from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
from txtgen.data.types import IGNORE, Batch, Origin
from txtgen.distributed import World, reshard
from txtgen.model import build_model
from txtgen.train import PreferenceLoss, ReferenceTable, TrainState, build_optimizer, pair_logprobs, train

MODEL = DecoderConfig(num_layers=2, d_model=16, num_heads=2, d_ff=24, max_length=8, vocab_size=13)
ROWS = 5
"""Not a multiple of two."""


def pairs(number: int, world: World) -> Batch:
    """A rank's rows of a global batch: two answers of six and of four tokens, the last one padded."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(4, 13, (ROWS, 10), generator=generator)
    labels = torch.randint(4, 13, (ROWS, 10), generator=generator)
    labels[:, 0] = labels[:, 6] = labels[-1, 8:] = IGNORE
    segments = torch.tensor([1] * 6 + [2] * 4, dtype=torch.int32).repeat(ROWS, 1)
    segments[-1, 8:] = 0
    mine = slice(world.rank, None, world.size)
    return Batch(
        input_ids=ids[mine],
        labels=labels[mine],
        positions=torch.tensor([*range(6), *range(4)]).repeat(ROWS, 1)[mine],
        segment_ids=segments[mine],
        separate=True,
        origins=tuple((Origin(0, "pairs.jsonl", 10 * number + row),) for row in range(ROWS))[mine],
    )


def learn(world: World, sharding: str) -> dict[str, Any]:
    model = build_model(MODEL, device="meta")
    place(model, sharding, torch.device("cpu"), world)
    begin(model, seed=1)
    batches = [pairs(number, world) for number in range(3)]
    table = ReferenceTable.of([(batch, pair_logprobs(model, batch)) for batch in batches], world)
    reshard(model)
    state = TrainState(model, build_optimizer(model, AdamWConfig(learning_rate=0.01)))
    config = TrainConfig(steps=3, schedule=ConstantSchedule(), micro_batch_tokens=20)
    steps = train(state, table.attach(batches), config, world=world, loss=PreferenceLoss(DpoObjective(beta=0.5)))
    reports = list(steps)
    told = [[report.loss, report.grad_norm, *report.told.values()] for report in reports]
    return {"table": table.logprobs, "keys": table.keys, "told": told, "counts": [report.count for report in reports]}


def resume(world: World, state: dict[str, Any]) -> dict[str, Any]:
    data = SimpleNamespace(objective=DpoObjective())
    resumed = read_once(lambda: {"reference": state}, world)
    job = SimpleNamespace(config=SimpleNamespace(data=data), has_base_within=False, resumed=resumed, world=world)
    return reference_table(job, None).state()


def test_ranks_that_resume_have_the_whole_table(ranks) -> None:
    state = {"keys": torch.arange(3), "logprobs": torch.randn(3, 2)}
    for found in ranks.run(resume, state):
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_ranks_learn_what_one_learns(ranks, sharding) -> None:
    one = learn(World(), "replicate")
    for found in ranks.run(learn, sharding):
        assert found["counts"] == one["counts"] == [ROWS] * 3
        assert found["keys"].tolist() == one["keys"].tolist()
        assert found["table"] == pytest.approx(one["table"], abs=1e-4)
        for ours, theirs in zip(found["told"], one["told"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
