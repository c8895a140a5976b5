"""Files of weights: whole, in shards, damaged, hostile."""

import json
import os
import pickle
import random
import zipfile
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from txtgen.convert.weights import open_file, open_weights
from txtgen.errors import CheckpointError

TENSORS = {f"layer.{number}.weight": torch.full((2, 3), float(number)) for number in range(4)}


def write_shards(folder, suffix="safetensors", **changes):
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = list(TENSORS)
    weight_map = {}
    for number, part in enumerate((names[:2], names[2:]), start=1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        tensors = {name: TENSORS[name] for name in part}
        if suffix == "safetensors":
            save_file(tensors, folder / file)
        else:
            torch.save(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map | changes}))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_all_forms_hold_the_same(tmp_path, suffix, sharded):
    if sharded:
        write_shards(tmp_path, suffix)
    elif suffix == "bin":
        torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    else:
        save_file(TENSORS, tmp_path / "model.safetensors")
    found = open_weights(tmp_path)
    assert list(found) == list(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_the_format_before_zip_is_read_too(tmp_path):
    torch.save(TENSORS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(open_file(tmp_path / "old.bin")["layer.3.weight"], TENSORS["layer.3.weight"])


def test_safetensors_are_preferred(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert len(open_weights(tmp_path)) == 4


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights in this folder.*model.safetensors"):
        open_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no such file of weights"):
        open_file(tmp_path / "none.pth")


@pytest.mark.parametrize("keep", [0, 5, 60, -8])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_truncated_shard_is_named(tmp_path, suffix, keep):
    write_shards(tmp_path, suffix)
    shard = next(tmp_path.glob(f"*-00002-of-00002.{suffix}"))
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        open_weights(tmp_path)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "", "..", "a/b.safetensors", 7, None])
def test_an_index_that_points_outside_is_refused(tmp_path, file):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(TENSORS, tmp_path / "secret.safetensors")
    write_shards(inside, **{"layer.0.weight": file})
    with pytest.raises(CheckpointError, match=r"puts layer.0.weight into .*no file of this folder"):
        open_weights(inside)


def test_an_index_of_what_is_not_there(tmp_path):
    write_shards(tmp_path, **{"layer.9.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"lacks layer.9.weight"):
        open_weights(tmp_path)
    write_shards(tmp_path, **{"layer.9.weight": "model-00003-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match="no such file of weights"):
        open_weights(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index.json"):
        open_weights(tmp_path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_pickle_never_runs(tmp_path, zipped):
    marker, path = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    if zipped:
        torch.save({"w": torch.ones(2), "evil": Evil(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"evil": Evil(marker)}))
    with pytest.raises(CheckpointError, match="not usable weights") as caught:
        open_weights(tmp_path)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()


def test_a_zip_bomb_is_refused_unopened(tmp_path):
    torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "w.bin")
    with (
        zipfile.ZipFile(tmp_path / "w.bin") as source,
        zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        open_weights(tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        open_weights(tmp_path)


def test_tensors_that_claim_more_than_they_hold(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**9)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"tensor w of shape \[1000000000\] is larger than its data"):
        open_weights(tmp_path)["w"]


def test_what_is_no_float_tensor(tmp_path):
    sparse = torch.zeros(3, 3).to_sparse()
    torch.save({"w": torch.zeros(2, dtype=torch.int64), "s": sparse, "t": torch.zeros(1)}, tmp_path / "w.bin")
    weights = open_file(tmp_path / "w.bin")
    for name in ("w", "s"):
        with pytest.raises(CheckpointError, match=f"{name} is no dense tensor"):
            weights[name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_that_are_not_finite(tmp_path, dtype, value, suffix):
    tensors = {name: torch.zeros(33, 3, dtype=dtype) for name in ("good", "bad")} | {"none": torch.zeros(0, 3)}
    tensors["bad"][-1, -1] = value
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(tensors, path)
    weights = open_file(path)
    assert weights["good"].dtype == dtype
    assert weights["none"].numel() == 0
    with pytest.raises(CheckpointError, match=rf"tensor bad holds values that are not finite; .*w\.{suffix}"):
        weights["bad"]


def test_numbers_that_no_model_computes_with(tmp_path):
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor w is of float8_e4m3fn.*w\.safetensors.*one of float64, float32"):
        open_file(tmp_path / "w.safetensors")["w"]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_tensor_without_data(tmp_path, zipped):
    torch.save({"w": torch.empty(2, device="meta")}, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"tensor w of shape \[2\] is larger than its data"):
        open_file(tmp_path / "w.bin")["w"]


def test_the_old_format_cut_anywhere(tmp_path):
    path = tmp_path / "old.bin"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"old\.bin"):
            open_file(path)


def test_the_old_format_damaged_anywhere(tmp_path):
    path = tmp_path / "old.bin"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(damaged)
        with suppress(CheckpointError):
            dict(open_file(path))


@pytest.mark.parametrize("content", [{"a": 1}, [torch.ones(2)], {"model": {}}, torch.ones(3)])
def test_a_pickle_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no weights by name"):
        open_file(tmp_path / "w.pth")
