"""Every shipped config loads, and learns for two shrunk steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from txtgen.cli import run
from txtgen.commands.config import show
from txtgen.config.loader import load_run_config
from txtgen.config.runs import PretrainConfig

ROOT = Path(__file__).parents[1]
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "txtgen" / "config" / "builtin").glob("*.yaml")])
SMALL_MODEL = {
    "d_model": 16, "num_heads": 2, "num_kv_heads": 1, "d_ff": 32, "max_length": 32, "max_source_length": 32,
    "num_layers": 1, "num_encoder_layers": 1, "num_decoder_layers": 1,
}  # fmt: skip
SMALL_TRAIN = {"steps": 2, "batch_tokens": 128, "micro_batch_tokens": 64, "sequence_length": None, "validate_every": 1}


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 16


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_loads_and_resolves(path) -> None:
    config = load_run_config(path)
    assert yaml.safe_load(show(path))["data"]["sources"]
    assert config.generation.strategy in ("greedy", "beam", "sample")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_two_shrunk_steps_run(path, tmp_path, monkeypatch) -> None:
    """The config as it stands, but for its sizes and its files: the kinds of sources, model and objective stay."""
    monkeypatch.chdir(tmp_path)
    config = load_run_config(path)
    tree = config.plain()
    data = tree["data"]
    data["sources"] = [small_source(source, tmp_path) for source in data["sources"]]
    data["validation"]["sources"] = [small_source(source, tmp_path) for source in data["validation"]["sources"]]
    if data["validation"]["fraction"]:
        data["validation"]["fraction"] = 0.2
    tree["train"] |= {key: value for key, value in SMALL_TRAIN.items() if tree["train"][key] is not None}
    tree["train"]["schedule"]["warmup_steps"] = 1
    tree["train"]["validation_translations"] = 2
    tree["samples"]["decoding"]["max_new_tokens"] = 3
    tree["samples"]["prompts"] = ["the"]
    for key in ("max_new_tokens", "max_length"):
        if tree["generation"].get(key):
            tree["generation"][key] = 8
    tree["generation"]["min_new_tokens"] = 0
    if isinstance(config, PretrainConfig):
        tree["tokenizer"] |= {"path": None, "vocab_size": 300 + len(config.data.objective.control_symbols)}
        small = {key: value for key, value in SMALL_MODEL.items() if tree["model"].get(key) is not None}
        tree["model"] |= small
        command = ["pretrain"]
    else:
        assert run(["pretrain", base_config(tmp_path, config.data.objective.architectures[0]), "--name", "base"]) == 0
        command = ["finetune", "--base", "runs/base"]
    (tmp_path / "small.yaml").write_text(json.dumps(tree), encoding="utf-8")
    assert run([*command, "small.yaml", "--name", "small"]) == 0
    assert (tmp_path / "runs" / "small" / "last.pth").exists()


def small_source(source: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same kind of source, over a few lines that the test writes."""
    lines = [f"the {number} cats and dogs" for number in range(60)]
    rows: list[str]
    match source["kind"]:
        case "text":
            rows = [f"{line}\n" for line in lines]
            return source | {"path": write(folder, "text.txt", rows), "documents": "line"}
        case "jsonl":
            return source | {
                "path": write(folder, "text.jsonl", [json.dumps({source["text_field"]: x}) for x in lines])
            }
        case "tsv":
            return source | {"path": write(folder, "pairs.tsv", [f"{line}\t{line[::-1]}" for line in lines])}
        case "jsonl_pairs":
            rows = [json.dumps({source["source_field"]: line, source["target_field"]: line[::-1]}) for line in lines]
            return source | {"path": write(folder, "pairs.jsonl", rows)}
        case "parallel":
            paths = {"source_path": write(folder, "a.txt", lines), "target_path": write(folder, "b.txt", lines)}
            return source | paths
        case "chat":
            turns = [[{"role": "user", "content": x}, {"role": "assistant", "content": "yes"}] for x in lines]
            return source | {"path": write(folder, "chat.jsonl", [json.dumps({"messages": turn}) for turn in turns])}
        case "preference":
            pairs = [{"prompt": line, "chosen": "yes", "rejected": "no"} for line in lines]
            return source | {"path": write(folder, "preferences.jsonl", [json.dumps(pair) for pair in pairs])}
    raise AssertionError(source)


def write(folder: Path, name: str, lines: list[str]) -> str:
    path = folder / name
    path.write_text("".join(line.rstrip("\n") + "\n" for line in lines), encoding="utf-8")
    return str(path)


def base_config(folder: Path, architecture: str) -> str:
    """A pretraining config of a small model that the finetuning config can go on from."""
    source = small_source({"kind": "text", "documents": "line"}, folder)
    model = {"kind": "decoder", "d_model": 16, "num_heads": 2, "num_layers": 1, "max_length": 32}
    if architecture == "encoder_decoder":
        source = small_source({"kind": "tsv"}, folder)
        model = {"kind": architecture, "d_model": 16, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
    train = {"steps": 1, "batch_tokens": 64}
    objective = {"kind": "seq2seq" if architecture == "encoder_decoder" else "causal_lm"}
    tree = {
        "data": {"sources": [source], "objective": objective},
        "tokenizer": {"vocab_size": 300},
        "model": model,
        "train": train,
    }
    return write(folder, "base.yaml", [json.dumps(tree)])
