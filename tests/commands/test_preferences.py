"""Preference tuning through the command line, of a decoder and of an encoder-decoder."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands.running import session
from txtgen.commands.showing.page import CURVES

WORDS = ["cat", "dog", "fox", "sun", "sea", "car"]

CONFIG = """
data:
  sources: [{kind: preference, path: pairs.jsonl}]
  validation: {sources: [{kind: preference, path: held.jsonl}]}
  objective: {kind: dpo, beta: 0.3}
train:
  steps: 12
  batch_tokens: 256
  validate_every: 4
  save_every: 4
  log_every: 1
  keep_last: 9
  optimizer: {learning_rate: 0.003}
  schedule: {kind: constant}
"""
BASES = {"decoder": "decoder", "encoder_decoder": "translator"}


def preferences(words: list[str], prompt: str) -> list[dict]:
    """Answers that begin with yes are preferred to those that begin with no, whatever is asked."""
    pairs = [(prompt.format(one), f"yes, a {two}.", f"no, the {two}!") for one in words for two in WORDS]
    return [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs]


def write(path: str, lines: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def asked(workshop, monkeypatch) -> Path:
    monkeypatch.setattr(session.Session, "sample", lambda _: None)
    write("pairs.jsonl", preferences(WORDS[:-1], "is it a {}?"))
    write("held.jsonl", preferences(WORDS[-1:], "is it a {}?"))
    Path("dpo.yaml").write_text(CONFIG, encoding="utf-8")
    return workshop


def lines(name: str) -> tuple[list[dict], list[dict]]:
    found = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "loss" in line], [line for line in found if "val_loss" in line]


def finetune(trained: Path, kind: str, name: str, *more: str) -> int:
    base = str(trained / "runs" / BASES[kind])
    return run(["finetune", "dpo.yaml", "--base", base, "--name", name, *more])


@pytest.mark.parametrize("kind", BASES)
def test_margins_on_held_out_pairs_rise(asked, trained, kind, capfd) -> None:
    assert finetune(trained, kind, "a") == 0
    steps, validations = lines("a")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    margins = [line["val_reward_margin"] for line in validations]
    assert margins == sorted(margins)
    assert validations[-1]["val_reward_accuracy"] == 1
    assert validations[-1]["val_loss"] < 0.5
    assert validations[-1]["val_reward_chosen"] - validations[-1]["val_reward_rejected"] == pytest.approx(margins[-1])
    page = Path("runs/a/report.html").read_text()
    assert all(title in page for title, keys, _ in CURVES if "reward" in str(keys))
    assert load_checkpoint(Path("runs/a/last.pth")).config.model.dropout == 0  # what it does is no reward
    assert (load_checkpoint(Path("runs/a/last.pth")).config.chat is None) == (kind == "encoder_decoder")
    assert "reference" in load_checkpoint(Path("runs/a/last.pth"), training=True).training
    assert run(["generate", "runs/a", "--prompt", "is it a car?", "--max-new-tokens", "4"]) == 0
    assert run(["evaluate", "runs/a"]) == 4
    assert "compared with its base model" in capfd.readouterr().err
    assert run(["evaluate", "runs/a", "--data", "pairs.tsv", "--json", "--no-translate"]) == 0
    assert run(["runs", "show", "runs/a"]) == 0
    assert "reward margin" in capfd.readouterr().out


@pytest.mark.parametrize("kind", BASES)
def test_a_resumed_run_equals_the_straight_one_and_needs_no_base_model(asked, trained, kind, monkeypatch) -> None:
    assert finetune(trained, kind, "straight", "--set", "dropout=0.2") == 0
    original = session.Session.log

    def interrupt(self, report) -> None:
        original(self, report)
        if report.step == 7:
            self.stop.receive(signal.SIGTERM, None)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "log", interrupt)
        assert finetune(trained, kind, "cut", "--set", "dropout=0.2") == 143
    monkeypatch.setattr("txtgen.commands.running.reference.pair_logprobs", None)  # no second pass
    monkeypatch.setattr("txtgen.commands.finetune._with_vocabulary", None)
    assert run(["finetune", "--resume", "--name", "cut"]) == 0
    keys = ("step", "loss", "reward_margin", "reward_chosen", "grad_norm")
    (straight, held), (resumed, held_again) = lines("straight"), lines("cut")
    assert [[line[key] for key in keys] for line in resumed] == [[line[key] for key in keys] for line in straight]
    assert [line["val_reward_margin"] for line in held_again] == [line["val_reward_margin"] for line in held]
    ours, theirs = (load_checkpoint(Path(f"runs/{name}/last.pth")).model for name in ("cut", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert run(["check", "resume", "straight"]) == 0


@pytest.mark.slow
def test_a_run_on_two_ranks_is_resumed_on_two_ranks(asked, trained) -> None:
    on_ranks = [sys.executable, "-m", "txtgen", "finetune", "--nproc", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    base = ["dpo.yaml", "--base", str(trained / "runs/decoder")]
    for arguments in (
        [*base, "--name", "straight", "--steps", "8"],
        [*base, "--name", "cut", "--steps", "4"],
        ["--resume", "--name", "cut", "--steps", "8"],
    ):
        subprocess.run([*on_ranks, *arguments], env=environment, check=True)
    ours, theirs = (load_checkpoint(Path(f"runs/{name}/last.pth")).model for name in ("cut", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_is_its_own_reference(asked, trained, monkeypatch) -> None:
    monkeypatch.setattr("txtgen.commands.running.reference.ReferenceTable", None)
    settings = ["--set", "adapter.rank=4", "--set", "train.optimizer.learning_rate=0.03", "--set", "dropout=0.1"]
    assert finetune(trained, "decoder", "a", *settings, "--set", "adapter.dropout=0.1") == 0
    assert "reference" not in load_checkpoint(Path("runs/a/last.pth"), training=True).training
    margins = [line["val_reward_margin"] for line in lines("a")[1]]
    assert margins == sorted(margins)
    assert lines("a")[1][-1]["val_reward_accuracy"] == 1
    assert finetune(trained, "decoder", "b", "--set", "adapter.rank=4", "--steps", "1") == 0
    (first,) = lines("b")[0]
    assert first["reward_chosen"] == first["reward_rejected"] == first["reward_margin"] == 0
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-7)


def test_beside_other_weights_an_adapter_is_no_reference_and_the_pairs_are_read_first(asked, trained) -> None:
    settings = ["--set", "adapter={kind: lora, rank: 4, trainable: ['*_norm.*']}", "--steps", "1"]
    assert finetune(trained, "decoder", "a", *settings) == 0
    assert load_checkpoint(Path("runs/a/last.pth"), training=True).training["reference"]


def test_other_pairs_than_those_at_the_beginning_are_refused(asked, trained, capfd) -> None:
    assert finetune(trained, "decoder", "a", "--steps", "2") == 0
    write("pairs.jsonl", preferences(["cow"] * 5, "is it a {}?"))
    assert run(["finetune", "--resume", "--name", "a", "--steps", "4"]) == 4  # files have changed
    assert run(["finetune", "--resume", "--name", "a", "--steps", "4", "--accept-changes"]) == 4
    assert "was not reckoned when the run began" in capfd.readouterr().err


def test_micro_batches_and_workers_change_nothing(asked, trained) -> None:
    assert finetune(trained, "decoder", "a", "--steps", "4") == 0
    assert finetune(trained, "decoder", "b", "--steps", "4", "--set", "train.micro_batch_tokens=60") == 0
    assert finetune(trained, "decoder", "c", "--steps", "4", "--set", "data.workers=1") == 0
    one, parts, worker = (lines(name)[0] for name in "abc")
    for line, part, same in zip(one, parts, worker, strict=True):
        assert part["loss"] == pytest.approx(line["loss"], rel=1e-4)
        assert part["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-3)
        assert same["loss"] == line["loss"]


@pytest.mark.slow
def test_two_ranks_equal_one(asked, trained) -> None:
    steps = ["--steps", "3", "--set", "train.micro_batch_tokens=60"]
    assert finetune(trained, "decoder", "one", *steps) == 0
    assert finetune(trained, "decoder", "two", *steps, "--nproc", "2") == 0
    for one, two in zip(lines("one")[0], lines("two")[0], strict=True):
        for key in ("loss", "grad_norm", "reward_margin", "reward_accuracy"):
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5)
        assert two["tokens"] == one["tokens"]


def test_files_alone_and_a_dry_run(asked, trained, capfd) -> None:
    base = ["--base", str(trained / "runs" / "decoder")]
    assert run(["finetune", "pairs.jsonl", *base, "--name", "a", "--steps", "2", "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["time"]["total_seconds"] > 0
    assert run(["finetune", "pairs.jsonl", *base, "--name", "a", "--steps", "2"]) == 0
    assert lines("a")[0][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("adapter", [[], ["--set", "adapter.rank=4"]], ids=["reference", "adapter"])
def test_a_dry_run_measures_pairs_as_validation_does(asked, trained, measured, adapter) -> None:
    settings = ["--set", "train.micro_batch_tokens=60", "--steps", "2", *adapter]
    assert finetune(trained, "decoder", "a", *settings) == 0
    by_the_run = set(measured)
    assert {tuple(told) for _, *told in by_the_run} == ({(False, False), (False, True)} if adapter else {(True, False)})
    measured.clear()
    assert finetune(trained, "decoder", "a", *settings, "--dry-run") == 0
    assert set(measured) == by_the_run


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same answer"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "the answer 'rejected' is empty"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "the answer 'chosen' is empty"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "the prompt 'prompt' is empty"),
        ({"chosen": "b", "rejected": "c"}, "there is no field 'prompt'"),
        ({"prompt": "a", "chosen": "b"}, "there is no field 'rejected'"),
        ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, "must be a string, not a list"),
        ({"messages": [{"role": "assistant", "content": "a"}], "chosen": "b", "rejected": "c"}, "ends with a turn of"),
    ],
)
def test_a_bad_pair_is_named_with_its_line(asked, trained, capfd, line, told) -> None:
    good = preferences(WORDS, "is it a {}?")
    write("pairs.jsonl", [*good, line])
    assert finetune(trained, "decoder", "a", "--steps", "1") == 4
    shown = capfd.readouterr().err
    assert told in shown
    assert f"pairs.jsonl:{len(good) + 1}" in shown
    assert "Traceback" not in shown
    assert finetune(trained, "decoder", "b", "--steps", "1", "--set", "data.on_bad_record=skip") == 0
    assert "skipping bad records" in capfd.readouterr().err


def test_what_does_not_fit_preferences_is_told_before_the_run(asked, trained, capfd) -> None:
    for setting, told in (
        ("train.label_smoothing=0.1", "data.objective.label_smoothing"),
        ("train.validation_metric=bleu", "needs source and target pairs"),
        ("data.objective={kind: chat}", "a preference source cannot serve the objective chat"),
        ("data.objective={kind: dpo, loss: ipo, label_smoothing: 0.1}", "of the sigmoid loss alone"),
    ):
        assert finetune(trained, "decoder", "a", "--set", setting) == 3
        assert told in capfd.readouterr().err
    text = Path("decoder.yaml").read_text().replace("kind: text", "kind: preference").replace(", documents: line", "")
    Path("new.yaml").write_text(text)
    assert run(["pretrain", "new.yaml", "--set", "data.objective.kind=dpo"]) == 3
    assert "use txtgen finetune" in capfd.readouterr().err
    conversation = {"messages": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}
    write("pairs.jsonl", [conversation])
    assert finetune(trained, "encoder_decoder", "b") == 3
    assert "the base model reads none" in capfd.readouterr().err
