"""Imported models generate what transformers generates: our search, our cache, their `generate`."""

import pytest

pytest.importorskip("transformers")

from huggingface_cases import compare_all
from tiny_families import MODELS, save, tiny_model

from txtgen.checkpoint import load_weights
from txtgen.convert.families import family_of, read_model
from txtgen.convert.fields import Fields, read_json
from txtgen.convert.weights import open_weights
from txtgen.model import build_model


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Models of ours by name, each with the weights of the one of transformers."""
    known = {}

    def model_of(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            save(tiny_model(name), folder)
            fields = Fields(read_json(folder / "config.json"), "config.json")
            config, state = read_model(family_of(fields), fields, open_weights(folder))
            model = build_model(config)
            load_weights(model, state, "test")
            known[name] = model.eval()
        return known[name]

    return model_of


@pytest.mark.parametrize("name", MODELS)
def test_generates_what_transformers_generates(imported, name):
    compare_all(tiny_model(name), imported(name), range(6))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_generates_what_transformers_generates_at_length(imported, name):
    compare_all(tiny_model(name), imported(name), range(1000, 1060))
