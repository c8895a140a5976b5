"""Runs configs with overrides and seeds, and makes a table: what a recipe's claims rest on.

    python scripts/screen.py PLAN.yaml [--runs-path runs/screen] [--at-once N] [--table]

A plan names its recipes; each is a config with `--set` options, and all are trained with every seed. What was run
before is not run again, so a plan can be stopped and gone on with. `--at-once` trains so many recipes with one seed
side by side, each on its share of the cores, so that they go through the same minutes of the machine. `--table` only
shows what there is.

    seeds: [0, 1, 2]
    evaluate: []                     # arguments of `txtgen evaluate` after training, such as [--beam-size, "5"]
    recipes:
      baseline: {config: configs/shakespeare-char.yaml, set: [train.minutes=5, "train.optimizer={kind: adamw}"]}
      best: {config: configs/shakespeare-char-10min.yaml, set: [train.minutes=5]}
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from txtgen.config.yaml import read_yaml_file

COLUMNS = ("steps", "tokens", "seconds", "val_loss", "val_bits_per_byte", "bleu", "chrf")
"""steps, tokens: done. seconds: of the whole process. val_loss, val_bits_per_byte: of the best validation. bleu, chrf:
of `txtgen evaluate`, where the plan asks for it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--runs-path", type=Path, default=Path("runs/screen"))
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="recipes side by side")
    parser.add_argument("--table", action="store_true", help="show what there is, and run nothing")
    arguments = parser.parse_args()
    plan = read_yaml_file(arguments.plan).tree
    results = arguments.runs_path / f"{arguments.plan.stem}.jsonl"
    share = (
        {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.at_once))} if arguments.at_once > 1 else {}
    )
    lock = Lock()

    def measure(seed: int, name: str) -> None:
        run = arguments.runs_path / f"{arguments.plan.stem}-{name}-{seed}"
        one = measured(plan, name, seed, run, {**os.environ, **share})
        # At once, for others that run beside it may fail.
        with lock, open(results, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(one) + "\n")

    # Seeds outside, so that recipes which are stopped early can be compared, and share what the machine goes through.
    for seed in () if arguments.table else plan["seeds"]:
        done = {one["recipe"] for one in read(results) if one["seed"] == seed}
        with ThreadPoolExecutor(arguments.at_once) as pool:
            list(pool.map(partial(measure, seed), [name for name in plan["recipes"] if name not in done]))
    order = {name: number for number, name in enumerate(plan["recipes"])}
    print(table(sorted(read(results), key=lambda one: (order.get(one["recipe"], len(order)), one["seed"]))))


def read(results: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def measured(plan: dict[str, Any], name: str, seed: int, run: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What one recipe of a plan comes to with one seed."""
    found = {"recipe": name, "seed": seed, **trained(plan["recipes"][name], seed, run, environment)}
    return {**found, **evaluated(plan["evaluate"], run, environment)} if plan.get("evaluate") else found


def trained(recipe: dict[str, Any], seed: int, run: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Train one recipe with one seed, and read what its folder tells."""
    options = [text for setting in [*recipe.get("set", ()), f"seed={seed}"] for text in ("--set", setting)]
    command = [sys.executable, "-m", "txtgen", "pretrain", recipe["config"], *options, "--overwrite"]
    started = time.monotonic()
    subprocess.run([*command, "--name", run.name, "--runs-path", str(run.parent)], check=True, env=environment)
    seconds = time.monotonic() - started
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min((line for line in lines if "val_loss" in line), key=lambda line: line["val_loss"])
    last = max((line for line in lines if "tokens" in line), key=lambda line: line["step"])
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": round(seconds, 1),
        "val_loss": best["val_loss"],
        "val_bits_per_byte": best["val_bits_per_byte"],
    }


def evaluated(options: list[str], run: Path, environment: dict[str, str]) -> dict[str, Any]:
    """BLEU and chrF of a trained run."""
    command = [sys.executable, "-m", "txtgen", "evaluate", str(run), *map(str, options), "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    scores = found.get("translation") or {}
    return {name: scores[name] for name in ("bleu", "chrf") if name in scores}


def table(results: list[dict[str, Any]]) -> str:
    """A row for each recipe, in Markdown: the mean over seeds and, from two on, the sample standard deviation."""
    columns = [column for column in COLUMNS if any(column in one for one in results)]
    rows = [["recipe", "seeds", *columns], ["---"] * (2 + len(columns))]
    for name in dict.fromkeys(one["recipe"] for one in results):
        runs = [one for one in results if one["recipe"] == name]
        cells = [spread([one[column] for one in runs if column in one]) for column in columns]
        rows.append([name, " ".join(str(one["seed"]) for one in runs), *cells])
    return re.sub(r"^", "| ", "\n".join(" | ".join(row) + " |" for row in rows), flags=re.MULTILINE)


def spread(values: list[float]) -> str:
    """Mean and spread of figures."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    shown = f"{mean:,.0f}" if mean >= 1000 else f"{mean:.4f}"
    return shown if len(values) == 1 else f"{shown} ± {statistics.stdev(values):.{0 if mean >= 1000 else 4}f}"


if __name__ == "__main__":
    main()
