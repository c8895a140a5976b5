"""scripts/screen.py: recipes times seeds, a table, and nothing run twice."""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from txtgen.cli import run
from txtgen.config.loader import load_config
from txtgen.config.runs import PretrainConfig
from txtgen.config.yaml import read_yaml_file
from txtgen.errors import ConfigError

ROOT = Path(__file__).parents[2]
PLAN = """
seeds: [0, 1]
evaluate: [--no-translate]
recipes:
  plain: {config: decoder.yaml, set: [train.steps=2]}
  faster: {config: decoder.yaml, set: [train.steps=2, train.optimizer.learning_rate=0.05]}
"""


@pytest.fixture
def screen(monkeypatch):
    spec = importlib.util.spec_from_file_location("screen", ROOT / "scripts" / "screen.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    outside = subprocess.run

    def in_this_process(command, **options):
        if command[0] != sys.executable:  # what a run asks of its machine
            return outside(command, **options)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            assert run(command[3:]) == 0, command
        module.calls.append(command[3])
        return subprocess.CompletedProcess(command, 0, output.getvalue())

    module.calls = []
    monkeypatch.setattr(module.subprocess, "run", in_this_process)
    return module


def test_every_recipe_is_trained_with_every_seed_once(workshop, screen, monkeypatch, capsys) -> None:
    Path("plan.yaml").write_text(PLAN)
    monkeypatch.setattr(sys, "argv", ["screen.py", "plan.yaml", "--runs-path", "runs"])
    # In this very thread, the only one that signals may be set up in.
    here = SimpleNamespace(map=map)
    monkeypatch.setattr(screen, "ThreadPoolExecutor", lambda _count: contextlib.nullcontext(here))
    screen.main()
    first = capsys.readouterr().out
    assert screen.calls == ["pretrain", "evaluate"] * 4
    results = [json.loads(line) for line in Path("runs/plan.jsonl").read_text().splitlines()]
    assert [(one["recipe"], one["seed"]) for one in results] == [
        ("plain", 0),
        ("faster", 0),
        ("plain", 1),
        ("faster", 1),
    ]
    assert len({one["val_loss"] for one in results}) == 4
    assert all(one["steps"] == 2 for one in results)
    rows = [row.split(" | ") for row in first.strip().splitlines()]
    assert [row[0] for row in rows] == ["| recipe", "| ---", "| plain", "| faster"]
    mean = sum(one["val_loss"] for one in results if one["recipe"] == "plain") / 2
    assert rows[2][rows[0].index("val_loss")].startswith(f"{mean:.4f} ± ")
    screen.main()
    assert len(screen.calls) == 8
    assert capsys.readouterr().out == first


def test_recipes_side_by_side_share_the_cores_and_each_is_kept_when_it_is_done(
    screen, tmp_path, monkeypatch, capsys
) -> None:
    both, is_measured = threading.Barrier(2), threading.Event()
    threads, measured = [], screen.measured

    def train(command, env, **_options):
        name = command[command.index("--name") + 1]
        both.wait(60)  # passed only by two that run at once
        threads.append(env["OMP_NUM_THREADS"])
        if name == "plan-plain-2":
            is_measured.wait(60)
            raise subprocess.CalledProcessError(1, command)
        (tmp_path / name).mkdir()
        line = {"step": 1, "tokens": 9, "val_loss": 2.0, "val_bits_per_byte": 1.0}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")

    def measure(plan, name, *rest):
        found = measured(plan, name, *rest)
        is_measured.set()
        return found

    def results():
        lines = (tmp_path / "plan.jsonl").read_text().splitlines()
        return sorted((one["seed"], one["recipe"]) for one in map(json.loads, lines))

    monkeypatch.setattr(screen.subprocess, "run", train)
    monkeypatch.setattr(screen, "measured", measure)
    monkeypatch.setattr(screen.os, "cpu_count", lambda: 6)
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace("evaluate: [--no-translate]", ""))
    monkeypatch.setattr(sys, "argv", ["screen.py", str(plan), "--runs-path", str(tmp_path), "--at-once", "2"])
    screen.main()
    assert results() == [(0, "faster"), (0, "plain"), (1, "faster"), (1, "plain")]
    rows = capsys.readouterr().out.strip().splitlines()
    assert [row.split(" | ")[:2] for row in rows[2:]] == [["| plain", "0 1"], ["| faster", "0 1"]]
    assert threads == ["3"] * 4

    plan.write_text(plan.read_text().replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    is_measured.clear()
    with pytest.raises(subprocess.CalledProcessError):
        screen.main()
    assert results()[4:] == [(2, "faster")]


def test_a_plan_that_says_a_thing_twice_is_refused(screen, tmp_path, monkeypatch) -> None:
    (tmp_path / "plan.yaml").write_text("seeds: [1]\n" + PLAN)
    monkeypatch.setattr(sys, "argv", ["screen.py", str(tmp_path / "plan.yaml"), "--table"])
    with pytest.raises(ConfigError, match="seeds"):
        screen.main()


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_that_is_shipped_is_made_of_valid_configs(path) -> None:
    plan = read_yaml_file(path).tree
    assert plan["seeds"]
    for recipe in plan["recipes"].values():
        config = load_config(PretrainConfig, ROOT / recipe["config"], recipe.get("set", ()))
        assert config.train.minutes is not None  # recipes are compared at equal time
