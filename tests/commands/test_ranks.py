"""Two ranks learn what one rank learns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run


def on_two_ranks(*arguments: str) -> None:
    """Run a command of txtgen on two ranks, by torchrun."""
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "txtgen", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def losses(name: str) -> list[float]:
    lines = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line] + [
        line["val_loss"] for line in lines if "val_loss" in line
    ]


@pytest.mark.slow
def test_ranks_and_sharding_change_between_resumes(workshop) -> None:
    arguments = [
        "decoder.yaml",
        "--dtype",
        "float32",
        "--set",
        "model.dropout=0.0",
        "--set",
        "train.schedule.kind=constant",
    ]
    assert run(["pretrain", *arguments, "--name", "one", "--steps", "6"]) == 0
    assert run(["pretrain", *arguments, "--name", "many", "--steps", "2"]) == 0
    command = [sys.executable, "-m", "txtgen", "pretrain", *arguments, "--name", "many", "--resume"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for steps, settings in (("3", ["--set", "train.sharding=shard"]), ("4", [])):
        subprocess.run([*command, "--steps", steps, "--nproc", "2", *settings], env=environment, check=True)
    assert run(["pretrain", *arguments, "--name", "many", "--resume", "--steps", "6"]) == 0
    lines = [json.loads(line) for line in Path("runs/many/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    straight = [json.loads(line) for line in Path("runs/one/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(
        [line["loss"] for line in straight if "loss" in line], rel=1e-4
    )


@pytest.mark.parametrize("config", ["decoder", pytest.param("translator", marks=pytest.mark.slow)])
def test_two_ranks_equal_one(workshop, config) -> None:
    arguments = ["pretrain", f"{config}.yaml", "--dtype", "float32", "--set", "model.dropout=0.0"]
    arguments += ["--set", "train.save_every=2", "--steps", "3"]
    assert run([*arguments, "--name", "one"]) == 0
    on_two_ranks(*arguments, "--name", "two")
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)
    one, two = (load_checkpoint(Path(f"runs/{name}/last.pth"), training=True) for name in ("one", "two"))
    assert two.lineage["world_size"] == 2
    assert two.training["bookmark"] == one.training["bookmark"]
    for name in one.model:
        torch.testing.assert_close(two.model[name], one.model[name], rtol=1e-3, atol=2e-4)
    # What two ranks began, one rank goes on with.
    assert run(["pretrain", "--resume", "--name", "two", "--steps", "4"]) == 0
    assert run(["pretrain", "--resume", "--name", "one", "--steps", "4"]) == 0
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["decoder", "translator"])
def test_the_number_of_ranks_and_workers_may_change_on_the_way(workshop, config) -> None:
    """One rank, then two, then one: after every step the place in the data of one rank alone, and its losses."""
    arguments = ["pretrain", f"{config}.yaml", "--dtype", "float32", "--set", "model.dropout=0.0"]
    arguments += ["--set", "train.validation_metric=loss", "--set", "train.schedule={kind: constant}"]
    arguments += ["--set", "train.save_every=1", "--set", "train.keep_last=9", "--set", "train.validate_every=1"]
    assert run([*arguments, "--name", "one", "--steps", "6"]) == 0
    assert run([*arguments, "--name", "changing", "--steps", "2"]) == 0
    again = [*arguments, "--name", "changing", "--resume"]
    on_two_ranks(*again, "--steps", "4", "--set", "data.workers=1")
    assert run([*again, "--steps", "6", "--set", "data.workers=2"]) == 0
    worlds = []
    for step in range(1, 7):
        one, other = (
            load_checkpoint(Path(f"runs/{name}/checkpoints/step-{step:08d}.pth"), training=True)
            for name in ("one", "changing")
        )
        assert one.training["bookmark"] == other.training["bookmark"], step
        assert one.training["tokens"] == other.training["tokens"]
        worlds.append(other.lineage["world_size"])
    assert worlds == [1, 1, 2, 2, 1, 1]
    assert losses("changing") == pytest.approx(losses("one"), rel=1e-4)


@pytest.mark.slow
def test_ranks_that_share_the_weights_average_like_one(workshop) -> None:
    """The average is spread over the ranks as the weights are, and one rank goes on with it."""
    arguments = ["pretrain", "decoder.yaml", "--dtype", "float32", "--set", "model.dropout=0.0", "--steps", "3"]
    arguments += ["--set", "train.ema_decay=0.5", "--set", "train.schedule={kind: constant}"]
    assert run([*arguments, "--name", "one"]) == 0
    on_two_ranks(*arguments, "--name", "two", "--set", "train.sharding=shard")
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)
    one, two = (load_checkpoint(Path(f"runs/{name}/last.pth"), training=True) for name in ("one", "two"))
    for name in one.model:
        torch.testing.assert_close(two.model[name], one.model[name], rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(two.training["weights"][name], one.training["weights"][name], rtol=1e-3, atol=2e-4)
    for name in ("one", "two"):
        assert run(["pretrain", "--resume", "--name", name, "--steps", "5"]) == 0
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [[], ["--set", "adapter={rank: 2}"]])
def test_ranks_that_share_the_weights_measure_the_distance_like_one(workshop, trained, adapter) -> None:
    arguments = ["finetune", "chats.jsonl", "--base", str(trained / "runs" / "decoder"), "--steps", "3", *adapter]
    arguments += ["--dtype", "float32", "--set", "dropout=0.0", "--set", "data.validation.fraction=0.2"]
    arguments += ["--set", "train.optimizer.learning_rate=0.01", "--set", "train.validate_every=3"]
    assert run([*arguments, "--name", "one"]) == 0
    on_two_ranks(*arguments, "--name", "two", "--set", "train.sharding=shard")
    one, two = (
        next(
            line
            for line in map(json.loads, Path(f"runs/{name}/metrics.jsonl").read_text().splitlines())
            if "distance" in line
        )
        for name in ("one", "two")
    )
    names = {name for name in one if name.startswith("distance")}
    assert {"distance", "distance_attention", "distance_embedding"} <= names <= set(two)
    assert {name: two[name] for name in names} == pytest.approx({name: one[name] for name in names}, rel=1e-3)
    assert one["distance"] > 0
