"""The JSON Schema of a configuration: it describes every key, and takes and refuses what the loader does."""

import json
from pathlib import Path
from typing import Any

import pytest

from txtgen.commands import config as config_command
from txtgen.config.loader import config_from_tree, load_run_config
from txtgen.config.model import DecoderConfig, ModelConfig
from txtgen.config.runs import FinetuneConfig, PretrainConfig
from txtgen.config.schema import schema
from txtgen.config.yaml import read_yaml_file
from txtgen.errors import ConfigError, UsageError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "txtgen" / "config" / "builtin").glob("*.yaml")])
KINDS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    """Judges of trees by the schema of each kind of run."""
    jsonschema = pytest.importorskip("jsonschema")
    found = {name: json.loads(config_command.schema(name)) for name in ("pretrain", "finetune")}
    for each in found.values():
        jsonschema.Draft202012Validator.check_schema(each)
    return {name: jsonschema.Draft202012Validator(each) for name, each in found.items()}


def test_it_describes_every_key() -> None:
    found = schema(PretrainConfig)
    assert found["properties"]["source_tokenizer"]["description"].startswith("Of the source")
    assert found["properties"]["name"]["description"].startswith("Of the run's folder"), "inherited"
    decoder = found["$defs"]["DecoderConfig"]["properties"]
    assert decoder["d_ff"]["description"] == "Width of the feed-forward hidden layers; None: 4 * d_model."
    assert decoder["d_model"]["minimum"] == 1
    assert set(decoder) == set(DecoderConfig.model_fields)
    assert json.loads(config_command.schema("finetune"))["title"] == "FinetuneConfig"
    assert {"oneOf", "discriminator"} <= set(schema(ModelConfig))
    with pytest.raises(UsageError, match="pretrain, finetune"):
        config_command.schema("nothing")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_agree_with_it(path: Path, validators: dict[str, Any]) -> None:
    kind = "pretrain" if isinstance(load_run_config(path), PretrainConfig) else "finetune"
    validators[kind].validate(read_yaml_file(path).tree)


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_with_every_value_written_out_agrees_with_it(kind: str, validators: dict[str, Any]) -> None:
    validators[kind].validate(config_from_tree(KINDS[kind], tree_with({}, kind)).plain())


def tree_with(sections: dict[str, Any], kind: str = "finetune") -> dict[str, Any]:
    """A sound tree, with other sections."""
    data = {"sources": [{"kind": "text", "path": "a.txt"}], **sections.pop("data", {})}
    return {"data": data, **({"model": {"kind": "decoder"}} if kind == "pretrain" else {}), **sections}


TAKEN: dict[str, dict[str, Any]] = {
    "freeze as a list": {"freeze": ["*embedding*"]},
    "freeze as a section": {"freeze": {"patterns": ["*embedding*"], "embeddings": True}},
    "a mixture as weights": {"data": {"objective": {"causal_lm": 0.5, "prefix_lm": 0.5}}},
    "a mixture without weights": {"data": {"objective": {"causal_lm": None, "prefix_lm": None}}},
    "a mixture with settings": {
        "data": {"objective": {"causal_lm": 1, "span_corruption": {"noise_density": 0.3, "weight": 2}}}
    },
    "a mixture in full": {"data": {"objective": {"kind": "mixture", "parts": [{"kind": "causal_lm"}]}}},
    "the usual objective": {"data": {"objective": {"separate_documents": True}}},
    "the usual optimizer": {"train": {"optimizer": {"weight_decay": 0.2}}},
    "only the time": {"train": {"minutes": 5}},
    "the time and no steps": {"train": {"steps": None, "minutes": 5}},
    "steps and no time": {"train": {"steps": 5, "minutes": None}},
    "the usual schedule": {"train": {"schedule": {"warmup_steps": 5}}},
    "the usual strategies": {"samples": {"decoding": {"top_k": 5}}, "generation": {"max_new_tokens": 5}},
    "one stop string": {"generation": {"stop": "end", "suppress_tokens": 5}},
    "several": {"generation": {"stop": ["end", "fin"], "suppress_tokens": [5, 6], "bad_words_ids": [[1, 2]]}},
    "one sampler": {"generation": {"strategy": "sample", "samplers": "top_k"}},
    "truth": {"generation": {"strategy": "beam", "early_stopping": True}},
    "a word": {"generation": {"strategy": "beam", "early_stopping": "never"}},
    "a schema as a section": {"generation": {"json_schema": {"type": "object"}}},
    "an adapter without its kind": {"adapter": {"rank": 4}},
}

REFUSED: dict[str, dict[str, Any]] = {
    "freeze as text": {"freeze": "*embedding*"},
    "freeze as numbers": {"freeze": [1]},
    "an adapter as a list": {"adapter": ["q_proj"]},
    "a mixture as a list": {"data": {"objective": ["causal_lm"]}},
    "a mixture of nothing known": {"data": {"objective": {"causal_lm": 0.5, "prefix": 0.5}}},
    "a mixture within a mixture": {"data": {"objective": {"mixture": 1.0}}},
    "a mixture with a weight of 0": {"data": {"objective": {"causal_lm": 0}}},
    "no steps": {"train": {"steps": None}},
    "neither steps nor time": {"train": {"steps": None, "minutes": None}},
    "steps in words": {"train": {"steps": "5", "minutes": 5}},
    "steps below none": {"train": {"steps": -1, "minutes": 5}},
    "no steps in no time": {"train": {"steps": None, "minutes": 0}},
    "another optimizer's setting": {"train": {"optimizer": {"momentum": 0.9}}},
    "another kind's setting": {"train": {"schedule": {"kind": "constant", "final_ratio": 0.1}}},
    "a source without its kind": {"data": {"sources": [{"path": "a.txt"}]}},
    "speculation as a word": {"generation": {"speculation": "prompt_lookup"}},
    "speculation without its kind": {"generation": {"speculation": {"num_tokens": 4}}},
    "a number as a stop string": {"generation": {"stop": 5}},
    "token ids as text": {"generation": {"suppress_tokens": "5"}},
    "an unknown key": {"generations": {}},
}


@pytest.mark.parametrize("sections", TAKEN.values(), ids=TAKEN)
def test_it_takes_what_the_loader_takes(sections: dict[str, Any], validators: dict[str, Any]) -> None:
    tree = tree_with(dict(sections))
    config_from_tree(FinetuneConfig, tree)
    validators["finetune"].validate(tree)


@pytest.mark.parametrize("sections", REFUSED.values(), ids=REFUSED)
def test_it_refuses_what_the_loader_refuses(sections: dict[str, Any], validators: dict[str, Any]) -> None:
    tree = tree_with(dict(sections))
    with pytest.raises(ConfigError):
        config_from_tree(FinetuneConfig, tree)
    assert not validators["finetune"].is_valid(tree)


def test_without_a_judge_freeze_is_seen_to_be_a_list_too() -> None:
    section, of_list = schema(FinetuneConfig)["properties"]["freeze"]["anyOf"]
    assert section == {"$ref": "#/$defs/FreezeConfig"}
    assert of_list == {"type": "array", "items": {"type": "string", "minLength": 1}}
