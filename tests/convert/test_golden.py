"""Every family against stored logits of transformers, where transformers itself is not needed.

`python tests/convert/test_golden.py` writes them anew.
"""

import json
from pathlib import Path

import pytest
import torch
from tiny_families import MODELS, inputs, their_logits, tiny_model, weight

from txtgen.checkpoint import load_weights
from txtgen.config.model import EncoderDecoderConfig
from txtgen.convert.families import FAMILIES
from txtgen.convert.fields import Fields
from txtgen.model import build_model

STORED = Path(__file__).with_name("golden_logits.json")


def sample(logits):
    """Some of the logits [B,T,V], as lists."""
    return logits[:, ::4, ::7].double().round(decimals=6).tolist()


@pytest.fixture(scope="module")
def golden():
    return json.loads(STORED.read_text())


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_stored(golden, name):
    fields = Fields(golden[name]["config"], name)
    family = FAMILIES[golden[name]["config"]["model_type"]]
    named = {part: torch.ones(1) for part in golden[name]["weights"]}
    config = family.read(fields, named)
    shapes = {part: tensor.shape for part, tensor in build_model(config, "meta").state_dict().items()}
    state = {}
    for rule in family.rules(config):
        theirs = rule.to_theirs([torch.empty(shapes[part], device="meta") for part in rule.names])
        parts = rule.to_ours(weight(rule.theirs, theirs.shape), [shapes[part][0] for part in rule.names])
        state |= dict(zip(rule.names, parts, strict=True))
    model = build_model(config)
    load_weights(model, state, name)
    ids, source, mask = inputs(isinstance(config, EncoderDecoderConfig))
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.no_grad():
        logits = model.eval()(ids, positions, torch.ones_like(ids), source_ids=source, source_mask=mask)
    torch.testing.assert_close(torch.tensor(sample(logits)), torch.tensor(golden[name]["logits"]), rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_stored_is_what_transformers_gives(golden, name):
    pytest.importorskip("transformers")
    made = make(name)
    torch.testing.assert_close(torch.tensor(made["logits"]), torch.tensor(golden[name]["logits"]), rtol=0, atol=5e-5)
    assert made["weights"] == golden[name]["weights"]


def make(name):
    """What is stored of a model."""
    model = tiny_model(name)
    config = {
        key: value
        for key, value in model.config.to_diff_dict().items()
        if key not in ("architectures", "dtype", "transformers_version")
    }
    weights = sorted({*dict(model.named_parameters())} | {part for part, _ in model.named_buffers() if "bias" in part})
    logits = their_logits(model, *inputs(model.config.is_encoder_decoder))
    return {"config": config, "weights": weights, "logits": sample(logits)}


if __name__ == "__main__":
    stored = {name: make(name) for name in MODELS}
    STORED.write_text(json.dumps(stored, separators=(",", ":")) + "\n")
