"""A dry run says what a run would read, hold, write and take, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from txtgen.cli import run
from txtgen.commands.running import outlook, probe
from txtgen.commands.running.outlook import times
from txtgen.commands.running.probe import StepTimes
from txtgen.commands.running.retention import Retention


@pytest.fixture
def quick(monkeypatch) -> None:
    """Steps are timed by few."""
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(probe, "VALIDATION_SECONDS", 0.0)


def foretold(arguments: list[str], capfd) -> dict:
    capfd.readouterr()
    assert run([*arguments, "--dry-run", "--json"]) == 0
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize("config", ["decoder", "translator"])
def test_a_dry_run_keeps_nothing_and_foretells_the_run(workshop, trained, config, capfd, quick) -> None:
    before = sorted(path.name for path in workshop.iterdir())
    found = foretold(["pretrain", f"{config}.yaml"], capfd)
    assert sorted(path.name for path in workshop.iterdir()) == before
    assert list(found) == ["corpus", "parameters", "disk", "memory", "step", "time"]
    folder = trained / "runs" / config
    assert found["disk"]["checkpoint_bytes"] == pytest.approx((folder / "last.pth").stat().st_size, rel=0.15)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = max(line.get("tokens", 0) for line in metrics)
    sides = 1 if config == "decoder" else 2  # tokens of the source go through the model too
    assert found["step"]["tokens_in_all"] == pytest.approx(sides * scored, rel=0.5)
    memory, spent = found["memory"], found["time"]
    parts = {"weights", "gradients", "optimizer", "activations", "logits", "copy_to_save"}
    parts |= {"libraries"} if sys.platform == "linux" else set()
    told = {key.removesuffix("_bytes"): size for key, size in memory.items() if not key.startswith(("total", "meas"))}
    assert told.keys() == parts
    assert memory["total_bytes"] == sum(told.values())
    assert memory["weights_bytes"] == pytest.approx(4 * found["parameters"]["total"], rel=0.1)
    assert spent["total_seconds"] > found["step"]["steps"] * spent["step_seconds"] > 0


def test_a_dry_run_tells_of_the_vocabulary_that_was_found_and_of_nothing_that_is_not_done(
    workshop, capfd, quick
) -> None:
    """Of 2 KB of text no 4,000 pieces can be learnt."""
    asked = ["--set", "tokenizer.vocab_size=4000", "--set", "data.validation.fraction=0", "--set", "samples.prompts=[]"]
    found = foretold(["pretrain", "decoder.yaml", *asked], capfd)
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "1", *asked]) == 0
    about = json.loads(Path("runs/a/run.json").read_text())
    assert found["parameters"]["total"] == about["parameters"]["total"]
    assert about["tokenizer"]["vocabulary"] < 4000
    assert {"validation_seconds", "samples_seconds"}.isdisjoint(found["time"])


def test_a_dry_run_is_of_a_whole_run(workshop, trained, capfd) -> None:
    runs = ["--runs-path", str(trained / "runs")]
    assert run(["pretrain", "--resume", "--name", "decoder", *runs, "--dry-run"]) == 2
    assert "--dry-run --resume; leave one of them out" in capfd.readouterr().err


def test_a_dry_run_for_people_has_titles(workshop, capfd, quick) -> None:
    assert run(["pretrain", "decoder.yaml", "--dry-run"]) == 0
    out = capfd.readouterr().out
    for words in ("source 0", "feed forward", "flops per token", "checkpoint", "activations", "tokens per second"):
        assert words in out
    assert not Path("runs").exists()


def test_a_dry_run_of_finetuning_starts_from_the_base(workshop, trained, capfd, quick) -> None:
    base = str(trained / "runs" / "decoder")
    found = foretold(["finetune", "text", "--base", base, "--steps", "3"], capfd)
    assert found["step"]["steps"] == 3
    assert found["parameters"]["trained"] == found["parameters"]["total"]


def test_the_time_is_that_of_all_that_a_run_does(workshop, capfd, monkeypatch, quick) -> None:
    """6 steps, validated at 3 and 6 with samples, saved at 2, 4 and 6; known text is measured before them."""
    monkeypatch.setattr(outlook, "time_steps", lambda session, rows: StepTimes(10.0, 100.0, 5))
    monkeypatch.setattr(outlook, "time_validation", lambda session: (100.0, 1_000_000.0))
    monkeypatch.setattr(outlook, "time_samples", lambda session: 1000.0)
    monkeypatch.setattr(outlook, "time_saves", lambda session: (10_000.0, 100_000.0))
    spent = foretold(["pretrain", "decoder.yaml"], capfd)["time"]
    rest = spent["total_seconds"] - spent["preparing_seconds"]
    assert rest == pytest.approx(6 * 10 + 2 * (100 + 100_000 + 1000) + 3 * 10_000 + 1_000_000)
    nothing_held_out = ["--set", "data.validation.fraction=0"]
    spent = foretold(["pretrain", "decoder.yaml", *nothing_held_out], capfd)["time"]
    rest = spent["total_seconds"] - spent["preparing_seconds"]
    assert rest == pytest.approx(6 * 10 + 2 * (100 + 1000) + 3 * 10_000 + 1_000_000)  # no model is the best
    cut = foretold(["pretrain", "decoder.yaml", "--minutes", "1"], capfd)["time"]
    assert cut["total_seconds"] == pytest.approx(cut["preparing_seconds"] + 60)


def test_a_dry_run_measures_what_validation_measures(workshop, trained, measured, monkeypatch) -> None:
    """In parts as small, so many batches as the run, and known text with the distance from the base."""
    known = '{"sources": [{"kind": "text", "path": "text/a.txt", "documents": "line"}], "batches": 2}'
    settings = [f"data.forgetting={known}", "data.validation.fraction=0.5", "train.validation_batches=3"]
    settings += ["train.micro_batch_tokens=64", "train.batch_tokens=128"]
    command = ["finetune", "chats.jsonl", "--base", str(trained / "runs" / "decoder"), "--steps", "2"]
    command += [part for setting in settings for part in ("--set", setting)]
    assert run([*command, "--name", "a"]) == 0
    by_the_run = set(measured)
    assert max(len(rows) * len(rows[0]) for rows, *_ in measured) == 64
    measured.clear()
    asked, original = [], Retention.distances
    monkeypatch.setattr(Retention, "distances", lambda self: asked.append(original(self)))
    assert run([*command, "--dry-run"]) == 0
    assert set(measured) == by_the_run
    assert [found["distance"] > 0 for found in asked] == [True]


@pytest.mark.parametrize(("steps", "every", "often"), [(0, 5, 0), (10, 0, 1), (10, 5, 2), (11, 5, 3), (4, 5, 1)])
def test_what_is_due_is_counted_with_the_end(steps, every, often) -> None:
    assert times(steps, every) == often


def test_a_step_too_long_to_try_is_reckoned_from_fewer_rows(workshop, capfd, quick, monkeypatch) -> None:
    monkeypatch.setattr(probe, "MAX_STEP_SECONDS", 0.0)
    spent = foretold(["pretrain", "decoder.yaml", "--set", "train.batch_tokens=1024"], capfd)["time"]
    assert spent["reckoned_from_rows_share"] == 1 / 32
    assert spent["step_seconds"] > 0


def test_a_model_too_large_is_told_with_its_size(workshop, capfd) -> None:
    huge = ["--set", "model.d_model=262144", "--set", "model.d_ff=1048576"]
    assert run(["pretrain", "decoder.yaml", "--dry-run", *huge]) == 6
    captured = capfd.readouterr()
    assert "feed forward" in captured.out
    assert "for weights, gradients and optimizer alone" in captured.err


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_ranks_try_it_together_and_one_tells(workshop, capfd, quick, sharding) -> None:
    one = foretold(["pretrain", "decoder.yaml"], capfd)
    command = [sys.executable, "-m", "txtgen", "pretrain", "decoder.yaml", "--dry-run", "--json", "--nproc", "2"]
    found = subprocess.run(
        [*command, "--set", f"train.sharding={sharding}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    two = json.loads(found)
    assert sorted(path.name for path in workshop.iterdir() if path.name.startswith((".", "runs"))) == []
    for same in ("corpus", "disk"):
        assert two[same] == one[same]
    assert two["parameters"] == one["parameters"] | {"held_by_a_rank": two["parameters"]["held_by_a_rank"]}
    assert two["step"] == one["step"]
    memory = two["memory"]
    assert memory["each_of_ranks"] == 2
    assert memory["activations_bytes"] == pytest.approx(one["memory"]["activations_bytes"] / 2, rel=0.3)
    parts = 2 if sharding == "shard" else 1
    assert two["parameters"]["held_by_a_rank"] == -(-one["parameters"]["total"] // parts)
    for name in ("weights", "gradients", "optimizer"):
        assert memory[f"{name}_bytes"] == pytest.approx(one["memory"][f"{name}_bytes"] / parts, rel=0.1)
    assert ("gathered_bytes" in memory) == (sharding == "shard")
    assert two["time"]["total_seconds"] > 6 * two["time"]["step_seconds"] > 0
