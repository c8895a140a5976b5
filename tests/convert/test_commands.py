"""Folders on the command line: looked at, written again, and places that cannot be written."""

import json
import os
import shutil

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from safetensors.torch import load_file
from whole_folders import whole_folder

from txtgen.checkpoint import load_checkpoint, save_checkpoint
from txtgen.convert import import_folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return whole_folder("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def folder(tmp_path, original, monkeypatch):
    """A folder, in a place where a cache would be seen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(original, tmp_path / "in")


def test_a_folder_is_inspected_without_writing(folder, tmp_path, run_txtgen):
    found = json.loads(run_txtgen("inspect", folder, "--json"))
    assert (found["path"], found["fingerprint"]) == (str(folder), "")
    assert found["file_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert "sha256" not in run_txtgen("inspect", folder).replace("tokens, sha256", "")
    run_txtgen("convert", "from-hf", folder, tmp_path / "model.pth")
    saved = json.loads(run_txtgen("inspect", tmp_path / "model.pth", "--json"))
    for key in ("parameters", "tensors", "tokenizer", "config", "training"):
        assert found[key] == saved[key]


def test_a_folder_is_written_again_without_a_copy(folder, tmp_path, run_txtgen):
    run_txtgen("convert", "to-hf", folder, tmp_path / "out", "--dtype", "bfloat16", "--max-shard-bytes", "20000")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    before, after = import_folder(folder), import_folder(tmp_path / "out")
    assert after.config == before.config
    assert all(torch.equal(after.model[name], tensor.bfloat16()) for name, tensor in before.model.items())


def test_keys_are_set_as_everywhere(folder, tmp_path, run_txtgen):
    run_txtgen("convert", "from-hf", folder, tmp_path / "a.pth", "--set", "dtype=float16")
    assert load_checkpoint(tmp_path / "a.pth").model["token_embedding.weight"].dtype == torch.float16
    run_txtgen("convert", "to-hf", tmp_path / "a.pth", tmp_path / "b", "--set", "dtype=float32")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "float32"
    assert "did you mean family" in run_txtgen(
        "convert", "to-hf", folder, tmp_path / "c", "--set", "famly=llama", code=2
    )


def test_an_empty_folder_is_filled_and_stays_itself(folder, tmp_path, run_txtgen, monkeypatch):
    run_txtgen("convert", "from-hf", folder, tmp_path / "model.pth")
    here, target = tmp_path / "here", tmp_path / "target"
    for place in (here, target):
        place.mkdir()
    (tmp_path / "link").symlink_to(target)
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    run_txtgen("convert", "to-hf", "../model.pth", ".")
    run_txtgen("convert", "to-hf", "../model.pth", "../link")
    assert here.stat().st_ino == inode
    assert sorted(os.listdir(here)) == sorted(os.listdir(target))
    assert "config.json" in os.listdir(here)
    assert not [name for name in os.listdir(here) if "tmp" in name]


def test_places_that_cannot_be_written(folder, tmp_path, run_txtgen, monkeypatch):
    run_txtgen("convert", "from-hf", folder, tmp_path / "model.pth")
    assert "cannot write" in run_txtgen("convert", "from-hf", folder, tmp_path / "model.pth" / "x.pth", code=6)
    assert "cannot write" in run_txtgen("convert", "to-hf", folder, tmp_path / "model.pth" / "x", code=6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "model.pth"))
    assert "cannot write" in run_txtgen("generate", folder, "--prompt", "it", code=6)
    with pytest.raises(Exception, match="cannot write"):
        save_checkpoint(tmp_path / "model.pth" / "y.pth", import_folder(folder))


def test_unusable_weights_are_noticed_before_anything_is_written(folder, tmp_path, run_txtgen):
    tensors = load_file(folder / "model.safetensors")
    norm = tensors["model.norm.weight"]
    for spoilt, told in ((norm * float("nan"), "not finite"), (norm.to(torch.float8_e5m2), "float8")):
        torch.save(tensors | {"model.norm.weight": spoilt}, tmp_path / "w.bin")
        error = run_txtgen("convert", "from-hf", folder, tmp_path / "m.pth", "--weights", tmp_path / "w.bin", code=5)
        assert told in error
        assert "model.norm.weight" in error
        assert "w.bin" in error
    assert not (tmp_path / "m.pth").exists()
