"""Finetuning with more tokens than the base model has, or with another tokenizer."""

import json
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import txtgen
from txtgen.checkpoint import load_checkpoint, save_checkpoint
from txtgen.cli import run
from txtgen.commands.running import session
from txtgen.commands.running.vocabulary import with_vocabulary
from txtgen.config.decoding import GreedyConfig
from txtgen.config.model import NgramConfig
from txtgen.config.tokenizer import VocabularyConfig
from txtgen.errors import CheckpointError, ConfigError
from txtgen.model import build_model

EXTENSION = ["--set", "tokenizer={control_symbols: [<|narrator|>], pieces: [sees the, Katze]}"]
TEXT = ["text/a.txt", "--set", "train.steps=2", "--set", "train.batch_tokens=128", "--set", "train.log_every=1"]


def base(trained: Path, name: str):
    return load_checkpoint(trained / "runs" / name / "last.pth")


def logits(checkpoint, rows: int) -> torch.Tensor:
    model = build_model(checkpoint.config.model)
    model.load_state_dict(checkpoint.model)
    model.eval()
    ids = torch.arange(5, 25)[None]
    source = {"source_ids": ids[:, :7]} if model.encoder is not None else {}
    with torch.no_grad():
        return model(ids, torch.arange(20)[None], torch.ones(1, 20, dtype=torch.int32), **source)[..., :rows]


def untied(checkpoint):
    """The same model with an output layer and a bias of its own, and where it has sources, embeddings of its own."""
    model = {**checkpoint.model, "lm_head.weight": checkpoint.model["token_embedding.weight"].flip(1).clone()}
    model["output_bias"] = torch.linspace(-1, 1, len(model["lm_head.weight"]))
    options = {"tie_embeddings": False, "output_bias": True}
    if checkpoint.config.model.kind == "encoder_decoder":
        model["source_embedding.weight"] = checkpoint.model["token_embedding.weight"].flip(1).clone()
        options |= {"share_embeddings": False, "source_vocab_size": checkpoint.config.model.vocab_size}
    config = checkpoint.config.model_copy(update={"model": checkpoint.config.model.model_copy(update=options)})
    return replace(checkpoint, model=model, config=config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["decoder", "translator"])
def test_more_tokens_leave_the_logits_of_the_others_as_they_are(trained, name, tied) -> None:
    old = base(trained, name) if tied else untied(base(trained, name))
    rows = len(old.tokenizer)
    new = with_vocabulary(old, VocabularyConfig(control_symbols=("<|narrator|>",), pieces=("sees the",)), None, "base")
    assert new.config.model.vocab_size == rows + 2 == len(new.tokenizer)
    torch.testing.assert_close(logits(new, rows), logits(old, rows), rtol=0, atol=1e-6)
    for name_of, weight in new.model.items():
        if len(weight) == rows + 2:
            expected = old.model[name_of][old.tokenizer.encode("sees the")].mean(0)
            torch.testing.assert_close(weight[-1], expected)
            torch.testing.assert_close(weight[-2], old.model[name_of].mean(0))
    grown = {name for name, weight in new.model.items() if weight.shape != old.model[name].shape}
    own = {"lm_head.weight", "output_bias"} | ({"source_embedding.weight"} if name == "translator" else set())
    assert grown == {"token_embedding.weight"} | (set() if tied else own)
    assert new.lineage["tokenizer"].startswith(
        f"{rows:,} -> {rows + 2:,} tokens: {rows:,} kept, 1 spelled before, 1 new"
    )


def test_a_run_with_more_tokens_is_saved_shown_resumed_and_generated_from(
    workshop, trained, capfd, monkeypatch
) -> None:
    command = ["finetune", *TEXT, "--base", str(trained / "runs" / "decoder"), *EXTENSION]
    assert run([*command, "--name", "straight"]) == 0
    assert "vocabulary: " in capfd.readouterr().err
    original = session.Session.log

    def interrupt(self, report) -> None:
        original(self, report)
        self.stop.receive(signal.SIGTERM, None)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "log", interrupt)
        assert run([*command, "--name", "cut"]) == 143
    assert run(["finetune", "--resume", "--name", "cut"]) == 0
    ours, theirs = (load_checkpoint(Path(f"runs/{name}/last.pth")) for name in ("cut", "straight"))
    assert all(torch.equal(ours.model[name], theirs.model[name]) for name in ours.model)
    assert ours.lineage["changes"] == theirs.lineage["changes"] != []
    assert "<|narrator|>" in ours.tokenizer.control_ids
    capfd.readouterr()
    assert run(["inspect", "runs/cut", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert "1 new" in shown["lineage"]["changes"][0]["tokenizer"]
    assert shown["tokenizer"]["vocabulary"] == len(ours.tokenizer)
    assert run(["generate", "runs/cut", "--prompt", "the cat sees the", "--max-new-tokens", "3"]) == 0
    # And what grew once may grow again.
    again = ["--base", "runs/cut", "--set", "tokenizer.pieces=[fox]", "--name", "more"]
    assert run(["finetune", *TEXT, *again]) == 0


def test_another_tokenizer_begins_better_than_random_rows(workshop, trained) -> None:
    """Of a model that has learnt something; its pieces are cut otherwise, and its ids mean other things."""
    longer = [
        "--set",
        "train.steps=150",
        "--set",
        "train.validate_every=0",
        "--set",
        "train.save_every=0",
        "--set",
        "train.optimizer.learning_rate=0.02",
        "--set",
        "model.dropout=0.0",
    ]
    assert run(["pretrain", "decoder.yaml", "--name", "base", *longer]) == 0
    train = ["tokenizer", "train", "text/a.txt", "--out", "other.model", "--vocab-size", "290"]
    assert run([*train, "--set", "algorithm=char"]) == 0
    step = ["--set", "train.steps=1", "--set", "train.optimizer.learning_rate=1.0e-9", "--base", "runs/base"]
    other = ["--set", "tokenizer.path=other.model"]
    assert run(["finetune", *TEXT, *step, *other, "--name", "mapped"]) == 0
    old = load_checkpoint(Path("runs/base/last.pth"))
    random = with_vocabulary(old, VocabularyConfig(path="other.model"), None, "base")
    weight = random.model["token_embedding.weight"]
    generator = torch.Generator().manual_seed(1)
    random.model["token_embedding.weight"] = torch.randn(weight.shape, generator=generator) * weight.std()
    save_checkpoint(Path("random.pth"), random)
    assert run(["finetune", *TEXT, *step[:-2], "--base", "random.pth", "--name", "random"]) == 0

    def first_loss(name: str) -> float:
        lines = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
        return next(line["loss"] for line in lines if "loss" in line)

    assert first_loss("mapped") < first_loss("random") - 0.3
    mapped = txtgen.load("runs/mapped", native="off").loaded
    assert len(mapped.tokenizer) == len(random.tokenizer) != len(old.tokenizer)


def test_what_cannot_be_changed_is_refused(workshop, trained, capfd) -> None:
    command = ["finetune", *TEXT, "--base", str(trained / "runs" / "decoder")]
    for setting, code, told in (
        ("tokenizer.control_symbols=[</s>]", 3, "already the name"),
        ("tokenizer.control_symbols=[<|user|>]", 3, "already"),
        ("tokenizer={pieces: [fox, fox]}", 3, "named twice"),
        ("tokenizer.path=missing.model", 5, "missing.model"),
    ):
        assert run([*command, "--set", setting]) == code
        assert told in capfd.readouterr().err
    assert run([*command, "--set", "tokenizer.pieces=[fox]", "--set", "adapter.rank=2"]) == 3
    assert "exclude each other" in capfd.readouterr().err
    assert run(["tokenizer", "train", "pairs.tsv", "--out", "other.model", "--vocab-size", "300"]) == 0
    old = base(trained, "decoder")
    with pytest.raises(ConfigError, match="no tokenizer for sources"):
        with_vocabulary(old, None, VocabularyConfig(path="other.model"), "base")
    model = old.config.model.model_copy(update={"ngrams": NgramConfig(max_order=3, num_buckets=50)})
    old = replace(old, config=old.config.model_copy(update={"model": model}))
    with pytest.raises(CheckpointError, match="its n-grams"):
        with_vocabulary(old, VocabularyConfig(path="other.model"), None, "base")
    assert (
        len(with_vocabulary(old, VocabularyConfig(pieces=("fox",)), None, "base").tokenizer) == len(old.tokenizer) + 1
    )


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"dry": {"multiplier": 1.0, "breaker_ids": [[7]]}}, True),
        ({"dry": {"multiplier": 1.0}}, False),
        ({"sequence_bias": [{"token_ids": [7], "bias": 1.0}]}, True),
        ({"sequence_bias": [{"text": "fox", "bias": 1.0}]}, False),
        ({"forced_bos_token_id": 0}, True),
    ],
)
def test_generation_defaults_that_know_ids_keep_the_tokenizer(workshop, trained, settings, refused) -> None:
    assert run(["tokenizer", "train", "pairs.tsv", "--out", "other.model", "--vocab-size", "300"]) == 0
    old = base(trained, "decoder")
    generation = GreedyConfig.model_validate_json(json.dumps(settings))
    old = replace(old, config=old.config.model_copy(update={"generation": generation}))
    with pytest.raises(CheckpointError, match="its generation defaults") if refused else nullcontext():
        with_vocabulary(old, VocabularyConfig(path="other.model"), None, "base")
    with_vocabulary(old, VocabularyConfig(pieces=("fox",)), None, "base")
