"""A vocabulary short-list in use: the same results as of a model to which all other tokens are impossible."""

import gzip
import json
import math

import numpy as np
import pytest
import torch
from test_generator import load

import txtgen
from txtgen.checkpoint import Checkpoint, materialise, save_checkpoint
from txtgen.cli import run
from txtgen.commands.prompting.prompted import PromptJob
from txtgen.config.commands import GenerateConfig
from txtgen.config.ensemble import Mixture
from txtgen.errors import CheckpointError, UsageError
from txtgen.generator import Generator
from txtgen.lexicon import Shortlist

SOURCES = ["the quick fox", "the old horse runs", "a cat", "née 春", "the lazy dog looks over the moon."]
STRATEGIES = [
    {"no_repeat_ngram_size": 3},
    {"speculation": {"kind": "prompt_lookup", "max_ngram": 1}},
    {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 3},
    {"strategy": "beam", "beam_size": 3, "num_return": 2},
    {"strategy": "beam", "beam_size": 4, "include": ["small cat"], "max_new_tokens": 16},
    {"prefix": "old river", "bad_words": ["the"]},
    {"strategy": "sample", "seed": 4, "num_return": 2, "top_p": 0.9},
    {"strategy": "beam_sample", "seed": 3, "beam_size": 3, "temperature": 1.5},
]


def shortlist(tokenizer, seed=0) -> Shortlist:
    random = np.random.default_rng(seed)
    candidates = random.integers(4, len(tokenizer), (len(tokenizer), 4)).astype(np.int32)
    return Shortlist(np.arange(30, 40, dtype=np.int32), candidates, *[tokenizer.fingerprint()] * 2)


class Impossible:
    """A model that says the tokens of a list, and no others."""

    def __init__(self, model, tokens):
        self.model, self.tokens = model, sorted(tokens)

    def prefill(self, prompt, capacity):
        logits, state = self.model.prefill(prompt, capacity)
        return self.masked(logits), state

    def extend(self, tokens, state):
        return self.masked(self.model.extend(tokens, state))

    def masked(self, logits):
        masked = torch.full_like(logits, -math.inf)
        masked[..., self.tokens] = logits[..., self.tokens]
        return masked


def model(tokenizer, kind):
    """A model as it is, or quantised."""
    options = {"tie_embeddings": False, "output_bias": True} if kind == "untied" else {}
    made = load(tokenizer, "encoder_decoder", **options)
    checkpoint = Checkpoint(made.config, made.model.state_dict(), tokenizer, None, {})
    dtype = torch.bfloat16 if kind == "bfloat16" else None
    return materialise(checkpoint, "", None, dtype, "int8" if kind == "int8" else None)


# In 16 bits PyTorch rounds by the shapes that it is given: there only machine code gives a row the same scores.
@pytest.mark.parametrize(
    ("kind", "native"),
    [*((kind, native) for kind in ("float32", "untied", "int8") for native in ("off", "auto")), ("bfloat16", "auto")],
)
def test_results_are_those_of_all_scores_with_the_others_impossible(tokenizer, kind, native):
    loaded = model(tokenizer, kind)
    listed = shortlist(loaded.tokenizer)
    generator, slow = Generator(loaded, native=native, shortlist=listed), Generator(loaded, native=native)
    all_tokens, special = slow._model, {0, 1, 2, 3}
    for options in STRATEGIES:
        options = {"max_new_tokens": 9, **options}
        found = generator.generate(SOURCES, **options)
        for number, source in enumerate(SOURCES):
            plan = slow.plan({number: source}, **options)
            ((prompt,),) = plan.batches
            start = {*slow._reader.framing.decoder_start, *slow._reader.framing.end}
            spelled = slow._constraints.make(plan.decoding, slow._rows([prompt])).spelling
            wanted = {*listed.tokens(prompt.token_ids), *start, *spelled}
            slow._model = Impossible(all_tokens, wanted)
            expected = slow.complete((prompt,), plan.decoding)[number]
            mine = [generation for generation in found if generation.prompt_index == number]
            assert [each.token_ids for each in mine] == [each.token_ids for each in expected], options
            assert [each.score for each in mine] == pytest.approx([each.score for each in expected], abs=1e-4)
            assert [each.logprob for each in mine] == pytest.approx([each.logprob for each in expected], abs=1e-4)
            assert {token for each in mine for token in each.token_ids} <= wanted | special
            if "include" in options:
                assert all("small cat" in each.text for each in mine)


def test_streamed_text_is_that_of_generate(tokenizer):
    generator = Generator(model(tokenizer, "float32"), shortlist=shortlist(tokenizer), native="auto")
    for options in ({"max_new_tokens": 12}, {"strategy": "beam", "max_new_tokens": 12}):
        text = generator.generate(SOURCES[:1], **options)[0].text
        assert "".join(generator.stream(SOURCES[0], **options)) == text


def test_what_does_not_go_with_a_short_list_is_refused(tokenizer):
    listed, loaded = shortlist(tokenizer), load(tokenizer, "encoder_decoder")
    with pytest.raises(UsageError, match="the model reads no source"):
        Generator(load(tokenizer), shortlist=listed)
    with pytest.raises(UsageError, match="an ensemble decides"):
        Generator(loaded, shortlist=listed, ensemble=[loaded], mixture=Mixture())
    with pytest.raises(CheckpointError, match="another tokenizer of the target"):
        Generator(loaded, shortlist=Shortlist(listed.frequent, listed.candidates, listed.source_tokenizer, "?"))
    generator = Generator(loaded, shortlist=listed)
    for options in ({"regex": "a+"}, {"json_schema": "{}"}, {"strategy": "contrastive"}, {"gap": "cat"}):
        with pytest.raises(UsageError, match="may need tokens that are not in a short-list"):
            generator.generate(SOURCES, **options)


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    """A model, and pairs of which each word has a translation of its own."""
    folder = tmp_path_factory.mktemp("pairs")
    made = load(tokenizer, "encoder_decoder")
    save_checkpoint(folder / "model.pth", Checkpoint(made.config, made.model.state_dict(), tokenizer, None, {}))
    words = {"fox": "hill", "dog": "river", "cat": "fence", "horse": "moon"}
    pairs = [((one, other), (words[other], words[one])) for one in words for other in words if one != other]
    for name, side in (("source", 0), ("target", 1)):
        with gzip.open(folder / f"{name}.gz", "wt") as file:
            file.writelines(f"the {pair[side][0]} the {pair[side][1]}\n" for pair in pairs)
    return folder


def test_from_pairs_to_a_file_to_generation(files, tokenizer, capsys, tmp_path):
    file, source = str(tmp_path / "list"), str(files / "source.gz")
    made = [
        "shortlist",
        str(files / "model.pth"),
        "--data",
        source,
        "--target",
        str(files / "target.gz"),
        "--out",
        file,
    ]
    assert run([*made, "--frequent", "4", "--per-token", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"] == 12
    assert told["coverage"]["share"] > 0.9
    listed = Shortlist.load(tmp_path / "list")
    fox, hill, moon = (set(tokenizer.encode(word)) for word in ("fox", "hill", "moon"))
    (word,) = fox if len(fox) == 1 else {max(fox)}
    assert listed.fingerprint() == told["fingerprint"]
    assert hill & set(listed.tokens([word]))
    assert not (moon - hill) & set(listed.candidates[word, :1].tolist())
    assert run(made) == 9, "it is there already"
    assert run([*made, "--overwrite", "--max-pairs", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 5

    generate = [
        "generate",
        str(files / "model.pth"),
        "--prompt",
        "the fox",
        "--shortlist",
        file,
        "--max-new-tokens",
        "9",
    ]
    assert run([*generate, "--json"]) == 0
    generation = json.loads(capsys.readouterr().out)
    model = txtgen.load(files / "model.pth", shortlist=file)
    expected = model.generate("the fox", max_new_tokens=9)[0]
    assert generation["token_ids"] == list(expected.token_ids)
    (first,) = model.plan({0: "the fox"}).batches[0]
    assert set(expected.token_ids) <= {*Shortlist.load(tmp_path / "list").tokens(first.token_ids), 3}

    measured = ["evaluate", str(files / "model.pth"), "--data", source, "--target", str(files / "target.gz"), "--json"]
    assert run([*measured, "--shortlist", file, "--set", "decoding.max_new_tokens=5"]) == 0
    assert 0.5 < json.loads(capsys.readouterr().out)["shortlist"]["share"] <= 1.0


def test_a_file_of_results_is_of_one_short_list(files, tmp_path, capsys):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.txt"
    prompts.write_text("the fox\nthe dog\nthe cat\n")
    pairs = ["--data", str(files / "source.gz"), "--target", str(files / "target.gz")]
    generate = ["generate", str(files / "model.pth"), "--input", str(prompts), "--max-new-tokens", "5"]
    facts = []
    for name, count in (("one", "1"), ("two", "2")):
        made = ["shortlist", str(files / "model.pth"), *pairs, "--out", str(tmp_path / name), "--per-token", count]
        assert run(made) == 0
        config = GenerateConfig(model=str(files / "model.pth"), shortlist=str(tmp_path / name))
        facts.append(PromptJob(config, ["the fox"], lines=True).facts())
    assert {key for key in facts[0] if facts[0][key] != facts[1][key]} == {"sha256 of the short-list"}
    assert run([*generate, "--shortlist", str(tmp_path / "one")]) == 0
    plain = capsys.readouterr().out.splitlines()[-3:]
    assert run([*generate, "--shortlist", str(tmp_path / "one"), "--output", str(out), "--workers", "2"]) == 0
    assert out.read_text().splitlines() == plain
    options = {"model": str(files / "model.pth"), "decoding": {"max_new_tokens": 5}, "workers": 1}
    job = PromptJob(GenerateConfig(shortlist=str(tmp_path / "one"), **options), ["the fox"], lines=True)
    (tmp_path / "one").unlink()  # workers have the list that the facts are of
    assert [job.written(each).rstrip("\n") for found in job.results() for each in found.values()] == plain[:1]


def test_mistakes_are_told(files, tmp_path, capsys, monkeypatch):
    pairs = ["--data", str(files / "source.gz"), "--target", str(files / "target.gz")]
    model = str(files / "model.pth")
    assert run(["generate", model, "--prompt", "a", "--shortlist", str(tmp_path / "none")]) == 5
    assert "no such short-list" in capsys.readouterr().err
    assert run(["generate", model, "--prompt", "a", "--shortlist", "x", "--ensemble", model]) == 2
    assert "shortlist" in capsys.readouterr().err
    assert run(["shortlist", model, *pairs, "--out", str(tmp_path / "no" / "folder")]) == 6
    assert run(["shortlist", model, "--data", str(files / "source.gz"), "--out", str(tmp_path / "a")]) == 4
    assert "give --target FILE" in capsys.readouterr().err
    # Before anything is measured.
    monkeypatch.setattr("txtgen.commands.evaluate.evaluate_loss", lambda *_: pytest.fail("it is measured"))
    measured = ["evaluate", model, *pairs, "--shortlist"]
    assert run([*measured, str(tmp_path / "none")]) == 5
    assert "no such short-list" in capsys.readouterr().err
    assert run([*measured, str(tmp_path / "none"), "--no-translate"]) == 2
    assert "nothing is generated" in capsys.readouterr().err
