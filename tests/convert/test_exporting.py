"""Folders that txtgen writes, read by transformers."""

import json
import warnings

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import transformers
from whole_folders import FAMILIES, transformers_pair, whole_folder

import txtgen
from txtgen.checkpoint import Checkpoint, save_checkpoint
from txtgen.config.chat_formats import TokensChatFormat
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.model import DecoderConfig, EncoderDecoderConfig
from txtgen.convert import export_folder, import_folder
from txtgen.errors import BusyError, CheckpointError
from txtgen.generator import Generator
from txtgen.model import build_model, init_weights

PROMPTS = ["the quick brown fox", "lazy dog jumps", "the 床前 moon 😀"]
SEQ2SEQ = ("t5", "bart", "marian")


def loaded(folder, seq2seq):
    """Model, tokenizer and what transformers missed or did not expect."""
    auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = auto.from_pretrained(folder, output_loading_info=True)
    return model.eval(), info


def same_logits(checkpoint, theirs, tmp_path):
    path = tmp_path / "again.pth"
    save_checkpoint(path, checkpoint)
    ours = txtgen.load(path, device="cpu", native="off").loaded
    rows = ours.config.model.vocab_size
    ids = torch.randint(4, rows - 4, (2, 9), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(9).expand(2, 9)
    with torch.no_grad():
        if isinstance(ours.config.model, EncoderDecoderConfig):
            found = ours.model(ids, positions, torch.ones_like(ids), source_ids=ids.flip(1))
            expected = theirs(input_ids=ids.flip(1), decoder_input_ids=ids).logits
        else:
            found, expected = ours.model(ids, positions, torch.ones_like(ids)), theirs(ids).logits
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=1e-4)
    return ours


def same_generations(ours, theirs, tokenizer):
    seq2seq = isinstance(ours.config.model, EncoderDecoderConfig)
    found = Generator(ours).generate(PROMPTS, raw=True, strategy="beam", beam_size=3, max_new_tokens=8)
    for prompt, ours_found in zip(PROMPTS, found, strict=True):
        given = tokenizer(prompt, return_tensors="pt")
        assert given["input_ids"][0].tolist() == list(ours_found.prompt_token_ids)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            given.pop("token_type_ids", None)
            row = theirs.generate(**given, num_beams=3, max_new_tokens=8, do_sample=False)[0].tolist()
        new = row[1 if seq2seq else len(ours_found.prompt_token_ids) :]
        assert new[: len(ours_found.token_ids)] == list(ours_found.token_ids), prompt
        assert len(new) == len(ours_found.token_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_came_in_goes_out_the_same(tmp_path, family):
    folder = whole_folder(family, tmp_path / "in")
    checkpoint = import_folder(folder)
    assert export_folder(checkpoint, tmp_path / "out") in (family, "llama")
    written = export_folder(checkpoint, tmp_path / "named", family=family)
    assert written == family
    model, info = loaded(tmp_path / "named", family in SEQ2SEQ)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    ours = same_logits(checkpoint, model, tmp_path)
    _, tokenizer = transformers_pair(tmp_path / "named", family in SEQ2SEQ)
    same_generations(ours, model, tokenizer)
    again = import_folder(tmp_path / "named")
    assert again.config == checkpoint.config
    assert again.tokenizer.fingerprint() == checkpoint.tokenizer.fingerprint()
    assert again.model.keys() == checkpoint.model.keys()
    assert all(torch.equal(again.model[name], tensor) for name, tensor in checkpoint.model.items())


RECIPES = {
    "gpt2": DecoderConfig(position={"kind": "learned"}, activation="gelu_tanh"),
    "llama": DecoderConfig(
        position={"kind": "rotary"}, norm="rms_norm", gated=True, activation="silu", attention_bias=False,
        ffn_bias=False,
    ),
    "qwen3": DecoderConfig(
        position={"kind": "rotary"}, norm="rms_norm", gated=True, activation="silu", attention_bias=False,
        ffn_bias=False, qk_norm=True, num_kv_heads=2,
    ),
    "bart": EncoderDecoderConfig(
        position={"kind": "learned"}, norm_position="post", embedding_norm=True, activation="relu"
    ),
    "marian": EncoderDecoderConfig(
        position={"kind": "sinusoidal", "layout": "halves"}, norm_position="post", activation="relu",
        scale_embeddings=True,
    ),
    "t5": EncoderDecoderConfig(
        position={"kind": "t5_relative"}, norm="rms_norm", attention_bias=False, ffn_bias=False, attention_scale=1.0
    ),
}  # fmt: skip


def own_checkpoint(config, tokenizer, **more):
    """A model as txtgen makes it from scratch, with weights that are not all alike."""
    size = {"d_model": 32, "num_heads": 4, "d_ff": 48, "max_length": 40, "vocab_size": len(tokenizer)}
    if isinstance(config, EncoderDecoderConfig):
        size["max_source_length"] = 40
    config = type(config).model_validate({**config.model_dump(exclude_unset=True), **size})
    model = build_model(config)
    init_weights(model, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return Checkpoint(CheckpointConfig(model=config, **more), model.state_dict(), tokenizer, None, {})


@pytest.mark.parametrize("family", RECIPES)
def test_models_of_our_own(tmp_path, tokenizer, family):
    checkpoint = own_checkpoint(RECIPES[family], tokenizer)
    assert export_folder(checkpoint, tmp_path / "out") == family
    model, info = loaded(tmp_path / "out", family in SEQ2SEQ)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = same_logits(checkpoint, model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    same_generations(ours, model, their_tokenizer)


def test_a_chat_model_of_our_own_renders_the_same(tmp_path, tokenizer):
    checkpoint = own_checkpoint(RECIPES["llama"], tokenizer, chat=TokensChatFormat())
    export_folder(checkpoint, tmp_path / "out")
    save_checkpoint(tmp_path / "model.pth", checkpoint)
    chat = [
        {"role": "user", "content": "the quick fox"},
        {"role": "assistant", "content": "lazy dog"},
        {"role": "user", "content": "moon"},
    ]
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    expected = their_tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    (found,) = txtgen.load(tmp_path / "model.pth", device="cpu", native="off").generate([chat], max_new_tokens=1)
    assert list(found.prompt_token_ids) == expected


def test_shards_and_dtype(tmp_path, tokenizer):
    checkpoint = own_checkpoint(RECIPES["llama"], tokenizer)
    export_folder(checkpoint, tmp_path / "out", dtype=torch.bfloat16, max_shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    model, info = loaded(tmp_path / "out", False)
    assert not info["missing_keys"]
    assert model.dtype == torch.bfloat16
    assert import_folder(tmp_path / "out").model["token_embedding.weight"].dtype == torch.bfloat16


def test_settings_of_generation_go_along(tmp_path, tokenizer):
    generation = {"strategy": "sample", "temperature": 0.5, "max_new_tokens": 7, "no_repeat_ngram_size": 3}
    checkpoint = own_checkpoint(RECIPES["llama"], tokenizer, generation=generation)
    export_folder(checkpoint, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (found["do_sample"], found["temperature"], found["max_new_tokens"], found["top_k"]) == (True, 0.5, 7, 0)
    assert 0 in found["suppress_tokens"]
    assert import_folder(tmp_path / "out").config.generation.temperature == 0.5


def test_nothing_is_written_where_something_is_or_where_it_fails(tmp_path, tokenizer):
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").write_text("mine")
    checkpoint = own_checkpoint(RECIPES["llama"], tokenizer)
    with pytest.raises(BusyError, match="there is something already"):
        export_folder(checkpoint, full)
    odd = own_checkpoint(DecoderConfig(position={"kind": "alibi"}), tokenizer)
    with pytest.raises(CheckpointError, match=r"no family of Hugging Face has models like this one.*model\.position"):
        export_folder(odd, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    empty = tmp_path / "empty"
    empty.mkdir()
    export_folder(checkpoint, empty)
    assert (empty / "config.json").is_file()


def test_a_full_disk_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    from txtgen.convert import exporting
    from txtgen.errors import ResourceError

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "save_file", full)
    with pytest.raises(ResourceError, match="No space left"):
        export_folder(own_checkpoint(RECIPES["llama"], tokenizer), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_ctranslate2_converts_what_we_write(tmp_path, tokenizer):
    ctranslate2 = pytest.importorskip("ctranslate2")
    checkpoint = own_checkpoint(RECIPES["llama"], tokenizer)
    export_folder(checkpoint, tmp_path / "out")
    ctranslate2.converters.TransformersConverter(str(tmp_path / "out")).convert(str(tmp_path / "ct2"))
    save_checkpoint(tmp_path / "model.pth", checkpoint)
    ours = txtgen.load(tmp_path / "model.pth", device="cpu", native="off")
    (found,) = ours.generate(["the quick"], max_new_tokens=6)
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu")
    names = tokenizer.pieces(found.prompt_token_ids)
    never = [[piece] for piece in tokenizer.pieces(ours._suppress)]
    result = generator.generate_batch(
        [names], max_length=6, include_prompt_in_result=False, suppress_sequences=never, end_token="</s>"
    )[0]
    expected = [token for token in found.token_ids if token != tokenizer.special.eos_id]
    assert result.sequences_ids[0] == expected
