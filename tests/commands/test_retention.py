"""What a finetuned model keeps of its base: known text measured and replayed, and the distance of the weights."""

import json
from pathlib import Path

import pytest
import torch

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands.running.retention import distances
from txtgen.config.data import DataConfig
from txtgen.data import build_objective, train_stream
from txtgen.model import part_of
from txtgen.tokenizer import load_tokenizer

KNOWN = '[{"kind": "text", "path": "text/a.txt", "documents": "line"}]'


def metrics(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]


def finetuned(trained: Path, name: str, *settings: str) -> int:
    base = ["--base", str(trained / "runs" / "decoder"), "--name", name]
    given = [part for setting in settings for part in ("--set", setting)]
    return run(["finetune", "chats.jsonl", *base, "--set", "data.validation.fraction=0.2", *given])


def test_known_text_and_distances_are_measured_before_and_while_training(workshop, trained, capfd) -> None:
    steps = ["train.steps=4", "train.validate_every=2", "train.optimizer.learning_rate=0.01"]
    assert finetuned(trained, "a", *steps, f"data.forgetting.sources={KNOWN}", 'freeze=["*embedding*"]') == 0
    told = capfd.readouterr().err
    assert "  forgotten " in told
    lines = [line for line in metrics("a") if "val_known_bits_per_byte" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    first, *others = lines
    evaluated = ["evaluate", str(trained / "runs/decoder"), "--data", "text/a.txt", "--json"]
    assert run(evaluated) == 0
    assert first["val_known_bits_per_byte"] == pytest.approx(
        json.loads(capfd.readouterr().out)["loss"]["bits_per_byte"], rel=1e-5
    )
    for line in others:
        change = line["val_known_bits_per_byte"] - first["val_known_bits_per_byte"]
        assert line["val_forgotten_bits_per_byte"] == pytest.approx(change)
        assert line["val_loss"] > 0
    base = load_checkpoint(trained / "runs/decoder/best.pth").model
    last = load_checkpoint(Path("runs/a/last.pth")).model
    moved = sum(float((last[name].double() - base[name].double()).square().sum()) for name in base)
    size = sum(float(base[name].double().square().sum()) for name in base)
    assert others[-1]["distance"] == pytest.approx((moved / size) ** 0.5, rel=1e-5)
    assert others[-1]["distance_embedding"] == 0
    assert others[-1]["distance"] > others[0]["distance"] > 0
    assert json.loads(Path("runs/a/status.json").read_text())["validation"]["step"] == 4
    page = Path("runs/a/report.html").read_text()
    assert "Known text, bits per byte" in page
    assert "Distance from the base" in page
    assert run(["runs", "show", "a"]) == 0


def test_a_resumed_run_knows_what_was_known_before(workshop, trained) -> None:
    settings = ["train.validate_every=2", "train.save_every=2", f"data.forgetting.sources={KNOWN}"]
    assert finetuned(trained, "a", "train.steps=2", *settings) == 0
    assert run(["finetune", "--resume", "--name", "a", "--steps", "4", "--accept-changes"]) == 0
    lines = {line["step"]: line for line in metrics("a") if "val_known_bits_per_byte" in line}
    assert set(lines) == {0, 2, 4}
    change = lines[4]["val_known_bits_per_byte"] - lines[0]["val_known_bits_per_byte"]
    assert lines[4]["val_forgotten_bits_per_byte"] == pytest.approx(change)
    assert lines[4]["distance"] > 0


def test_a_base_that_is_gone_costs_the_distance_and_not_the_run(workshop, trained, capfd) -> None:
    base = Path("base.pth")
    base.write_bytes((trained / "runs/decoder/best.pth").read_bytes())
    start = ["finetune", "chats.jsonl", "--base", str(base), "--name", "a", "--set", "data.validation.fraction=0.2"]
    assert run([*start, "--steps", "2"]) == 0
    base.unlink()
    assert run(["finetune", "--resume", "--name", "a", "--steps", "3", "--accept-changes"]) == 0
    assert "is not measured: no such model" in capfd.readouterr().err
    assert "distance" not in metrics("a")[-2]


def test_replayed_text_has_its_share_and_validation_is_of_the_task_alone(workshop, trained) -> None:
    replay = f'{{"share": 0.25, "sources": {KNOWN}}}'
    assert finetuned(trained, "a", "train.steps=2", f"data.replay={replay}") == 0
    (line,) = [line for line in metrics("a") if "val_loss" in line]
    assert not [key for key in line if key.startswith("val_loss_")]
    tree = {
        "sources": ({"kind": "chat", "path": "chats.jsonl"},),
        "objective": {"kind": "chat"},
        "replay": {"share": 0.25, "sources": ({"kind": "text", "path": "text/a.txt", "documents": "line"},)},
    }
    data = DataConfig.model_validate(tree)
    tokenizer = load_tokenizer(trained / "runs/decoder/tokenizer.model")
    objective = build_objective(data.training_objective, tokenizer, max_length=32)
    tokens = {0: 0, 1: 0}
    stream = train_stream(data, objective, batch_tokens=256, length=32, seed=0)
    for _ in range(60):
        batch = next(stream)
        assert batch.separate
        for row, origins in enumerate(batch.origins):
            for number, origin in enumerate(origins, 1):
                tokens[origin.source] += int((batch.segment_ids[row] == number).sum())
    stream.close()
    assert tokens[1] / sum(tokens.values()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ('data.replay={"sources": [{"kind": "text", "path": "x"}], "share": 1.5}', "share"),
        ('data.replay={"sources": []}', "data.replay.sources"),
        (
            'data.replay={"sources": [{"kind": "tsv", "path": "x"}], "objective": {"kind": "causal_lm"}}',
            "data.replay.sources.0.kind: a tsv source cannot serve causal_lm",
        ),
        (
            'data.replay={"sources": [{"kind": "tsv", "path": "x"}], "objective": {"kind": "chat"}}',
            "reads the same kinds of sources as data.objective",
        ),
        (
            'data.forgetting={"sources": [{"kind": "text", "path": "text"}], "objective": {"kind": "denoising"}}',
            "data.forgetting.objective: denoising needs an encoder_decoder",
        ),
    ],
)
def test_mistakes(workshop, trained, capfd, setting, told) -> None:
    assert finetuned(trained, "a", setting) == 3
    assert told in capfd.readouterr().err


def test_the_distance_of_an_adapter_is_that_of_the_merged_model(workshop, trained) -> None:
    for name, bits in (("plain", "null"), ("bits", "8")):
        adapter = [f"adapter={{rank: 2, base_bits: {bits}}}", "train.optimizer.learning_rate=0.05"]
        assert finetuned(trained, name, "train.steps=3", *adapter) == 0
    base = load_checkpoint(trained / "runs/decoder/best.pth").model
    assert run(["convert", "merge", "runs/plain/last.pth", "--out", "merged.pth"]) == 0
    merged = load_checkpoint(Path("merged.pth")).model
    moved = sum(float((merged[name].double() - base[name].double()).square().sum()) for name in base)
    size = sum(float(base[name].double().square().sum()) for name in base)
    plain_run, in_bits = (metrics(name)[-2] for name in ("plain", "bits"))
    assert plain_run["distance"] == pytest.approx((moved / size) ** 0.5, rel=1e-4)
    assert plain_run["distance"] > 0
    assert plain_run["distance_embedding"] == 0
    assert in_bits["distance_attention"] == pytest.approx(plain_run["distance_attention"], rel=0.2)


def plain(weights: dict[str, torch.Tensor]) -> list[tuple]:
    return [(name, weight, None) for name, weight in weights.items()]


def test_distances_by_part() -> None:
    draw = torch.Generator().manual_seed(0)
    names = ["token_embedding.weight", "decoder.layers.0.self_attention.q_proj.weight", "decoder.final_norm.weight"]
    base = {name: torch.randn(5, 4, generator=draw) for name in names}
    weights = {name: weight * 1.5 for name, weight in base.items()}
    weights |= {"new.weight": torch.ones(2), "lm_head.weight": torch.ones(7, 4)}
    base["lm_head.weight"] = torch.ones(5, 4)  # of another vocabulary
    found = distances(plain(weights), base)
    assert found == {key: pytest.approx(0.5) for key in ("distance", *(f"distance_{part_of(name)}" for name in names))}
    moved = {**base, names[0]: base[names[0]] + 1.0}
    one = 20 / sum(float(weight.square().sum()) for weight in base.values())
    assert distances(plain(moved), base)["distance"] == pytest.approx(one**0.5)
    assert distances([], base) == {}
