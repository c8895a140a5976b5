"""`txtgen generate` with prompts, settings and models that are not as they should be."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from txtgen.checkpoint import load_checkpoint, save_checkpoint
from txtgen.cli import run
from txtgen.commands.models import load_for
from txtgen.config.model import AlibiPosition

STRATEGIES = {
    "greedy": ["--strategy", "greedy"],
    "lookup": ["--strategy", "greedy", "--prompt-lookup"],
    "beam": ["--strategy", "beam", "--beam-size", "3"],
    "sample": ["--strategy", "sample", "--num-return", "2"],
    "beam_sample": ["--strategy", "beam_sample", "--beam-size", "3"],
    "contrastive": ["--strategy", "contrastive"],
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
both_ways = pytest.mark.parametrize("native", ["auto", "off"])

LONG = {
    "words": "the cat sees ",
    "one word": "a",
    "spaces": " ",
    "bytes": "😀",
    "the sign of a space": "\u2581",
    "special": "<s>",
}
"""What prompts of 10 MB are made of."""


@pytest.fixture
def changed(trained, tmp_path):
    """Write the model of a run with another config or other weights."""

    def write(name: str, change, **config) -> str:
        found = load_checkpoint(trained / "runs" / name / "best.pth")
        model = found.config.model.model_copy(update=config)
        weights = {key: tensor.clone() for key, tensor in found.model.items()}
        change(weights)
        path = tmp_path / f"{name}.pth"
        save_checkpoint(path, replace(found, config=found.config.model_copy(update={"model": model}), model=weights))
        return str(path)

    return write


def refused(arguments: list[str], code: int, *words: str, capfd) -> str:
    """Run what is one clear error: nothing on stdout, one line on stderr."""
    capfd.readouterr()
    assert run(["generate", *arguments]) == code
    out, error = capfd.readouterr()
    assert out == ""
    errors = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, error
    assert not [word for word in words if word not in errors[0]], error
    assert "Traceback" not in error
    assert len(error) < 1000
    return error


# -- prompts


@pytest.mark.parametrize("content", [None, b""], ids=["folder", "empty"])
def test_a_file_without_a_prompt(decoder, tmp_path, stdin, capfd, content) -> None:
    path = tmp_path / "prompts.txt"
    if content is None:
        path.mkdir()
        refused([decoder, "--input", str(path)], 2, "cannot read the prompts", str(path), "check the path", capfd=capfd)
    else:
        path.write_bytes(content)
        refused([decoder, "--input", str(path)], 2, "there is no prompt", "--prompt TEXT", capfd=capfd)
        refused([decoder], 2, "there is no prompt", "--prompt TEXT", capfd=capfd)


def test_odd_characters_are_prompts_as_they_are(decoder, translator, stdin, capfd) -> None:
    prompts = ["the\0cat", "\x1b]0;title\x07", "[bold]\u202e:smile:", "\ufeff\ufffd\U0010ffff", " \t\r \u3000"]
    for model in (decoder, translator):
        stdin("".join(f"{prompt}\n" for prompt in prompts).encode())
        assert run(["generate", model, "--max-new-tokens", "2", "--json"]) == 0
        out, error = capfd.readouterr()
        assert [json.loads(line)["prompt"] for line in out.splitlines()] == prompts
        assert error == ""


def test_half_a_character_in_a_file_is_refused(decoder, tmp_path, capfd) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n{"prompt": "the \\ud800"}\n', encoding="utf-8")
    refused([decoder, "--input", str(path)], 2, "U+D800", "prompt 2", capfd=capfd)


def test_characters_that_the_tokenizer_does_not_know_are_told(workshop, capfd, caplog) -> None:
    settings = ["--set", "tokenizer.byte_fallback=false", "--set", "tokenizer.vocab_size=60", "--steps", "1"]
    assert run(["pretrain", "decoder.yaml", "--name", "few", *settings]) == 0
    known = ["generate", "runs/few", "--max-new-tokens", "2", "--prompt", "the cat"]
    caplog.clear()
    assert run(known) == 0
    assert not caplog.records
    assert run([*known, "--prompt", "猫犬"]) == 0
    assert caplog.messages == [
        "1 of 2 prompts have characters that the tokenizer does not know, and that the model cannot read"
    ]


def test_a_prompt_of_ten_megabytes_is_refused_with_its_length(decoder, stdin, capfd) -> None:
    stdin(LONG["words"].encode() * (10_000_000 // len(LONG["words"])))
    refused([decoder], 2, "max_length is 32", "tokens are taken before", "prompt 1", "shorten", capfd=capfd)


@pytest.mark.slow
@pytest.mark.parametrize("shape", LONG)
def test_ten_megabytes_of_anything_take_little_memory(decoder, translator, tmp_path, shape) -> None:
    """In a process that may take 1.5 GB more than it has when it begins to read them."""
    path = tmp_path / "prompts.txt"
    path.write_text("the" + LONG[shape] * (10_000_000 // len(LONG[shape].encode())), encoding="utf-8")
    code = """
import resource, sys
from txtgen.cli import run
path, *models = sys.argv[1:]
assert run(["generate", models[0], "--prompt", "the", "--max-new-tokens", "1"]) == 0
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 1_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for model in models:
    for flags in ([], ["--special"]):
        assert run(["generate", model, "--input", path, *flags]) == 2
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(path), decoder, translator]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 4
    assert all("max_length is 32" in line or "max_source_length is 32" in line for line in errors)


# -- settings


@both_ways
@pytest.mark.parametrize("strategy", ["greedy", "beam", "contrastive"])
def test_more_than_any_memory_is_one_error(changed, tmp_path, capfd, strategy, native) -> None:
    """Where positions set no limit, room is made for all that was asked for: here some 8 TB."""
    model = changed("decoder", lambda _: None, position=AlibiPosition())
    path = tmp_path / "prompts.txt"
    path.write_text("the cat\n" * 64, encoding="utf-8")
    flags = ["--input", str(path), "--batch-size", "64", "--max-new-tokens", str(2**30), "--native", native]
    refused([model, *flags, *STRATEGIES[strategy]], 6, "out of memory", "lower batch_size", capfd=capfd)
    for more in (2**30 + 1, 2**62, 2**63 - 1, 10**30):
        flags[5] = str(more)
        refused([model, *flags, *STRATEGIES[strategy]], 2, "max_new_tokens", capfd=capfd)


@pytest.mark.parametrize("flags", list(STRATEGIES.values()), ids=STRATEGIES)
def test_a_seed_gives_the_same_again(decoder, capfd, flags) -> None:
    command = ["generate", decoder, "--prompt", "the cat", "--prompt", "a dog", "--json", *flags]
    found = []
    for seed in ("5", "5", "6"):
        assert run([*command, "--seed", seed]) == 0
        found.append(capfd.readouterr().out)
    assert found[0] == found[1]
    assert (found[1] == found[2]) == ("sample" not in " ".join(flags))


# -- models


@both_ways
@every_strategy
@pytest.mark.parametrize("name", ["decoder", "translator"])
def test_a_weight_that_is_not_a_number_is_named(changed, capfd, name, strategy, native) -> None:
    weight = "decoder.layers.0.feed_forward.up_proj.weight"
    model = changed(name, lambda weights: weights[weight].view(-1)[3].fill_(torch.nan))
    flags = ["--prompt", "the cat", "--native", native, *STRATEGIES[strategy]]
    refused([model, *flags], 5, f"weight {weight} is not finite", model, "use an earlier checkpoint", capfd=capfd)


def test_weights_of_other_models_are_looked_at_too(changed, decoder, capfd) -> None:
    model = changed("decoder", lambda weights: weights["token_embedding.weight"][7, 2].fill_(torch.inf))
    for flags in ([model, "--quantize", "int8"], [decoder, "--draft", model], [decoder, "--ensemble", model]):
        refused([*flags, "--prompt", "the cat"], 5, "token_embedding.weight is not finite", model, capfd=capfd)
    refused([model, "--input", __file__, "--workers", "2"], 5, "token_embedding.weight is not finite", capfd=capfd)


@both_ways
@every_strategy
@pytest.mark.parametrize("name", ["decoder", "translator"])
def test_numbers_that_become_too_large_are_told(changed, capfd, name, strategy, native) -> None:
    """Every weight is finite, but what is computed with them is not."""

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["decoder.final_norm.weight"].fill_(3e38)
        weights["token_embedding.weight"] *= 1e3

    model = changed(name, enlarge)
    flags = ["--prompt", "the cat", "--native", native, *STRATEGIES[strategy]]
    refused([model, *flags], 7, "the model's scores are not finite", "next-token logits", capfd=capfd)
    refused([model, *flags, "--prompt", "the dog"], 7, "the model's scores are not finite", capfd=capfd)


# -- what was generated


HOSTILE = "\x1b[2J\u202e[/b]:x:\x07"


def test_a_model_is_read_once(decoder, monkeypatch, capfd) -> None:
    read = []

    def noting(config, **options):
        read.append(config.model)
        return load_for(config, **options)

    monkeypatch.setattr("txtgen.commands.generate.load_for", noting)
    monkeypatch.setattr("txtgen.commands.prompting.prompted.load_for", noting)
    for more in ([], ["--num-return", "2"], ["--json"], ["--prompt", "a dog"]):
        assert run(["generate", decoder, "--prompt", "the cat", "--strategy", "sample", *more]) == 0
        assert len(read) == 1
        read.clear()


@pytest.mark.parametrize("more", [[], ["--num-return", "2"]], ids=["stream", "results"])
def test_hostile_text_is_harmless_on_a_terminal_and_exact_elsewhere(decoder, monkeypatch, capfd, more) -> None:
    command = ["generate", decoder, "--prompt", "", "--prefix", HOSTILE, "--strategy", "sample", *more]
    assert run(command) == 0
    piped = capfd.readouterr().out
    assert piped.count(HOSTILE) == (2 if more else 1)
    assert run([*command, "--json"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "".join(json.loads(line)["text"] + "\n" for line in lines) == piped
    assert all(line.isascii() and line.isprintable() for line in lines)
    screen, terminal = os.openpty()
    with open(terminal, "w", encoding="utf-8") as stdout, open(screen, "rb", buffering=0) as shown:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run(command) == 0
        monkeypatch.undo()
        seen = shown.read(65536).decode()
    assert seen.count("\\x1b[2J\\u202e[/b]:x:\\x07") == (2 if more else 1)
    assert all(character.isprintable() or character in "\r\n\t" for character in seen)
