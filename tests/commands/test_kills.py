"""Runs that are killed: at every stage of a save, and at random moments, over and over."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked import ForkServer

from txtgen.checkpoint import load_checkpoint
from txtgen.commands.running.run_folder import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/fd").exists(), reason="needs Linux")

STEPS = 12
CONFIG = """
data:
  sources: [{{kind: text, path: {folder}/text, documents: line}}]
  validation: {{fraction: 0.2}}
tokenizer: {{path: {folder}/tokenizer.model}}
model:
  {{kind: decoder, d_model: 16, num_layers: 1, num_heads: 2, d_ff: 32, max_length: 32, dropout: 0.1}}
train:
  steps: {steps}
  batch_tokens: 128
  validate_every: 3
  save_every: 2
  keep_last: 2
  keep_every: 6
  log_every: 1
  save_in_background: {background}
  optimizer: {{learning_rate: 0.01}}
"""
STAGES = [
    "temporary open", "in write", "before fsync", "after fsync", "before rename", "after rename", "before last",
    "after last", "before retention", "after retention",
]  # fmt: skip


class Runs(ForkServer):
    """Runs in one folder."""

    seconds = 0.0
    """What a straight run takes, for choosing moments in it."""

    def begin(self, name: str, kill_at: list | None = None, background: bool = True) -> int:
        """Start a run, or go on with it. Returns its process id."""
        return self.start(self.command(name, background), kill_at=kill_at)

    def command(self, name: str, background: bool = True) -> list[str]:
        begun = (self.folder / "runs" / name / "config.yaml").exists()
        config = "background.yaml" if background else "foreground.yaml"
        return ["pretrain", config, "--name", name, *(["--resume"] if begun else [])]

    def stages(self) -> tuple[str, str]:
        """What the main and the saving thread of the last run did at last."""
        content = (self.folder / "stages").read_bytes()
        return content[:64].decode().strip(), content[64:].decode().strip()


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory) -> Iterator[Runs]:
    """The fork server, and the straight run to compare with."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "text").symlink_to(trained / "text")
    (folder / "tokenizer.model").symlink_to(trained / "runs" / "decoder" / "tokenizer.model")
    for name in ("background", "foreground"):
        text = CONFIG.format(folder=folder, steps=STEPS, background=str(name == "background").lower())
        (folder / f"{name}.yaml").write_text(text)
    with Runs(folder) as runs:
        assert runs.learn_imports(runs.command("straight")) == 0, runs.output()
        began = time.monotonic()
        assert runs.wait(runs.begin("again")) == 0, runs.output()
        runs.seconds = time.monotonic() - began
        assert_equals_straight_run(runs, "again")
        yield runs


def assert_some_state_loads(folder: RunFolder) -> None:
    """What a kill left can be gone on from, and no final name holds anything half written."""
    for _, path in folder.steps():
        load_checkpoint(path, training=True)
    for path in (folder.last, folder.best):
        if path.exists():
            load_checkpoint(path)


def assert_equals_straight_run(runs: Runs, name: str) -> None:
    """Weights, optimizer, stream, losses and the files that are kept: all as if it had never been killed."""
    ours, theirs = RunFolder(runs.folder / "runs" / name), RunFolder(runs.folder / "runs" / "straight")
    assert [step for step, _ in ours.steps()] == [step for step, _ in theirs.steps()] == [6, 10, 12]
    assert ours.last.samefile(ours.step_path(STEPS))
    assert not [*ours.path.glob("*.tmp.*"), *ours.checkpoints.glob("*.tmp.*"), *ours.checkpoints.glob("*.damaged")]
    assert not list(ours.path.glob(".owner"))
    for mine, other in [(ours.best, theirs.best), *zip(paths(ours), paths(theirs), strict=True)]:
        one, two = (load_checkpoint(path, training=True) for path in (mine, other))
        assert_same(one.model, two.model)
        if one.training is not None:
            for training in (one.training, two.training):
                training.pop("seconds")
            assert_same(one.training, two.training)
    figures = [
        [
            {key: value for key, value in line.items() if key in ("step", "loss", "grad_norm", "tokens", "val_loss")}
            for line in map(json.loads, folder.metrics.read_text().splitlines())
            if "loss" in line or "val_loss" in line
        ]
        for folder in (ours, theirs)
    ]
    assert figures[0] == figures[1]
    assert json.loads(ours.status.read_text())["state"] == "finished"


def paths(folder: RunFolder) -> list[Path]:
    return [path for _, path in folder.steps()]


def assert_same(one, two) -> None:
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for mine, other in zip(one, two, strict=True):
            assert_same(mine, other)
    else:
        assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_a_stage_of_a_save_loses_nothing(runs, stage, background) -> None:
    """At the second passing, so that there is a checkpoint before it; retention first happens at step 6."""
    name = f"{stage.replace(' ', '-')}-{background}"
    assert runs.wait(runs.begin(name, kill_at=[stage, 1], background=background)) == -9
    assert stage in runs.stages()
    folder = RunFolder(runs.folder / "runs" / name)
    assert_some_state_loads(folder)
    assert runs.wait(runs.begin(name, background=background)) == 0, runs.output()
    assert_equals_straight_run(runs, name)


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(runs) -> None:
    """At least 200, several in a row for a run, also while it resumes: every run ends as the straight one."""
    draw = random.Random(0)
    hits: Counter[str] = Counter()
    began, number, kills = time.monotonic(), 0, 0
    while kills < 200:
        number += 1
        name, background = f"random-{number}", draw.random() < 0.7
        for _ in range(draw.randint(3, 8)):
            pid = runs.begin(name, background=background)
            time.sleep(draw.uniform(0.0, runs.seconds))
            os.kill(pid, signal.SIGKILL)
            code = runs.wait(pid)
            assert code in (-9, 0), runs.output()
            if code == 0:
                break
            main, saver = runs.stages()
            kills += 1
            hits[main] += 1
            if saver not in ("", "after last", "after retention"):
                hits[f"saving thread: {saver}"] += 1
            assert_some_state_loads(RunFolder(runs.folder / "runs" / name))
        assert runs.wait(runs.begin(name, background=background)) == 0, runs.output()
        assert_equals_straight_run(runs, name)
    print(f"{kills} kills of {number} runs in {time.monotonic() - began:.0f} s: {dict(hits.most_common())}")
