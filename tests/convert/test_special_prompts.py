"""Special tokens in a prompt, for who asks for them: the ids of transformers, and never without being asked."""

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from hf_folders import auto, save
from whole_folders import whole_folder

import txtgen
from txtgen.checkpoint import materialise, save_checkpoint
from txtgen.convert import import_folder
from txtgen.generator import Generator

PROMPTS = {
    "t5": ["the <extra_id_0> fox", "<extra_id_0>  over<extra_id_1> the </s> dog", "the fox"],
    "bart": ["the<mask> fox", "the <mask> fox <mask>", "</s>a<pad>", "the fox"],
    "gpt2": ["the fox<|endoftext|>The dog", "<|endoftext|>", "the fox"],
    "gpt2 json": ["the fox<|endoftext|>The dog", "<|endoftext|>", "the fox"],
    "llama": ["the fox</s><s>The dog", "the fox"],
}


def generator_of(name, tmp_path):
    family = name.split()[0]
    folder = whole_folder(family, tmp_path / "folder")
    if name.endswith("json"):
        save(auto(folder), folder)
        assert (folder / "tokenizer.json").exists()
    return Generator(materialise(import_folder(folder), "model")), folder


@pytest.mark.parametrize("name", PROMPTS)
def test_ids_of_transformers(name, tmp_path):
    generator, folder = generator_of(name, tmp_path)
    theirs = auto(folder)
    found = generator.generate(PROMPTS[name], special=True, max_new_tokens=2)
    for prompt, result in zip(PROMPTS[name], found, strict=True):
        assert list(result.prompt_token_ids) == theirs(prompt)["input_ids"], prompt
        assert result.prompt == prompt
    plain = generator.generate(PROMPTS[name], max_new_tokens=2)
    assert plain[-1].prompt_token_ids == found[-1].prompt_token_ids
    special = {*theirs.all_special_ids} - {theirs.unk_token_id if name == "t5" else None}
    for result in plain:
        assert special.isdisjoint(result.prompt_token_ids[1:-1])


def test_a_chat_model_takes_them_raw_only(tmp_path, run_txtgen):
    folder = whole_folder("qwen2", tmp_path / "folder")
    path = tmp_path / "model.pth"
    save_checkpoint(path, import_folder(folder))
    generator = txtgen.load(path, device="cpu", native="off")
    prompt = "<|im_start|>user\nthe fox<|im_end|>"
    raw = generator.generate(prompt, raw=True, special=True, max_new_tokens=2)[0]
    assert list(raw.prompt_token_ids) == auto(folder)(prompt)["input_ids"]
    command = ("generate", path, "--prompt", prompt, "--max-new-tokens", "2", "--special", "--json")
    written = run_txtgen(*command, "--raw")
    assert json.loads(written)["prompt_token_ids"] == list(raw.prompt_token_ids)
    assert "--raw" in run_txtgen(*command, code=2)
