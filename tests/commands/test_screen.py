"""scripts/screen.py: recipes times seeds, a table, and nothing run twice."""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from txtgen.cli import run
from txtgen.config.loader import load_config
from txtgen.config.runs import PretrainConfig

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

    def in_this_process(command, **_options):
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


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_that_is_shipped_is_made_of_valid_configs(path) -> None:
    plan = yaml.safe_load(path.read_text())
    assert plan["seeds"]
    for recipe in plan["recipes"].values():
        config = load_config(PretrainConfig, ROOT / recipe["config"], recipe.get("set", ()))
        assert config.train.minutes is not None  # recipes are compared at equal time
