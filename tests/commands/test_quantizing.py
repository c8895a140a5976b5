"""Models in 8 and 4 bits, on disk and in memory."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import txtgen
from txtgen.checkpoint import Checkpoint, load_checkpoint, quantized, save_checkpoint
from txtgen.cli import run
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.model import DecoderConfig
from txtgen.errors import CheckpointError
from txtgen.model import build_model, init_weights
from txtgen.model.quantize import QuantizedEmbedding, QuantizedLinear

every_kind = pytest.mark.parametrize("kind", ["int8", "int4"])


def small(tokenizer, dtype=torch.float32, **options) -> Checkpoint:
    size = {"d_model": 48, "num_heads": 4, "num_layers": 2, "max_length": 32, "vocab_size": len(tokenizer)}
    model = build_model(DecoderConfig(**size, **options), device="cpu")
    init_weights(model, 0)
    state = model.to(dtype).state_dict()
    return Checkpoint(CheckpointConfig(model=model.config), state, tokenizer, None, {"run": "small", "step": 3})


def loaded(path, **options):
    return txtgen.load(path, device="cpu", native="off", **options).loaded


def logits(loaded) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        return loaded.model(ids, torch.arange(12)[None], torch.ones(2, 12, dtype=torch.int32))


@every_kind
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_computes_what_it_computes_in_memory(tmp_path, tokenizer, kind, tied, dtype) -> None:
    whole, few = tmp_path / "whole.pth", tmp_path / "few.pth"
    original = small(tokenizer, dtype, tie_embeddings=tied)
    save_checkpoint(whole, original)
    save_checkpoint(few, quantized(original, kind, "test"))
    here, there = loaded(whole, quantize=kind), loaded(few)
    assert torch.equal(logits(here), logits(there))
    assert logits(there).dtype == dtype
    assert not torch.equal(logits(there), logits(loaded(whole)))
    assert here.config == there.config == original.config.model_copy(update={"quantization": kind})
    assert logits(loaded(few, dtype="bfloat16")).dtype == torch.bfloat16
    assert isinstance(there.model.token_embedding, QuantizedEmbedding)
    assert (there.model.lm_head is None) if tied else isinstance(there.model.lm_head, QuantizedLinear)
    assert loaded(few, quantize=kind).config == there.config


@pytest.mark.parametrize(("kind", "share"), [("int8", (8 + 0.5) / 32), ("int4", (4 + 0.5) / 32)])
def test_the_file_shrinks(tmp_path, tokenizer, kind, share) -> None:
    original = small(tokenizer, d_ff=2048, tie_embeddings=True)
    save_checkpoint(tmp_path / "whole.pth", original)
    save_checkpoint(tmp_path / "few.pth", quantized(original, kind, "test"))
    whole, few = (load_checkpoint(tmp_path / name).model for name in ("whole.pth", "few.pth"))
    matrices = sum(tensor.nbytes for tensor in whole.values() if tensor.dim() == 2)
    rest = sum(tensor.nbytes for tensor in whole.values() if tensor.dim() != 2)
    # A width of 48 has a block of 32 and one of 16, each with a scale.
    assert sum(tensor.nbytes for tensor in few.values()) == pytest.approx(matrices * share + rest, rel=0.05)
    saved = (tmp_path / "whole.pth").stat().st_size - (tmp_path / "few.pth").stat().st_size
    assert saved > 0.95 * matrices * (1 - share)


@every_kind
def test_from_the_command_line(workshop, trained, kind, capfd) -> None:
    for name in ("decoder", "translator"):
        source = str(trained / "runs" / name)
        assert run(["quantize", source, "--out", f"{name}.pth", "--kind", kind, "--json"]) == 0
        told = json.loads(capfd.readouterr().out)
        assert told["bytes_after"] < 0.5 * told["bytes_before"]
        assert run(["inspect", f"{name}.pth", "--json"]) == 0
        found = json.loads(capfd.readouterr().out)
        parent = load_checkpoint(trained / "runs" / name / "best.pth")
        assert found["config"]["quantization"] == kind
        assert found["parameters"] == told["parameters"] == sum(tensor.numel() for tensor in parent.model.values())
        assert found["lineage"]["command"] == "quantize"
        assert found["lineage"]["parent"] == parent.fingerprint
        assert found["training"] is None
        assert run(["inspect", f"{name}.pth"]) == 0
        assert kind in capfd.readouterr().out
        prompt = ["--prompt", "the cat", "--max-new-tokens", "5"]
        assert run(["generate", f"{name}.pth", *prompt]) == 0
        from_disk = capfd.readouterr().out
        assert run(["generate", source, *prompt, "--quantize", kind]) == 0
        assert capfd.readouterr().out == from_disk
        generator = txtgen.load(source, quantize=kind)
        assert generator.generate("the cat", max_new_tokens=5)[0].text + "\n" == from_disk
        assert run(["evaluate", f"{name}.pth", "--json"]) == 0
        few_bits = json.loads(capfd.readouterr().out)["loss"]["loss"]
        assert run(["evaluate", source, "--json"]) == 0
        assert few_bits == pytest.approx(json.loads(capfd.readouterr().out)["loss"]["loss"], rel=0.05)


def test_what_needs_trained_weights_refuses_it(workshop, trained, capfd) -> None:
    source = str(trained / "runs" / "decoder")
    assert run(["quantize", source, "--out", "few.pth"]) == 0
    capfd.readouterr()
    refused = {
        "training": ["finetune", "text/a.txt", "--base", "few.pth", "--name", "tuned"],
        "quantising to int4": ["quantize", "few.pth", "--out", "fewer.pth", "--kind", "int4"],
        "an average": ["average", "few.pth", "few.pth", "--out", "mean.pth"],
        "Hugging Face's format": ["convert", "to-hf", "few.pth", "folder"],
    }
    for purpose, command in refused.items():
        assert run(command) == 5, command
        error = capfd.readouterr().err
        assert f"its weights are quantised to int8, and {purpose} needs them as they were trained; few.pth" in error
    assert run(["generate", "few.pth", "--prompt", "a", "--quantize", "int4"]) == 5
    assert "quantised to int8" in capfd.readouterr().err
    assert run(["quantize", source, "--out", "few.pth"]) == 9
    assert run(["quantize", source, "--out", "few.bin"]) == 2
    assert not Path("fewer.pth").exists()


def test_codes_of_another_type_are_refused(tmp_path, tokenizer) -> None:
    few = quantized(small(tokenizer), "int4", "test")
    name = "decoder.layers.0.self_attention.q_proj.codes"
    forged = {**few.model, name: few.model[name].float()}
    save_checkpoint(tmp_path / "forged.pth", replace(few, model=forged))
    with pytest.raises(CheckpointError, match=r"q_proj\.codes is torch\.float32, expected torch\.uint8"):
        loaded(tmp_path / "forged.pth")
