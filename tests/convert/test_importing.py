"""Whole folders: what transformers generates from them, txtgen generates too."""

import json
import shutil
import warnings

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from whole_folders import CHATML, FAMILIES, transformers_pair, whole_folder

import txtgen
from txtgen.checkpoint import save_checkpoint
from txtgen.convert import import_folder
from txtgen.errors import CheckpointError

PROMPTS = ["The quick brown fox", "床前明月光", "it", "naïve café  12345 o'clock!", "Hello, I am a "]
SEQ2SEQ = ("t5", "bart", "marian")


@pytest.fixture(scope="module")
def generator_of(folder_of, tmp_path_factory):
    """What txtgen makes of it, through a file."""
    made = {}

    def find(family):
        if family not in made:
            path = tmp_path_factory.mktemp("out") / "model.pth"
            save_checkpoint(path, import_folder(folder_of(family)))
            made[family] = txtgen.load(path, device="cpu", native="off")
        return made[family]

    return find


def their_results(folder, seq2seq, prompt, **settings):
    """Generated ids of each result, and their scores."""
    model, tokenizer = transformers_pair(folder, seq2seq)
    given = tokenizer(prompt, return_tensors="pt")
    given.pop("token_type_ids", None)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = model.generate(**given, return_dict_in_generate=True, output_scores=True, **settings)
    start = 1 if seq2seq else given["input_ids"].shape[1]
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    rows = []
    for row in found.sequences.tolist():
        new = row[start:]
        first = next((place for place, token in enumerate(new) if token in ends), len(new) - 1)
        rows.append(new[: first + 1])
    scores = getattr(found, "sequences_scores", None)
    return rows, None if scores is None else scores.tolist(), tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_and_beams_are_those_of_transformers(folder_of, generator_of, family):
    seq2seq = family in SEQ2SEQ
    plain = generator_of(family).generate(PROMPTS, raw=True, strategy="greedy", max_new_tokens=12)
    beams = generator_of(family).generate(
        PROMPTS, raw=True, strategy="beam", beam_size=4, num_return=2, length_penalty=0.6, max_new_tokens=9
    )
    for number, prompt in enumerate(PROMPTS):
        rows, _, tokenizer = their_results(
            folder_of(family), seq2seq, prompt, max_new_tokens=12, do_sample=False, num_beams=1
        )
        assert list(plain[number].prompt_token_ids) == tokenizer(prompt)["input_ids"], prompt
        assert list(plain[number].token_ids) == rows[0], prompt
        rows, scores, _ = their_results(
            folder_of(family), seq2seq, prompt, max_new_tokens=9, do_sample=False, num_beams=4,
            num_return_sequences=2, length_penalty=0.6,
        )  # fmt: skip
        ours = beams[2 * number : 2 * number + 2]
        assert [list(one.token_ids) for one in ours] == rows, prompt
        assert [one.score for one in ours] == pytest.approx(scores, abs=1e-4)


def test_the_classic_example(tmp_path, folder_of, run_txtgen):
    """GPT-2's config and vocabulary, finetuned weights as a raw state dict, five beams."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    for name in ("config.json", "vocab.json", "merges.txt"):
        shutil.copy(folder_of("gpt2") / name, folder)
    tuned = whole_folder("gpt2", tmp_path / "tuned", seed=5)
    theirs, tokenizer = transformers_pair(tuned, False)
    state = theirs.state_dict()
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 96, 96).tril()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items() if name != "lm_head.weight"}
    ids = tokenizer("Hello, I am a ", return_tensors="pt").input_ids
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = theirs.generate(ids, max_length=50, num_beams=5, early_stopping=True)[0]
    for number, weights in enumerate((state, bare)):
        torch.save(weights, tmp_path / "fine_tuned_weights.pth")
        model = tmp_path / f"model-{number}.pth"
        run_txtgen("convert", "from-hf", folder, model, "--weights", tmp_path / "fine_tuned_weights.pth")
        out = run_txtgen(
            "generate", model, "--prompt", "Hello, I am a ", "--strategy", "beam", "--beam-size", "5",
            "--early-stopping", "true", "--max-length", "50", "--json",
        )  # fmt: skip
        found = json.loads(out)
        assert found["prompt_token_ids"] + found["token_ids"] == expected.tolist()
        assert len(expected) > len(ids[0]) + 3


def test_a_folder_is_converted_once_and_again_when_it_changed(tmp_path, folder_of, run_txtgen, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(folder_of("qwen3"), folder)
    command = ("generate", folder, "--prompt", "it", "--max-new-tokens", "8", "--raw")
    first = run_txtgen(*command)
    (kept,) = (tmp_path / "cache" / "txtgen").iterdir()
    written = kept.stat().st_mtime_ns
    assert run_txtgen(*command) == first
    assert kept.stat().st_mtime_ns == written
    whole_folder("qwen3", folder, seed=3)
    assert run_txtgen(*command) != first
    assert len(list((tmp_path / "cache" / "txtgen").iterdir())) == 1


def test_special_tokens_settings_and_template_come_along(tmp_path, folder_of):
    folder = tmp_path / "model"
    shutil.copytree(folder_of("qwen2"), folder)
    settings = {
        "do_sample": True, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1, "max_length": 20,
        "max_new_tokens": 30, "eos_token_id": [1, 2], "unknown_to_all": 3,
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(settings))
    checkpoint = import_folder(folder)
    generation = checkpoint.config.generation
    assert (generation.strategy, generation.temperature, generation.top_p, generation.top_k) == ("sample", 0.7, 0.8, 50)
    assert (generation.max_new_tokens, generation.max_length) == (30, None)
    assert checkpoint.config.framing.prefix == ()
    assert set(checkpoint.config.framing.end) == {1, 2}
    assert checkpoint.config.framing.end[0] == checkpoint.tokenizer.special.eos_id
    assert checkpoint.config.chat.template == CHATML
    assert checkpoint.lineage["family"] == "qwen2"


def test_chats_are_rendered_by_the_template(folder_of, generator_of):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder_of("qwen2")))
    chat = [{"role": "user", "content": "Twelve spaces?"}]
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    (found,) = generator_of("qwen2").generate([chat], strategy="greedy", max_new_tokens=4)
    assert list(found.prompt_token_ids) == expected
    (spoof,) = generator_of("qwen2").generate([[{"role": "user", "content": "<|im_end|>"}]], max_new_tokens=1)
    assert spoof.prompt_token_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_marian_has_a_tokenizer_for_each_side(folder_of):
    checkpoint = import_folder(folder_of("marian"))
    assert checkpoint.source_tokenizer is not None
    assert checkpoint.source_tokenizer.fingerprint() != checkpoint.tokenizer.fingerprint()
    assert checkpoint.config.framing.suffix == (0,)
    assert import_folder(folder_of("bart")).source_tokenizer is None


class TestBadFolders:
    @pytest.fixture
    def folder(self, tmp_path, folder_of):
        return shutil.copytree(folder_of("llama"), tmp_path / "model")

    def change(self, path, **values):
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    def test_a_tokenizer_larger_than_the_embedding(self, folder, folder_of):
        shutil.copy(folder_of("gpt2") / "vocab.json", folder)
        whole_folder("llama", folder, vocab_size=400)
        with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, the embedding 400 rows"):
            import_folder(folder)

    def test_an_end_token_that_is_none(self, folder):
        self.change(folder / "generation_config.json", eos_token_id="</s>")
        with pytest.raises(CheckpointError, match='eos_token_id is "</s>"'):
            import_folder(folder)

    def test_a_start_of_decoding_outside_the_embedding(self, tmp_path, folder_of):
        folder = shutil.copytree(folder_of("bart"), tmp_path / "bart")
        self.change(folder / "generation_config.json", decoder_start_token_id=9999)
        with pytest.raises(CheckpointError, match=r"decoding starts with token 9999, but the embedding has \d+ rows"):
            import_folder(folder)

    def test_no_tokenizer(self, folder):
        (folder / "tokenizer.model").unlink()
        with pytest.raises(CheckpointError, match="no tokenizer"):
            import_folder(folder)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
    def test_a_config_that_is_none(self, folder, content):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            import_folder(folder)

    def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(self, folder, tmp_path, run_txtgen):
        self.change(folder / "config.json", model_type="mamba")
        output = run_txtgen("convert", "from-hf", folder, tmp_path / "out.pth", code=5)
        assert output.count("\n") == 1
        assert "error: models of the family 'mamba' cannot be read" in output
        assert "supported are llama" in output
        assert not (tmp_path / "out.pth").exists()

    def test_an_existing_model_is_not_replaced_unasked(self, folder, tmp_path, run_txtgen):
        (tmp_path / "out.pth").write_bytes(b"precious")
        assert "--overwrite" in run_txtgen("convert", "from-hf", folder, tmp_path / "out.pth", code=9)
        assert (tmp_path / "out.pth").read_bytes() == b"precious"
        run_txtgen("convert", "from-hf", folder, tmp_path / "out.pth", "--overwrite")
        assert (tmp_path / "out.pth").stat().st_size > 10_000

    @pytest.mark.parametrize(
        "template", ["{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
                     "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}"],
    )  # fmt: skip
    def test_a_hostile_template(self, tmp_path, folder_of, run_txtgen, template):
        folder = shutil.copytree(folder_of("qwen2"), tmp_path / "hostile")
        self.change(folder / "tokenizer_config.json", chat_template=template)
        output = run_txtgen("convert", "from-hf", folder, tmp_path / "out.pth", code=5)
        assert "error: the chat template" in output
        assert str(folder) in output
        assert not (tmp_path / "out.pth").exists()

    def test_a_template_beyond_any_length(self, tmp_path, folder_of):
        folder = shutil.copytree(folder_of("qwen2"), tmp_path / "long")
        self.change(folder / "tokenizer_config.json", chat_template="x" * 200_000)
        with pytest.raises(CheckpointError, match="the chat template or a special token is too long"):
            import_folder(folder)
