"""What a resumed run may be told anew."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands.running import session
from txtgen.commands.running.changes import KINDS, compare, kind_of
from txtgen.config.base import Config
from txtgen.config.loader import load_config
from txtgen.config.runs import FinetuneConfig, PretrainConfig
from txtgen.config.shape import item_type, sections


def dotted_keys(section: type[Config], prefix: str = "") -> Iterator[str]:
    """Every key that a config may have, through all kinds of its sections."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        item = item_type(field.annotation)
        below = [(f"{key}.0.", inner) for inner in (sections(item) if item is not None else [])]
        below += [(f"{key}.", inner) for inner in sections(field.annotation)]
        if not below:
            yield key
        for place, inner in below:
            yield from dotted_keys(inner, place)


ALL_KEYS = sorted({*dotted_keys(PretrainConfig), *dotted_keys(FinetuneConfig)})


def test_every_key_is_of_some_kind() -> None:
    """A new key needs a row in KINDS: does a resumed run mind when it changes?"""
    assert {"train.optimizer.adamw.beta2", "data.sources.0.target_path", "model.position.base", "freeze.patterns"} <= {
        *ALL_KEYS
    }
    assert [key for key in ALL_KEYS if kind_of(key) is None] == []


def test_every_pattern_says_something() -> None:
    """A pattern that an earlier one hides, or that fits no key, is a mistake."""
    from fnmatch import fnmatchcase

    first = {next(pattern for pattern in KINDS if fnmatchcase(key, pattern)) for key in ALL_KEYS}
    assert first == {*KINDS}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("train.log_every", "harmless"),
        ("data.sources.0.path", "harmless"),
        ("data.sources.3.target_path", "harmless"),
        ("train.optimizer.learning_rate", "risky"),
        ("train.optimizer.adamw.weight_decay", "risky"),
        ("train.schedule.kind", "risky"),
        ("model.dropout", "risky"),
        ("model.attention_dropout", "risky"),
        ("train.optimizer.kind", "impossible"),
        ("model.d_model", "impossible"),
        ("seed", "impossible"),
        ("data.sources.0.weight", "impossible"),
        ("data.sources.0.source_field", "impossible"),
        ("data.validation.fraction", "impossible"),
        ("tokenizer.path", "impossible"),
    ],
)
def test_kinds(key, kind) -> None:
    assert kind_of(key) == kind


def test_keys_that_an_older_version_did_not_know_are_no_change(workshop) -> None:
    config = load_config(PretrainConfig, Path("decoder.yaml"))
    before: dict[str, Any] = {"command": "pretrain", **config.plain()}
    del before["train"]["keep_last"], before["model"]["qk_norm"], before["generation"]
    config = load_config(PretrainConfig, Path("decoder.yaml"), ["train.keep_last=2"])
    changes = compare(before, config)
    assert not changes.risky
    assert not changes.impossible
    assert compare({**before, "gone": 1}, config).impossible["gone"] == (1, None)


def test_impossible_changes_are_refused_whatever_is_accepted(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "2"]) == 0
    for accept in ([], ["--accept-changes"]):
        arguments = ["--set", "model.d_model=32", "--set", "seed=3", "--set", "train.clip_norm=0.5", *accept]
        assert run(["pretrain", "decoder.yaml", "--name", "a", "--resume", "--steps", "3", *arguments]) == 3
        error = capfd.readouterr().err
        assert "cannot change model.d_model: 16 -> 32, seed: 0 -> 3" in error
        assert "finetune" in error


def test_risky_changes_need_a_word_then_take_effect_and_are_remembered(workshop, capfd) -> None:
    start = ["pretrain", "decoder.yaml", "--set", "train.save_every=1"]
    assert run([*start, "--name", "a", "--steps", "2"]) == 0
    again = ["--name", "a", "--resume", "--set", "train.clip_norm=0.5", "--set", "train.optimizer.weight_decay=0.25"]
    again += ["--set", "train.optimizer.learning_rate=0.002", "--set", "train.schedule.kind=constant"]
    assert run([*start, *again, "--steps", "3"]) == 3
    error = capfd.readouterr().err
    assert "train.clip_norm: 1.0 -> 0.5, train.optimizer.learning_rate: 0.01 -> 0.002" in error
    assert "--accept-changes" in error
    assert run([*start, *again, "--steps", "3", "--accept-changes"]) == 0
    assert "changed after step 2: train.clip_norm: 1.0 -> 0.5" in capfd.readouterr().err
    changed = load_checkpoint(Path("runs/a/last.pth"))
    expected = {"step": 2, "train.clip_norm": "1.0 -> 0.5", "train.optimizer.weight_decay": "0.1 -> 0.25"}
    assert expected.items() <= changed.lineage["changes"][0].items()
    rates = [line for line in Path("runs/a/metrics.jsonl").read_text().splitlines() if "learning_rate" in line]
    assert '"learning_rate": 0.002' in rates[-1]
    # The changed config is now the run's own, and what was changed stays on record.
    assert run(["pretrain", "--resume", "--name", "a", "--steps", "4"]) == 0
    assert load_checkpoint(Path("runs/a/last.pth")).lineage["changes"] == changed.lineage["changes"]
    assert "pretrain --resume" not in capfd.readouterr().err


def test_dropout_changes_take_effect(workshop) -> None:
    start = ["pretrain", "decoder.yaml", "--name", "a"]
    assert run([*start, "--steps", "2"]) == 0
    assert run([*start, "--steps", "3", "--resume", "--set", "model.dropout=0.3", "--accept-changes"]) == 0
    assert load_checkpoint(Path("runs/a/last.pth")).config.model.dropout == 0.3


def test_freezing_on_the_way(workshop, trained) -> None:
    start = ["finetune", "chats.jsonl", "--base", str(trained / "runs" / "decoder"), "--name", "b"]
    assert run([*start, "--steps", "2", "--set", 'freeze=["*embedding*"]']) == 0
    before = load_checkpoint(Path("runs/b/last.pth")).model
    again = [*start, "--steps", "4", "--resume", "--set", 'freeze=["decoder.layers.*"]']
    assert run(again) == 3
    assert run([*again, "--accept-changes"]) == 0
    after = load_checkpoint(Path("runs/b/last.pth")).model
    for name in before:
        assert (before[name] == after[name]).all() == name.startswith("decoder.layers."), name


def test_accepting_changes_of_nothing_is_wrong_usage(workshop) -> None:
    assert run(["pretrain", "decoder.yaml", "--accept-changes"]) == 2


# -- the corpus


def test_a_changed_corpus_is_refused_by_name_or_accepted_and_remembered(workshop, capfd) -> None:
    start = ["pretrain", "decoder.yaml", "--name", "a", "--set", "train.schedule.kind=constant"]
    assert run([*start, "--steps", "2"]) == 0
    with open("text/a.txt", "a", encoding="utf-8") as file:
        file.write("one more line.\n")
    capfd.readouterr()
    assert run([*start, "--steps", "4", "--resume"]) == 4
    error = capfd.readouterr().err
    assert "text/a.txt has grown from" in error
    assert "text was added at its end" in error
    assert "--accept-changes" in error
    assert run([*start, "--steps", "4", "--resume", "--accept-changes"]) == 0
    assert "another corpus than before: " in capfd.readouterr().err
    lineage = load_checkpoint(Path("runs/a/last.pth")).lineage
    assert lineage["changes"][0]["step"] == 2
    assert "a.txt has grown" in lineage["changes"][0]["data"][0]
    assert run([*start, "--steps", "5", "--resume"]) == 0


def test_a_moved_corpus_is_the_same(workshop, trained) -> None:
    constant = ["--set", "train.schedule.kind=constant"]
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "4", *constant]) == 0
    Path("text").rename("moved")
    config = Path("decoder.yaml").read_text().replace(f"{workshop}/text", f"{workshop}/moved")
    Path("decoder.yaml").write_text(config)
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--resume", "--steps", "6", *constant]) == 0
    folders = (Path("runs/a"), trained / "runs" / "decoder")
    ours, theirs = (load_checkpoint(folder / "last.pth", training=True).training["bookmark"] for folder in folders)
    assert ours["lanes"] == theirs["lanes"]
    assert ours["corpora"] != theirs["corpora"]


def test_a_file_that_is_lost_during_a_run_names_the_last_checkpoint(workshop, capfd, monkeypatch) -> None:
    original = session.Session.log

    def lose(self, report) -> None:
        original(self, report)
        if report.step == 3:
            Path("text/a.txt").unlink()

    monkeypatch.setattr(session.Session, "log", lose)
    arguments = ["--steps", "2000", "--set", "data.validation.fraction=0.0", "--set", "samples.prompts=[]"]
    assert run(["pretrain", "decoder.yaml", "--name", "a", *arguments]) == 4
    error = capfd.readouterr().err
    assert "a.txt': it does not exist (any more)" in error
    assert "after step " in error
    assert "the last checkpoint is runs/a/" in error
    assert load_checkpoint(Path("runs/a/last.pth")).lineage["step"] >= 2
