"""Runs that learn an adapter: what they save, how it is applied, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from txtgen import load
from txtgen.checkpoint import load_checkpoint, save_checkpoint
from txtgen.cli import run
from txtgen.commands.adapters import weights_sha256
from txtgen.commands.finetune import share_of_rate
from txtgen.commands.models import load_shared, read_model, shared_file
from txtgen.commands.prompting.prompted import PromptJob
from txtgen.commands.running.starting import with_learning_rates
from txtgen.config.commands import GenerateConfig
from txtgen.config.loader import config_from_tree
from txtgen.config.runs import FinetuneConfig
from txtgen.errors import CheckpointError

LORA = ["--set", "adapter={kind: lora, rank: 2}", "--set", "train.optimizer.learning_rate=0.01"]
EVERY = ["--set", "train.save_every=1", "--set", "train.validate_every=2", "--set", "data.validation.fraction=0.2"]
FINETUNE = ["finetune", "chats.jsonl", *LORA, "--base"]


def finetune(base: Path, name: str, *more: str, data: str = "chats.jsonl", steps: int = 4) -> Path:
    command = ["finetune", data, "--base", str(base), "--name", name, "--steps", str(steps), *LORA, *EVERY, *more]
    assert run(command) == 0
    return Path("runs") / name


@pytest.fixture(scope="module")
def adapted(trained, tmp_path_factory) -> Path:
    """A folder with a base model and adapters of it in runs/a and runs/b."""
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("chats.jsonl", "pairs.tsv"):
            shutil.copy(trained / name, folder)
        base = Path(shutil.copy(trained / "runs" / "decoder" / "best.pth", "base.pth"))
        finetune(base, "a")
        finetune(base, "b", "--set", "adapter.rank=3", "--set", "seed=1", steps=1)
    return folder


@pytest.fixture
def base(adapted, tmp_path, monkeypatch) -> Path:
    """The base model in a current folder with all that belongs to it, which a test may damage."""
    shutil.copytree(adapted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for path in tmp_path.glob("runs/*/*.pth"):
        path.unlink()
        moved = load_checkpoint(adapted / path.relative_to(tmp_path), training=True)
        record = moved.config.adapter.model_copy(update={"base_path": str(tmp_path / "base.pth")})
        save_checkpoint(path, replace(moved, config=moved.config.model_copy(update={"adapter": record})))
    return Path("base.pth")


def test_checkpoints_hold_the_adapter_alone_and_make_a_model_with_their_base(base) -> None:
    folder = Path("runs/a")
    whole = load_checkpoint(base)
    for name in ("last.pth", "best.pth"):
        checkpoint = load_checkpoint(folder / name, training=True)
        assert all(".lora." in key for key in checkpoint.model)
        record = checkpoint.config.adapter
        assert (record.adapter.rank, record.base_path) == (2, str(base.resolve()))
        assert record.base_sha256 == weights_sha256(whole)
        assert (checkpoint.training is None) == (name == "best.pth")
        assert checkpoint.lineage["ancestors"][-1] == whole.fingerprint
    _, merged = read_model(folder)
    assert merged.model.keys() == whole.model.keys()
    for name, tensor in merged.model.items():
        assert torch.equal(tensor, whole.model[name]) != ("_proj.weight" in name), name
    assert merged.config.adapter is None
    assert merged.config.chat is not None


def test_three_ways_to_use_it_are_one(base, capsys) -> None:
    folder = Path("runs/a")
    assert run(["convert", "merge", str(base), "--adapter", str(folder), "--out", "merged.pth", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fingerprint"] == load_checkpoint(Path("merged.pth")).fingerprint
    found = []
    for model in (["merged.pth"], [str(folder)], [str(base), "--adapter", str(folder / "best.pth")]):
        capsys.readouterr()
        assert run(["generate", *model, "--prompt", "what is a cat?", "--max-new-tokens", "8", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] == found[2]
    capsys.readouterr()
    Path("p.txt").write_text("what is a cat?\nwhat is a dog?\n")
    two = ["--adapter", "runs/a", "--adapter", "runs/b", "--input", "p.txt", "--max-new-tokens", "8", "--json"]
    assert run(["generate", str(base), *two]) == 0
    assert run(["generate", str(base), *two, "--workers", "1", "--output", "out.jsonl"]) == 0
    assert Path("out.jsonl").read_text() == capsys.readouterr().out
    assert run(["generate", str(base), "--prompt", "what is a cat?", "--max-new-tokens", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["logprob"] != found[0]["logprob"]


def test_what_training_measured_is_what_the_merged_model_has(base, capsys) -> None:
    folder = Path("runs/a")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    capsys.readouterr()
    assert run(["evaluate", str(folder), "--json"]) == 0
    step = load_checkpoint(folder / "best.pth").lineage["step"]
    assert json.loads(capsys.readouterr().out)["loss"]["loss"] == pytest.approx(losses[step], abs=1e-5)


@pytest.mark.parametrize("bits", ["8", "4"])
def test_over_few_bits_what_is_measured_is_what_the_merged_model_has(base, capsys, bits) -> None:
    folder = finetune(base, "few", "--set", f"adapter.base_bits={bits}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    capsys.readouterr()
    assert run(["evaluate", str(folder), "--json"]) == 0
    step = load_checkpoint(folder / "best.pth").lineage["step"]
    assert json.loads(capsys.readouterr().out)["loss"]["loss"] == pytest.approx(losses[step], abs=1e-5)


def test_two_adapters_add_up(base) -> None:
    one, two = Path("runs/a"), Path("runs/b")
    whole, both = load_checkpoint(base).model, read_model(base, adapters=[one, two])[1].model
    for name, tensor in whole.items():
        parts = sum(read_model(base, adapters=[part])[1].model[name] - tensor for part in (one, two))
        torch.testing.assert_close(both[name], tensor + parts)
    on_one = read_model(one, adapters=[two])[1].model
    assert all(torch.equal(both[name], tensor) for name, tensor in on_one.items())
    generator = load(base, adapters=[one, two])
    assert generator.generate(["the cat"], max_new_tokens=2)


def test_what_is_made_has_the_dtype_of_the_base_and_is_rounded_once(base) -> None:
    checkpoint = load_checkpoint(base)
    half = {name: tensor.bfloat16() for name, tensor in checkpoint.model.items()}
    save_checkpoint(Path("half.pth"), replace(checkpoint, model=half))
    more = ["--set", "adapter.trainable=['*_norm.*']"]
    one, two = finetune(Path("half.pth"), "one", *more), finetune(Path("half.pth"), "two", "--set", "seed=1")
    merged = read_model("half.pth", adapters=[one, two])[1].model
    learnt = [load_checkpoint(folder / "best.pth").model for folder in (one, two)]
    for name, tensor in half.items():
        lora, expected = name.removesuffix("weight") + "lora.", learnt[0].get(name, tensor).float()
        if f"{lora}up.weight" in learnt[0]:
            expected += sum(8.0 * (each[f"{lora}up.weight"] @ each[f"{lora}down.weight"]) for each in learnt)
        assert torch.equal(merged[name], expected.bfloat16()), name
    few = finetune(Path("half.pth"), "few", "--set", "adapter.base_bits=8", steps=1)
    assert {tensor.dtype for tensor in read_model(few)[1].model.values()} == {torch.bfloat16}


def test_processes_share_a_file_that_is_made_once(base) -> None:
    config = GenerateConfig(model=str(base), adapters=("runs/a",))
    _, merged = read_model(base, adapters=["runs/a"])
    with shared_file(base, merged.fingerprint, config) as (path, fingerprint):
        generators = [load_shared(path, fingerprint, config) for _ in range(2)]
        for generator in generators:
            state = generator.loaded.model.state_dict()
            assert all(torch.equal(state[name], tensor) for name, tensor in merged.model.items())
    assert not path.exists()
    whole = load_checkpoint(base).fingerprint
    with shared_file(base, whole, config.model_copy(update={"adapters": ()})) as found:
        assert found == (base, whole)
    with pytest.raises(CheckpointError, match="changed meanwhile"), shared_file(base, whole, config):
        pass


def test_results_go_on_with_the_same_adapter_wherever_it_lies(base) -> None:
    def facts(*adapters: str) -> dict:
        return PromptJob(GenerateConfig(model=str(base), adapters=adapters), ["the cat"], lines=False).facts()

    shutil.copy("runs/a/best.pth", "moved.pth")
    assert facts("moved.pth") == facts("runs/a")
    for other in ((), ("runs/b",), ("runs/a", "runs/b")):
        changed = {key for key, value in facts(*other).items() if value != facts("runs/a")[key]}
        assert changed == {"sha256 of the model"}


def test_an_interrupted_run_goes_on_exactly(base) -> None:
    more = ["--set", "train.ema_decay=0.9", "--set", "adapter.dropout=0.2", "--set", "adapter.trainable=['*_norm.*']"]
    straight = finetune(base, "straight", *more, steps=3)
    cut = Path(shutil.copytree(straight, "runs/cut"))
    for path in (cut / "last.pth", cut / "checkpoints" / "step-00000003.pth"):
        path.unlink()
    finetune(base, "cut", *more, "--resume", steps=3)
    ours, theirs = (load_checkpoint(folder / "last.pth", training=True) for folder in (cut, straight))
    assert ours.training["step"] == 3
    assert any("_norm." in name for name in ours.model)
    assert "token_embedding.weight" not in ours.model
    for name, tensor in theirs.model.items():
        assert torch.equal(ours.model[name], tensor), name
        assert torch.equal(ours.training["weights"][name], theirs.training["weights"][name]), name


def test_only_what_is_learnt_has_optimizer_state(base) -> None:
    folder = finetune(base, "muon", "--set", "train.optimizer.kind=muon", steps=2)
    state = load_checkpoint(folder / "last.pth", training=True).training["optimizer"]
    assert list(state) == ["muon"]
    assert all(".lora." in name for name in state["muon"])
    assert (folder / "best.pth").stat().st_size < base.stat().st_size


def test_a_translator_has_one_too(trained, base) -> None:
    base = trained / "runs" / "translator"
    folder = finetune(base, "t", "--set", "adapter.targets=[cross_attention.*]", data="pairs.tsv")
    merged, whole = read_model(folder)[1].model, load_checkpoint(base / "best.pth").model
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, whole[name])}
    assert changed
    assert all("cross_attention." in name for name in changed)


def test_the_base_may_be_in_few_bits_itself(base, capfd) -> None:
    assert run(["quantize", str(base), "--out", "int8.pth"]) == 0
    folder = finetune(Path("int8.pth"), "few", steps=1)
    twin = finetune(base, "twin", "--set", "adapter.base_bits=8", steps=1)
    ours, theirs = read_model(folder)[1].model, read_model(twin)[1].model
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    capfd.readouterr()
    assert run([*FINETUNE, "int8.pth", "--set", "adapter.base_bits=4"]) == 5
    assert "quantised to int8" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_ranks_learn_what_one_does(base, sharding) -> None:
    more = ["--set", "dropout=0.0", "--set", "adapter.base_bits=8", "--set", f"train.sharding={sharding}"]
    one = finetune(base, "one", *more)
    two = finetune(base, "two", *more, "--device", "cpu", "--nproc", "2")
    ours, theirs = (load_checkpoint(folder / "last.pth").model for folder in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=0)


def test_a_dry_run_knows_what_is_learnt_and_what_is_held(base, capsys) -> None:
    found = {}
    for name, bits in (("all", "null"), ("few", "8")):
        capsys.readouterr()
        assert run([*FINETUNE, str(base), "--set", f"adapter.base_bits={bits}", "--dry-run", "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    whole, few = found["all"], found["few"]
    assert whole["parameters"] == few["parameters"]
    assert whole["parameters"]["adapter"] == whole["parameters"]["trained"] < whole["parameters"]["total"] / 9
    assert whole["memory"]["gradients_bytes"] == 4 * whole["parameters"]["trained"]
    assert whole["memory"]["optimizer_bytes"] == 8 * whole["parameters"]["trained"]
    assert whole["memory"]["weights_bytes"] == 4 * whole["parameters"]["total"]
    assert few["memory"]["weights_bytes"] < 0.5 * whole["memory"]["weights_bytes"]
    assert whole["step"]["flops_per_token"] == few["step"]["flops_per_token"]


# -- what is refused


def test_another_base_is_refused_by_its_hash(base, trained, capfd) -> None:
    folder = Path("runs/a")
    other = load_checkpoint(base)
    other.model["decoder.final_norm.weight"] += 1.0
    save_checkpoint(Path("other.pth"), other)
    capfd.readouterr()
    assert run(["generate", "other.pth", "--adapter", str(folder), "--prompt", "a"]) == 5
    assert "the adapter was made for another model" in capfd.readouterr().err
    shutil.copy("other.pth", base)
    assert run(["generate", str(folder), "--prompt", "a"]) == 5
    assert "the adapter was made for another model" in capfd.readouterr().err
    base.unlink()
    assert run(["generate", str(folder), "--prompt", "a"]) == 5
    assert "is not at" in (told := capfd.readouterr().err)
    assert "--adapter" in told
    out = ["--out", "out.pth"]
    for arguments in (
        ["quantize", "runs/a", *out],
        ["average", "runs/a", "runs/a", *out],
        ["convert", "to-hf", "runs/a", "hf"],
    ):
        assert run(arguments) == 5
        assert "merging the two: txtgen convert merge BASE --adapter" in capfd.readouterr().err
    assert run(["inspect", str(folder)]) == 0
    assert "rank 2" in capfd.readouterr().out


def test_a_copy_of_the_base_will_do(base) -> None:
    folder = Path("runs/a")
    checkpoint = load_checkpoint(base, training=True)
    save_checkpoint(Path("copy.pth"), checkpoint)  # another file, of the same weights
    base.unlink()
    assert read_model("copy.pth", adapters=[folder])[1].model
    finetune(Path("copy.pth"), "a", "--resume", steps=5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "BASE", "--adapter", "BASE", "--prompt", "a"], 5, "this is a whole model, no adapter"),
        (["generate", "BASE", "--adapter", "gone.pth", "--prompt", "a"], 5, "no such model"),
        (["convert", "merge", "BASE", *["--adapter", "RUN"] * 2, "--out", "m.pth"], 5, "is given twice"),
        (["convert", "merge", "BASE", "--out", "m.pth"], 2, "there is nothing to merge"),
        (["convert", "merge", "BASE", "--adapter", "RUN", "--out", "m"], 2, "does not end in .pth"),
        (["convert", "merge", "RUN", "--out", "base.pth"], 9, "the file exists already"),
        ([*FINETUNE, "RUN"], 5, "cannot be the base of another one"),
        ([*FINETUNE, "BASE", "--set", "adapter.targets=[query]"], 3, "names no linear"),
        ([*FINETUNE, "BASE", "--set", "adapter.trainable=[x]"], 3, "matches no param"),
        ([*FINETUNE, "BASE", "--set", 'freeze=["*norm*"]'], 3, "exclude each other"),
        ([*FINETUNE, "BASE", "--set", "adapter.base_bits=5"], 3, "one of 8, 4"),
    ],
)  # fmt: skip
def test_mistakes_are_told(base, capfd, arguments, code, message) -> None:
    capfd.readouterr()
    places = {"BASE": str(base), "RUN": "runs/a"}
    assert run([places.get(argument, argument) for argument in arguments]) == code
    assert message in capfd.readouterr().err


def test_an_adapter_that_does_not_fit_is_refused(base, capfd) -> None:
    folder = Path("runs/a")
    adapter = load_checkpoint(folder / "last.pth")
    name = "decoder.layers.0.self_attention.q_proj.lora.up.weight"
    adapter.model[name] = adapter.model[name][:-1].clone()
    save_checkpoint(Path("forged.pth"), adapter)
    capfd.readouterr()
    assert run(["generate", str(base), "--adapter", "forged.pth", "--prompt", "a"]) == 5
    assert "q_proj.lora.up.weight is [15, 2], expected [16, 2]" in capfd.readouterr().err


def test_a_full_finetuning_may_begin_with_an_adapter_applied(base) -> None:
    folder = Path("runs/a")
    rate = ["--set", "train.optimizer.learning_rate=1e-30"]
    assert run(["finetune", "chats.jsonl", "--base", str(folder), "--name", "full", "--steps", "1", *rate]) == 0
    ours, merged = load_checkpoint(Path("runs/full/last.pth")).model, read_model(folder)[1].model
    assert all(torch.allclose(tensor, merged[name], atol=1e-6) for name, tensor in ours.items())


@pytest.mark.parametrize(("kind", "rate"), [("adamw", 1e-3), ("muon", 2e-3)])
def test_rates_where_nobody_says(kind, rate) -> None:
    tree = {"data": {"sources": [{"kind": "text", "path": "a"}]}, "train": {"optimizer": {"kind": kind}}}
    configs = [config_from_tree(FinetuneConfig, {**tree, **more}) for more in ({}, {"adapter": {"rank": 2}})]
    whole, adapter = (with_learning_rates(config, share_of_rate(config)).train.optimizer for config in configs)
    assert adapter.learning_rate == pytest.approx(rate)
    assert whole.learning_rate == pytest.approx({"adamw": 1e-4, "muon": 2e-3}[kind])
