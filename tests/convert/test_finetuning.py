"""Imported models go on learning as any other."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from whole_folders import CHATML, whole_folder

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run

TRAIN = (
    "--steps", "12", "--set", "train.batch_tokens=96", "--set", "train.validate_every=6", "--dtype", "float32",
    "--set", "train.optimizer.learning_rate=0.01", "--set", "train.log_every=1",
)  # fmt: skip
WORDS = {"cat": "Katze", "dog": "Hund", "fox": "Fuchs", "sun": "Sonne", "sea": "Meer", "car": "Auto"}


@pytest.fixture
def data(tmp_path):
    """A text, pairs and conversations."""
    lines = [f"the {one} and the {other} jump\n" for one in WORDS for other in WORDS]
    (tmp_path / "text.txt").write_text("".join(lines))
    pairs = [f"the {one} and the {two}\t{WORDS[one]} und {WORDS[two]}\n" for one in WORDS for two in WORDS]
    (tmp_path / "pairs.tsv").write_text("".join(pairs))
    chats = [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": answer}]}
        for word, answer in WORDS.items()
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats * 4))
    return tmp_path


@pytest.mark.parametrize(
    ("family", "file"),
    [("gpt2", "text.txt"), ("llama", "text.txt"), ("qwen3", "chats.jsonl"), ("t5", "pairs.tsv"), ("bart", "pairs.tsv"),
     ("marian", "pairs.tsv")],
)  # fmt: skip
def test_finetuning_from_a_folder(tmp_path, data, run_txtgen, monkeypatch, family, file):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = whole_folder(family, tmp_path / family)
    run_txtgen("convert", "from-hf", folder, "base.pth")
    base = load_checkpoint(tmp_path / "base.pth")
    more = () if family == "marian" else ("--set", "train.label_smoothing=0.1")
    run_txtgen("finetune", data / file, "--base", "base.pth", "--name", "tuned", *TRAIN, *more)
    tuned = load_checkpoint(tmp_path / "runs" / "tuned" / "last.pth", training=True)
    assert tuned.config.framing == base.config.framing
    assert tuned.config.model == base.config.model
    assert tuned.tokenizer.fingerprint() == base.tokenizer.fingerprint()
    assert tuned.lineage["parent"] == base.fingerprint
    moved = {name for name, tensor in tuned.model.items() if not torch.equal(tensor, base.model[name])}
    assert len(moved) > 0.9 * len(tuned.model)
    if family == "qwen3":
        assert tuned.config.chat.template == CHATML
    lines = [json.loads(line) for line in (tmp_path / "runs/tuned/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    written = run_txtgen("generate", "runs/tuned", "--prompt", "the cat", "--max-new-tokens", "5", "--json")
    assert json.loads(written)["finish_reason"] in ("eos", "length")
    run_txtgen(
        "finetune",
        data / file,
        "--base",
        "base.pth",
        "--name",
        "tuned",
        *TRAIN,
        *more,
        "--steps",
        "14",
        "--resume",
        "--accept-changes",
    )
    assert load_checkpoint(tmp_path / "runs" / "tuned" / "last.pth", training=True).training["step"] == 14
    run_txtgen("convert", "to-hf", "runs/tuned", tmp_path / "out", "--family", family)


def test_a_half_precision_model_is_trained_in_float32(tmp_path, data, run_txtgen, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = whole_folder("llama", tmp_path / "llama")
    run_txtgen("convert", "from-hf", folder, "base.pth", "--dtype", "bfloat16")
    assert load_checkpoint(tmp_path / "base.pth").model["decoder.final_norm.weight"].dtype == torch.bfloat16
    run_txtgen("finetune", data / "text.txt", "--base", "base.pth", "--name", "tuned", *TRAIN)
    assert load_checkpoint(tmp_path / "runs/tuned/last.pth").model["decoder.final_norm.weight"].dtype == torch.float32


def test_a_template_teaches_the_assistants_turns_only(tmp_path, data, run_txtgen, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_txtgen("convert", "from-hf", whole_folder("qwen2", tmp_path / "qwen2"), "base.pth")
    wrong = ("--set", "data.objective.roles=[user]")
    output = run_txtgen("finetune", data / "chats.jsonl", "--base", "base.pth", *TRAIN, *wrong, code=3)
    assert "data.objective.roles" in output


def llama_of(positions: int, folder: Path) -> Path:
    whole_folder("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    return folder


def test_rows_of_a_model_with_a_long_memory_fit_a_machine(tmp_path, data, run_txtgen, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_txtgen("convert", "from-hf", llama_of(131_072, tmp_path / "llama"), "base.pth")
    found = json.loads(run_txtgen("evaluate", "base.pth", "--data", data / "text.txt", "--json"))
    assert found["loss"]["tokens"] > 100
    train = ("--steps", "1", "--set", "train.batch_tokens=1024")
    run_txtgen("finetune", data / "text.txt", "--base", "base.pth", "--name", "tuned", *train)
    tuned = load_checkpoint(tmp_path / "runs/tuned/last.pth")
    assert tuned.config.model.max_length == 131_072
    run_txtgen("finetune", data / "text.txt", "--base", "runs/tuned", "--name", "again", *train)


def test_a_run_resumes_with_the_rows_that_it_began_with(tmp_path, data, run_txtgen, monkeypatch):
    """Runs that began when rows from elsewhere had another length do not say it: their place in the data does."""
    monkeypatch.chdir(tmp_path)
    run_txtgen("convert", "from-hf", llama_of(96, tmp_path / "llama"), "base.pth")
    train = (*TRAIN, "--set", "train.batch_tokens=192", "--set", "train.save_every=6")
    run_txtgen("finetune", data / "text.txt", "--base", "base.pth", "--name", "tuned", *train)
    straight = load_checkpoint(tmp_path / "runs/tuned/last.pth", training=True)
    (tmp_path / "runs/tuned/checkpoints/step-00000012.pth").unlink()
    monkeypatch.setattr("txtgen.config.runs.ROW_LENGTH_FROM_ELSEWHERE", 40)
    run_txtgen("finetune", "--name", "tuned", "--resume")
    resumed = load_checkpoint(tmp_path / "runs/tuned/last.pth", training=True)
    assert resumed.training["bookmark"] == straight.training["bookmark"]
    assert all(torch.equal(weight, straight.model[name]) for name, weight in resumed.model.items())
    train = ("--steps", "1", "--set", "train.batch_tokens=192")
    run_txtgen("finetune", data / "text.txt", "--base", "base.pth", "--name", "new", *train, code=3)


def test_what_is_cut_is_told(tmp_path, run_txtgen, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_txtgen("convert", "from-hf", whole_folder("qwen3", tmp_path / "qwen3"), "base.pth")
    length = load_checkpoint(tmp_path / "base.pth").config.model.max_length
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the fox " * length}]
    (tmp_path / "long.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 4)
    capsys.readouterr()
    assert run(["finetune", "long.jsonl", "--base", "base.pth", "--name", "tuned", *TRAIN]) == 0
    told = capsys.readouterr().err
    assert f"examples that were too long for {length} tokens (train.sequence_length, at most {length})" in told
