import io
import json
import math
import os
import pickle
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from txtgen import archive as archive_module
from txtgen.checkpoint import Checkpoint, load_checkpoint, materialise, save_checkpoint, writing
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.model import DecoderConfig
from txtgen.errors import CheckpointError, ResourceError
from txtgen.files import replace_file
from txtgen.model import build_model, init_weights


@pytest.fixture
def saved(tmp_path, tokenizer) -> tuple[Path, Checkpoint]:
    config = DecoderConfig(d_model=16, num_heads=2, num_layers=1, max_length=16, vocab_size=len(tokenizer))
    model = build_model(config, device="cpu")
    init_weights(model, 0)
    training = {"step": 3, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "bookmark": {"lanes": [1, 2]}}
    original = Checkpoint(
        config=CheckpointConfig(model=config, run={"seed": 1}),
        model=model.state_dict(),
        tokenizer=tokenizer,
        source_tokenizer=None,
        lineage={"parent": None},
        training=training,
    )
    path = tmp_path / "model.pth"
    save_checkpoint(path, original)
    return path, original


def read_ahead(path: Path, **how: bool) -> Checkpoint:
    """Load a checkpoint whose file is verified in a thread meanwhile."""
    archive_module.verify_ahead(path)
    return load_checkpoint(path, **how)


either_way = pytest.mark.parametrize("load", [load_checkpoint, read_ahead])


def test_round_trip(saved) -> None:
    path, original = saved
    loaded = load_checkpoint(path, training=True)
    assert loaded.config == original.config
    assert loaded.lineage == original.lineage
    assert loaded.training == original.training
    assert loaded.tokenizer.fingerprint() == original.tokenizer.fingerprint()
    for name, tensor in original.model.items():
        assert torch.equal(tensor, loaded.model[name])
    assert len(loaded.fingerprint) == 64
    assert load_checkpoint(path).training is None


def test_without_its_weights_a_checkpoint_is_read_but_for_them(saved, monkeypatch) -> None:
    path, checkpoint = saved
    read, original = [], archive_module._hash_entry
    monkeypatch.setattr(
        archive_module, "_hash_entry", lambda archive, name: read.append(name) or original(archive, name)
    )
    found = load_checkpoint(path, weights=False)
    assert not any("/data/" in name for name in read)
    assert not found.model
    whole = load_checkpoint(path)
    assert (found.config, found.lineage, found.fingerprint) == (whole.config, whole.lineage, whole.fingerprint)
    assert found.tokenizer.fingerprint() == checkpoint.tokenizer.fingerprint()
    content = bytearray(path.read_bytes())
    content[content.index(b"lineage")] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path, weights=False)


def test_weights_share_memory_where_they_did_and_none_with_the_file(saved) -> None:
    path, original = saved
    name = "token_embedding.weight"
    both = original.model[name]
    save_checkpoint(path, replace(original, model={**original.model, "a": both[2:].mT, "b": both[:2], "c": both[:0]}))
    found = load_checkpoint(path).model
    assert torch.equal(found["a"], both[2:].mT)
    assert found["b"].untyped_storage().data_ptr() == found[name].untyped_storage().data_ptr()
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))  # in place, as a copy over it does
    assert all(torch.equal(tensor, original.model.get(name, tensor)) for name, tensor in found.items())
    assert torch.equal(found["a"], both[2:].mT)


@pytest.mark.skipif(sys.platform != "linux", reason="only there an open file has a name, and the peak can begin anew")
def test_the_training_state_takes_no_memory_where_it_is_left_out(saved) -> None:
    path, original = saved
    size = 1 << 22
    weights = {f"{number}": torch.full((size,), float(number)) for number in range(4)}  # 64 MiB
    moments = {"optimizer": [torch.zeros_like(tensor) for _ in range(3) for tensor in weights.values()]}  # 192 MiB
    save_checkpoint(path, replace(original, model=weights, training=moments))
    del moments
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_bytes("VmRSS")
    found = load_checkpoint(path)
    assert memory_bytes("VmHWM") - before < 1.5 * 4 * 4 * size
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.model.items())


def memory_bytes(key: str) -> int:
    """What Linux says of this process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="an open file has no name of its own")
@pytest.mark.parametrize("how", [{}, {"mapped": True}, {"weights": False}])
def test_what_is_read_is_what_was_verified_though_another_file_takes_its_name(saved, monkeypatch, how) -> None:
    path, original = saved
    other = path.with_name("other.pth")
    save_checkpoint(other, replace(original, lineage={"step": 999}))
    read = torch.load

    def late(*arguments, **options):
        other.replace(path)
        return read(*arguments, **options)

    monkeypatch.setattr(torch, "load", late)
    found = load_checkpoint(path, **how)
    assert found.lineage == original.lineage
    assert all(torch.equal(tensor, original.model[name]) for name, tensor in found.model.items())


def test_a_file_that_is_verified_ahead_is_hashed_once_and_the_next_time_anew(saved, monkeypatch) -> None:
    path, _ = saved
    hashed, original = [], archive_module._hash_entry
    monkeypatch.setattr(
        archive_module, "_hash_entry", lambda archive, name: hashed.append(name) or original(archive, name)
    )
    first = read_ahead(path)
    assert len(hashed) == len(set(hashed)) > 3
    assert load_checkpoint(path).fingerprint == first.fingerprint
    assert len(hashed) == 2 * len(set(hashed))


def test_where_no_thread_can_be_had_a_file_is_verified_when_it_is_read(saved, monkeypatch) -> None:
    path, original = saved

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(archive_module.Thread, "start", refuse)
    assert read_ahead(path).lineage == original.lineage


@pytest.mark.parametrize("way", ["written to", "replaced"])
def test_a_file_that_changes_after_it_was_verified_is_verified_anew(saved, way) -> None:
    path, _ = saved
    content = bytearray(path.read_bytes())
    archive_module.verify_ahead(path)
    found = [*archive_module._ahead.values()][-1].result()
    assert len(found) == 64
    content[content.index(b"lineage")] ^= 1
    if way == "replaced":
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.with_name("other").write_bytes(content)
        os.utime(path.with_name("other"), ns=times)
        path.with_name("other").replace(path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a usable checkpoint"):
        load_checkpoint(path)


def test_what_cannot_be_opened_is_told_by_who_loads_it(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "missing.pth"):
        archive_module.verify_ahead(path)
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            load_checkpoint(path)


def test_torch_alone_reads_what_the_contract_says(saved) -> None:
    path, original = saved
    content = torch.load(path, weights_only=True)
    assert set(content) == {"format", "config", "model", "tokenizer", "source_tokenizer", "lineage", "training"}
    assert content["format"] == 1
    assert content["config"]["model"]["d_model"] == 16
    assert content["tokenizer"]["files"] == original.tokenizer.files()
    assert content["tokenizer"]["special"]["eos_id"] == original.tokenizer.special.eos_id


def test_loaded_model_computes_the_same(saved) -> None:
    path, original = saved
    loaded = materialise(load_checkpoint(path), str(path))
    assert not loaded.model.training
    twin = build_model(original.config.model, device="cpu").eval()
    twin.load_state_dict(original.model)
    ids = torch.randint(0, 16, (2, 5))
    arguments = (ids, torch.arange(5).expand(2, 5), torch.ones(2, 5, dtype=torch.int32))
    assert torch.equal(loaded.model(*arguments), twin(*arguments))


@either_way
@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_a_truncated_file_is_refused(saved, keep, load) -> None:
    path, _ = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)] if isinstance(keep, float) else content[:keep])
    with pytest.raises(CheckpointError, match="not a usable checkpoint"):
        load(path)


@either_way
def test_every_flipped_bit_is_noticed(saved, load) -> None:
    """Bits in tensors, pickle, manifest, headers and directory: torch alone would load most of them."""
    path, _ = saved
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        data = {info.filename: info.header_offset for info in archive.infolist()}
    places = [*range(5, len(content), max(1, len(content) // 97)), *(offset + 100 for offset in data.values())]
    for place in places:
        damaged = bytearray(content)
        damaged[min(place, len(content) - 1)] ^= 0x10
        path.write_bytes(damaged)
        try:
            loaded = load(path, training=True)
        except CheckpointError:
            continue
        # Padding between entries and dates in headers carry nothing; what was read must be intact.
        path.write_bytes(content)
        intact = load_checkpoint(path, training=True)
        assert loaded.config == intact.config
        assert all(torch.equal(loaded.model[name], intact.model[name]) for name in intact.model)
        assert loaded.training == intact.training


@either_way
def test_a_tensor_marked_as_a_folder_is_refused(saved, load) -> None:
    """One bit in the list of entries, and torch reads nothing: the tensor has whatever stood in memory before."""
    path, _ = saved
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02", 0, content.rfind(b"/data/0")) + 38] |= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="marked as a folder"):
        load(path)


@either_way
@pytest.mark.parametrize(
    ("content", "look"),
    [
        (b"", "empty"),
        (b"\x00" * 1000, "zeros"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "PNG"),
        (b"\x1f\x8b\x08\x00" + b"\x07" * 50, "gzip"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b" " * 70, "safetensors"),
        (b"hello world, this is no checkpoint at all", "no zip archive"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, look, load) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=look):
        load(path)


def test_a_folder_a_pipe_or_nothing_is_no_checkpoint(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path, tmp_path / "missing.pth", tmp_path / "pipe.pth"):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            load_checkpoint(path)


class Evil:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@either_way
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path, saved, load) -> None:
    path, _ = saved
    marker = tmp_path / "executed"
    raw = tmp_path / "raw.pth"
    raw.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(CheckpointError, match="raw pickle"):
        load(raw)
    buffer = io.BytesIO()
    torch.save({"format": 1, "model": Evil(marker)}, buffer)
    with_manifest(buffer, path)
    with pytest.raises(CheckpointError, match="more than tensors") as caught:
        load(path)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()


def with_manifest(buffer: io.BytesIO, path: Path, *, compress: bool = False) -> None:
    """Make an archive look like a checkpoint: its hashes are right, whatever it holds."""
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
        hashes = {name: archive_module._hash_entry(source, name) for name in source.namelist()}
        archive.writestr("archive/txtgen.json", json.dumps({"format": 1, "sha256": hashes}))


@either_way
def test_a_zip_bomb_is_refused_unopened(tmp_path, load) -> None:
    buffer = io.BytesIO()
    torch.save({"format": 1, "model": {"w": torch.zeros(1_000_000)}}, buffer)
    path = tmp_path / "bomb.pth"
    with_manifest(buffer, path, compress=True)
    with pytest.raises(CheckpointError, match="compressed"):
        load(path)


def test_a_million_entries_are_refused_before_they_are_read(tmp_path) -> None:
    """The list alone of a million entries would take gigabytes, once it is Python objects."""
    path = tmp_path / "many.pth"
    entry = b"PK\x01\x02" + bytes(24) + (40).to_bytes(2, "little") + bytes(16) + b"n" * 40
    count = 1_000_000
    end = b"PK\x05\x06" + bytes(4) + b"\xff" * 4 + (count * len(entry)).to_bytes(4, "little") + bytes(6)
    path.write_bytes(entry * count + end)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="list of entries is too long"):
        load_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_as_many_entries_as_can_be_are_counted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_ENTRIES", 3)
    buffer = io.BytesIO()
    torch.save({"format": 1, "model": {str(number): torch.zeros(1) for number in range(5)}}, buffer)
    path = tmp_path / "many.pth"
    with_manifest(buffer, path)
    with pytest.raises(CheckpointError, match="more than 3"):
        load_checkpoint(path)


def test_a_tensor_larger_than_its_data_is_refused(tmp_path, tokenizer) -> None:
    buffer = io.BytesIO()
    tensors = {"w": torch.zeros(1).expand(10**9)}
    torch.save(
        {"format": 1, "model": tensors, "tokenizer": {"kind": "sentencepiece", "files": tokenizer.files()}}, buffer
    )
    path = tmp_path / "giant.pth"
    with_manifest(buffer, path)
    with pytest.raises(CheckpointError, match="larger than its data"):
        load_checkpoint(path)


def test_a_newer_format_says_so(saved, monkeypatch) -> None:
    path, original = saved
    monkeypatch.setattr(writing, "FORMAT", 2)
    save_checkpoint(path, original)
    with pytest.raises(CheckpointError, match="update txtgen"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_are_listed(saved) -> None:
    path, original = saved
    weights = dict(original.model)
    weights["token_embedding.weight"] = weights["token_embedding.weight"][:, :8]
    weights["stranger"] = torch.zeros(2)
    del weights["decoder.final_norm.weight"]
    save_checkpoint(path, replace(original, model=weights))
    with pytest.raises(CheckpointError, match=r"missing decoder\.final_norm\.weight.*unexpected stranger.*\[\d+, 8\]"):
        materialise(load_checkpoint(path), str(path))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_named(saved, value, dtype) -> None:
    path, original = saved
    weights = {name: tensor.to(dtype) for name, tensor in original.model.items()}
    for place in ((0, 0), (3, 3), (-1, -1)):
        broken = weights["token_embedding.weight"].clone()
        broken[place] = value
        save_checkpoint(path, replace(original, model={**weights, "token_embedding.weight": broken}))
        with pytest.raises(CheckpointError, match=r"token_embedding\.weight is not finite"):
            materialise(load_checkpoint(path), str(path))


def test_weights_in_numbers_that_nothing_computes_with_are_refused(saved) -> None:
    path, original = saved
    weights = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in original.model.items()}
    save_checkpoint(path, replace(original, model=weights))
    with pytest.raises(CheckpointError, match=r"torch\.float8_e4m3fn, expected torch\.float32"):
        materialise(load_checkpoint(path), str(path))


def test_a_tokenizer_larger_than_the_embedding_is_refused(saved) -> None:
    path, original = saved
    small = original.config.model.model_copy(update={"vocab_size": 50})
    weights = dict(original.model)
    weights["token_embedding.weight"] = weights["token_embedding.weight"][:50]
    save_checkpoint(path, replace(original, model=weights, config=original.config.model_copy(update={"model": small})))
    with pytest.raises(CheckpointError, match="embedding 50 rows"):
        materialise(load_checkpoint(path), str(path))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch) -> None:
    path, original = saved
    before = path.read_bytes()

    def full(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="disk is full"):
        save_checkpoint(path, original)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_disk_full_inside_torch_is_told_as_such(saved, monkeypatch) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path, original = saved
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ResourceError, match="may not be as large"):
            save_checkpoint(path.with_name("other.pth"), original)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert not path.with_name("other.pth").exists()
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_replace_file_is_all_or_nothing(tmp_path) -> None:
    path = tmp_path / "file"

    def fail_halfway() -> None:
        with replace_file(path) as handle:
            handle.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
    with replace_file(path) as handle:
        handle.write(b"whole")
    assert path.read_bytes() == b"whole"


def test_no_permission_is_a_resource_error(tmp_path) -> None:
    with pytest.raises(ResourceError, match="cannot write"), replace_file(tmp_path / "missing" / "file"):
        pass


def test_bytes_that_the_disk_changed_are_found_before_the_rename(saved, monkeypatch) -> None:
    """What is verified is what stands in the file, not what was meant to."""
    path, original = saved
    before = path.read_bytes()
    seal = writing.seal

    def damage(handle) -> None:
        seal(handle)
        handle.seek(len(before) // 2)
        byte = handle.read(1)
        handle.seek(len(before) // 2)
        handle.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(writing, "seal", damage)
    with pytest.raises(ResourceError, match="other bytes than were written"):
        save_checkpoint(path, original)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("calls", [1, 2, 9, 20])
def test_a_save_that_is_cancelled_leaves_nothing(saved, calls) -> None:
    path, original = saved
    before = path.read_bytes()
    left = count(calls, -1)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, original, cancelled=lambda: next(left) <= 0)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_what_could_not_be_read_again_is_never_written(saved) -> None:
    path, original = saved
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"checkpoint\.lineage\.torch is a TorchVersion"):
        save_checkpoint(path, replace(original, lineage={"torch": torch.__version__}))
    assert path.read_bytes() == before
