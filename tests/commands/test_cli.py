"""The command line as its users and scripts see it: what goes where, and which exit code."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

import txtgen
import txtgen.__main__ as entry
from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands.showing.output import write_result
from txtgen.errors import safe_text
from txtgen.native import UnavailableError

# -- generate

AHEAD = """
import gc, sys
from txtgen import archive
from txtgen.cli import run

verify_ahead, begun = archive.verify_ahead, []


def noted(path):
    assert "torch" not in sys.modules
    begun.append(path)
    verify_ahead(path)


archive.verify_ahead = noted
code = run(sys.argv[1:])
assert len(begun) == 1 and not archive._ahead and gc.isenabled()
sys.exit(code)
"""


@pytest.mark.parametrize("command", [["generate", "--prompt", "the"], ["score", "--target", "the cat"]])
def test_a_model_is_verified_while_torch_is_imported(decoder, workshop, command) -> None:
    content = bytearray((Path(decoder) / "best.pth").read_bytes())
    content[len(content) // 2] ^= 1
    Path("damaged.pth").write_bytes(content)
    environment = {**os.environ, "PYTHONPATH": str(Path(txtgen.__file__).parents[1])}
    for model, code, message in ((decoder, 0, ""), ("damaged.pth", 5, "error: not a usable checkpoint: ")):
        whole = [sys.executable, "-c", AHEAD, *command, model]
        done = subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr[: len(message)]) == (code, message), done.stderr
        assert done.stderr.count("\n") == bool(code)


def test_only_text_goes_to_stdout(decoder, capfd) -> None:
    assert run(["generate", decoder, "--prompt", "the cat", "--max-new-tokens", "5"]) == 0
    captured = capfd.readouterr()
    model = txtgen.load(decoder)
    assert captured.out == model.generate(["the cat"], max_new_tokens=5)[0].text + "\n"
    assert captured.err == ""


def test_json_has_the_keys_of_the_contract(decoder, capfd) -> None:
    arguments = [
        "--prompt",
        "the cat",
        "--prompt",
        "the dog",
        "--strategy",
        "beam",
        "--beam-size",
        "3",
        "--num-return",
        "2",
    ]
    assert run(["generate", decoder, *arguments, "--max-new-tokens", "4", "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    keys = [
        "prompt_index",
        "index",
        "prompt",
        "text",
        "token_ids",
        "prompt_token_ids",
        "logprob",
        "score",
        "finish_reason",
    ]
    assert [list(line) for line in lines] == [keys] * 4
    assert [(line["prompt_index"], line["index"]) for line in lines] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert lines[0]["score"] >= lines[1]["score"]
    tokenizer = load_checkpoint(Path(decoder) / "best.pth").tokenizer
    for line in lines:
        assert line["finish_reason"] in ("eos", "stop", "loop", "length")
        assert tokenizer.decode(line["token_ids"]) == line["text"]
        assert tokenizer.decode(line["prompt_token_ids"]) == line["prompt"]


def test_a_line_in_is_a_line_out(translator, workshop, capfd) -> None:
    Path("in.txt").write_text("the cat\nthe dog and the sun\nthe fox\n", encoding="utf-8")
    assert run(["generate", translator, "--input", "in.txt", "--batch-size", "2"]) == 0
    batched = capfd.readouterr().out
    assert batched.count("\n") == 3
    assert run(["generate", translator, "--input", "in.txt", "--independent"]) == 0
    assert capfd.readouterr().out == batched
    Path("in.txt").write_text("the cat\n\nthe dog and the sun\n \nthe fox\n", encoding="utf-8")
    assert run(["generate", translator, "--input", "in.txt"]) == 0
    one, two, three = batched.splitlines()
    assert capfd.readouterr().out.splitlines() == [one, "", two, "", three]


def test_piped_text_and_jsonl_are_prompts(decoder, workshop, stdin, capfd) -> None:
    stdin(b"the cat\nthe dog\n")
    assert run(["generate", decoder, "--max-new-tokens", "3"]) == 0
    piped = capfd.readouterr().out
    Path("in.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "the dog"}\n', encoding="utf-8")
    assert run(["generate", decoder, "--input", "in.jsonl", "--max-new-tokens", "3"]) == 0
    assert capfd.readouterr().out == piped


def test_files_of_prompts_may_be_compressed_and_have_blank_lines_of_json(decoder, workshop, capfd) -> None:
    texts = {"in.txt": "the cat\nthe dog\n", "in.jsonl": '{"prompt": "the cat"}\n\n{"prompt": "the dog"}\n \n'}
    for name, text in texts.items():
        Path(name).write_text(text, encoding="utf-8")
        with gzip.open(f"{name}.gz", "wb") as file:
            file.write(text.encode())
    written = []
    for name in [*texts, *(f"{name}.gz" for name in texts)]:
        assert run(["generate", decoder, "--input", name, "--max-new-tokens", "3"]) == 0
        written.append(capfd.readouterr().out)
    assert written[0].count("\n") == 2
    assert len(set(written)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "broken.jsonl",
            b'{"prompt": "a"}\n{"prompt": "b"\n',
            "not valid JSON: Expecting ',' delimiter; broken.jsonl:2",
        ),
        ("list.jsonl", b'["a"]\n', "not a JSON object; list.jsonl:1;"),
        ("deep.jsonl", b"[" * 100_000 + b"\n", "nested too deeply"),
        ("none.jsonl", b'{"text": "a"}\n', "neither a prompt nor messages; none.jsonl:1;"),
        ("both.jsonl", b'{"prompt": "a", "messages": []}\n', "both a prompt and messages; both.jsonl:1;"),
        (
            "null.jsonl",
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}\n',
            "message 2 lacks a role or a content that is a string; null.jsonl:1;",
        ),
        ("plain.txt.gz", b"the cat\n", "'plain.txt.gz' is not gzip"),
        ("cut.txt.gz", gzip.compress(b"the cat\n", mtime=0)[:-6], "'cut.txt.gz' is cut off"),
    ],
)
def test_files_of_prompts_that_cannot_be_used(decoder, workshop, capfd, name, content, message) -> None:
    Path(name).write_bytes(content)
    assert run(["generate", decoder, "--input", name]) == 2
    out, error = capfd.readouterr()
    assert (out, error[:7]) == ("", "error: ")
    assert message in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"type":\n "obj', "not valid JSON: Unterminated string starting at; schema.json:2:2; write the JSON schema"),
        ("[1]", "not a JSON object; schema.json:1;"),
    ],
)
def test_a_schema_that_is_no_json_is_told_with_its_file(workshop, capfd, content, message) -> None:
    """Before a model is looked for."""
    Path("schema.json").write_text(content, encoding="utf-8")
    assert run(["generate", "no.pth", "--prompt", "a", "--json-schema", "schema.json"]) == 2
    assert message in capfd.readouterr().err


def test_the_newest_run_is_the_default(workshop, stdin, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--steps", "1"]) == 0
    capfd.readouterr()
    assert run(["generate", "--prompt", "the", "--max-new-tokens", "2", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["prompt"] == "the"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--temperature", "0.5"], 2, "greedy"),
        (["--strategy", "beam", "--top-p", "0.5"], 2, "top_p"),
        (["--strategy", "beam", "--beam-size", "0"], 2, "beam_size"),
        (["--strategy", "beam", "--beam-size", "-1"], 2, "beam_size"),
        (["--strategy", "beam", "--beam-size", "99999"], 2, "vocabulary"),
        (["--strategy", "beam", "--num-return", "9"], 2, "num_return"),
        (["--num-return", "2"], 2, "num_return"),
        (["--strategy", "sample", "--top-p", "0"], 2, "top_p"),
        (["--strategy", "sample", "--top-p", "1.5"], 2, "top_p"),
        (["--strategy", "sample", "--top-p", "nan"], 2, "top_p"),
        (["--strategy", "sample", "--temperature", "0"], 2, "temperature"),
        (["--strategy", "sample", "--temperature", "inf"], 2, "temperature"),
        (["--strategy", "sample", "--top-k", "-3"], 2, "top_k"),
        (["--strategy", "sample", "--min-p", "1"], 2, "min_p"),
        (["--repetition-penalty", "0"], 2, "repetition_penalty"),
        (["--max-new-tokens", "-1"], 2, "max_new_tokens"),
        (["--max-new-tokens", "2", "--min-new-tokens", "3"], 2, "min_new_tokens"),
        (["--max-new-tokens", "2", "--max-length", "9"], 2, "max_length"),
        (["--max-length", "8", "--min-length", "9"], 2, "min_length"),
        (["--min-new-tokens", "2", "--min-length", "9"], 2, "min_length"),
        (["--bad-word", ""], 2, "bad_words"),
        (["--prefix", ""], 2, "prefix"),
        (["--regex", "(fox"], 2, "unclosed group"),
        (["--include", "fox"], 2, "include has no meaning for strategy"),
        (["--json-schema", "missing.json"], 2, "missing.json"),
        (["--regex", "fox", "--prefix", "f"], 2, "prefix and regex"),
        (["--strategy", "beam", "--num-groups", "2"], 2, "diversity_penalty"),
        (["--forced-bos-token-id", "99999"], 2, "forced_bos_token_id names token 99999"),
        (["--forced-bos-token-id", "-1"], 2, "forced_bos_token_id"),
        (["--set", "decoding.forced_eos_token_id=99999"], 2, "forced_eos_token_id names token 99999"),
        (["--set", "decoding.suppress_tokens=[99999]"], 2, "suppress_tokens names token 99999"),
        (["--set", "decoding.begin_suppress_tokens=[-1]"], 2, "begin_suppress_tokens"),
        (["--set", "decoding.bad_words_ids=[[]]"], 2, "bad_words_ids"),
        (["--set", "decoding.sequence_bias=[{bias: 1.0}]"], 2, "sequence_bias"),
        (["--set", "decoding.exponential_decay_length_penalty=[1, 2]"], 2, "exponential_decay_length_penalty"),
        (["--set", "decoding.repetition_penlty=2"], 2, "did you mean repetition_penalty"),
        (["--top-h", "0.5"], 2, "top_h"),
        (["--strategy", "sample", "--top-h", "0"], 2, "top_h"),
        (["--strategy", "sample", "--epsilon-cutoff", "1"], 2, "epsilon_cutoff"),
        (["--strategy", "sample", "--eta-cutoff", "-1"], 2, "eta_cutoff"),
        (["--strategy", "sample", "--top-n-sigma", "0"], 2, "top_n_sigma"),
        (["--strategy", "sample", "--sampler", "top_k", "--sampler", "top_kk"], 2, "did you mean top_k"),
        (["--strategy", "sample", "--sampler", "top_k", "--sampler", "top_k"], 2, "more than once"),
        (["--strategy", "sample", "--sampler", "top_k", "--min-p", "0.1"], 2, "samplers (top_k) leaves it out"),
        (["--sampler", "top_k"], 2, "use strategy sample"),
        (["--presence-penalty", "nan"], 2, "presence_penalty"),
        (["--frequency-penalty", "1e9"], 2, "frequency_penalty"),
        (["--penalty-window", "5"], 2, "penalty_window"),
        (["--set", "decoding.dry.base=2"], 2, "dry.multiplier"),
        (["--set", "decoding.dry={multiplier: 1, breaker_ids: [[99999]]}"], 2, "dry.breaker_ids names token 99999"),
        (["--set", "decoding.xtc={}"], 2, "use strategy sample"),
        (["--mbr", "4"], 2, "use strategy sample"),
        (["--strategy", "sample", "--mbr", "1"], 2, "mbr.candidates"),
        (["--strategy", "sample", "--mbr", "4", "--num-return", "5"], 2, "more than mbr.candidates 4"),
        (["--strategy", "beam", "--prompt-lookup"], 2, "speculation has no meaning for strategy beam"),
        (["--set", "decoding.speculation={kind: draft}"], 2, "there is no draft model"),
        (["--prompt-lookup", "--set", "decoding.speculation.num_tokens=0"], 2, "speculation.num_tokens"),
        (["--prompt-lookup", "--draft", "missing"], 2, "decoding.speculation is prompt_lookup"),
        (["--draft", "missing"], 5, "no such model; missing"),
        (["--ensemble", "missing"], 5, "no such model; missing"),
        (["--log-linear"], 2, "mixture.mean: is log_linear, but a single model decides"),
        (["--ensemble", "a", "--set", "mixture.weights=[1, 2, 3]"], 2, "mixture.weights: are 3, and 2 models decide"),
        (["--ensemble", "a", "--set", "mixture.weights=[1, 0]"], 2, "mixture.weights"),
        (["--ensemble", "a", "--workers", "2"], 2, "have one model each, and ensemble is given"),
        (["--set", "decoding.stop_on_loop.times=1"], 2, "stop_on_loop.times"),
        (["--set", "decoding.stop_on_loop.max_block=0"], 2, "stop_on_loop.max_block"),
        (["--seed", "-1"], 2, "seed"),
        (["--strategy", "magic"], 2, "magic"),
        (["--batch-size", "0"], 2, "batch-size"),
        (["--prompt", "x" * 5000], 2, "max_length"),
        (["--prompt", "a\udc80b"], 2, "prompt"),
        (["--prompt", "a\0b"], 2, "without NUL"),
        (["--input", "missing.txt"], 2, "missing.txt"),
        (["--device", "abacus"], 2, "abacus"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_options_that_make_no_sense_are_usage_errors(decoder, stdin, capfd, arguments, code, message) -> None:
    assert run(["generate", decoder, "--prompt", "the cat", *arguments]) == code
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_generate_writes_what_a_schema_allows(decoder, tmp_path, capfd) -> None:
    (tmp_path / "schema.json").write_text(json.dumps({"enum": ["the cat", {"cat": [True]}]}))
    flags = ["--strategy", "sample", "--num-return", "9", "--json-schema", str(tmp_path / "schema.json"), "--json"]
    assert run(["generate", decoder, "--prompt", "the", "--max-new-tokens", "60", *flags]) == 0
    texts = [json.loads(line)["text"] for line in capfd.readouterr().out.splitlines()]
    assert [json.loads(text) in ("the cat", {"cat": [True]}) for text in texts] == [True] * 9
    assert run(["generate", decoder, "--prompt", "the", "--prefix", "the dog", "--regex", ""]) == 2
    capfd.readouterr()
    assert run(["generate", decoder, "--prompt", "the", "--prefix", "the dog", "--max-new-tokens", "9"]) == 0
    assert capfd.readouterr().out.startswith("the dog")
    flags = [
        "--include",
        "hill",
        "--include",
        "lake",
        "--strategy",
        "beam",
        "--max-new-tokens",
        "20",
        "--prefix",
        "the",
    ]
    assert run(["generate", decoder, "--prompt", "the", *flags]) == 0
    text = capfd.readouterr().out
    assert text.startswith("the")
    assert "hill" in text
    assert "lake" in text


def test_models_beside_the_first_one(decoder, translator, capfd) -> None:
    def written(*flags) -> list[dict]:
        assert run(["generate", decoder, "--prompt", "the cat", "--max-new-tokens", "20", "--json", *flags]) == 0
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    (plain,) = written()
    assert "proposed" not in plain
    for flags in (["--prompt-lookup"], ["--draft", decoder, "--set", "decoding.speculation.num_tokens=3"]):
        (found,) = written(*flags)
        assert found.pop("proposed") >= found.pop("accepted") > 0
        assert found["token_ids"] == plain["token_ids"]
    (found,) = written("--ensemble", decoder, "--log-linear", "--set", "mixture.weights=[3, 1]")
    assert found["token_ids"] == plain["token_ids"]
    assert run(["generate", decoder, "--prompt", "the cat", "--ensemble", translator]) == 5
    assert "the ensemble model has another architecture" in capfd.readouterr().err
    assert run(["score", decoder, "--target", "the cat", "--ensemble", decoder, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["text"] == "the cat"
    assert run(["generate", decoder, "--prompt", "the cat", "--draft", translator]) == 5
    assert "the draft model has another architecture" in capfd.readouterr().err


def test_every_setting_can_be_reached(decoder, capfd) -> None:
    flags = ["--bad-word", "cat", "--bad-word", "dog", "--min-length", "9", "--strategy", "beam", "--stop-on-loop"]
    settings = {
        "sequence_bias": [{"text": "sun", "bias": 3}, {"token_ids": [30, 31], "bias": -1.5}],
        "encoder_repetition_penalty": 1.2,
        "encoder_no_repeat_ngram_size": 3,
        "bad_words_ids": [[40], [41, 42]],
        "forced_bos_token_id": 33,
        "forced_eos_token_id": 3,
        "exponential_decay_length_penalty": {"start": 2, "factor": 1.5},
        "suppress_tokens": [50],
        "begin_suppress_tokens": [51, 52],
        "renormalize_logits": True,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"decoding.{key}={json.dumps(value)}")]
    assert run(["generate", decoder, "--prompt", "the", "--max-new-tokens", "7", "--json", *flags, *sets]) == 0
    found = json.loads(capfd.readouterr().out)
    options = {"strategy": "beam", "bad_words": ["cat", "dog"], "min_length": 9, "max_new_tokens": 7, **settings}
    options["stop_on_loop"] = {}
    assert found["token_ids"] == list(txtgen.load(decoder).generate("the", **options)[0].token_ids)
    cuts = [
        "top_p=0.9",
        "top_n_sigma=1.5",
        "top_h=0.5",
        "top_k=9",
        "min_p=0.01",
        "typical_p=0.9",
        "epsilon_cutoff=0.01",
    ]
    cuts += ["eta_cutoff=0.01", "temperature=1.5", "presence_penalty=0.5", "frequency_penalty=0.5", "penalty_window=4"]
    options = {key: float(value) for key, value in (cut.split("=") for cut in cuts)}
    options |= {"top_k": 9, "penalty_window": 4, "samplers": [cut.split("=")[0] for cut in cuts[:9]] + ["xtc"]}
    flags = [part for cut in cuts for part in ("--" + cut.split("=")[0].replace("_", "-"), cut.split("=")[1])]
    flags += [part for name in options["samplers"] for part in ("--sampler", name)]
    sets = [
        "--set",
        "decoding.dry={multiplier: 0.8}",
        "--set",
        "decoding.xtc={}",
        "--strategy",
        "sample",
        "--seed",
        "7",
    ]
    assert run(["generate", decoder, "--prompt", "the", "--max-new-tokens", "9", "--json", *flags, *sets]) == 0
    options |= {"strategy": "sample", "seed": 7, "max_new_tokens": 9, "dry": {"multiplier": 0.8}, "xtc": {}}
    expected = txtgen.load(decoder).generate("the", **options)[0].token_ids
    assert json.loads(capfd.readouterr().out)["token_ids"] == list(expected)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-new-tokens", "1000000000"],
        ["--strategy", "sample", "--temperature", "1e-9"],
        ["--strategy", "sample", "--temperature", "9999"],
        ["--strategy", "sample", "--top-k", "99999"],
        ["--strategy", "sample", "--top-p", "1e-9", "--num-return", "3"],
        ["--strategy", "contrastive", "--top-k", "99999"],
        ["--prompt-lookup", "--set", "decoding.speculation.num_tokens=64"],
    ],
    ids=" ".join,
)
def test_what_is_extreme_and_allowed_gives_a_text(decoder, capfd, arguments) -> None:
    for prompt in ("the cat", " \t", "\u2581", "\x1b[2J", "\U0010ffff"):
        assert run(["generate", decoder, "--prompt", prompt, "--json", *arguments]) == 0
        captured = capfd.readouterr()
        for line in captured.out.splitlines():
            found = json.loads(line)
            assert found["prompt"] == prompt
            assert 0 < len(found["token_ids"]) < 32
        assert "Traceback" not in captured.err


def test_no_new_tokens_give_empty_text(decoder, capfd) -> None:
    assert run(["generate", decoder, "--prompt", "the", "--max-new-tokens", "0"]) == 0
    assert capfd.readouterr().out == "\n"


def test_an_empty_prompt_starts_a_decoder_and_is_refused_by_a_translator(decoder, translator, capfd) -> None:
    assert run(["generate", decoder, "--prompt", "", "--max-new-tokens", "2"]) == 0
    assert run(["generate", translator, "--prompt", ""]) == 2


def test_without_a_prompt_a_terminal_gets_a_usage_error(decoder, monkeypatch, capfd) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert run(["generate", decoder]) == 2
    assert "there is no prompt" in capfd.readouterr().err


def test_piped_bytes_that_are_not_utf8_are_refused(decoder, stdin, capfd) -> None:
    stdin(b"the \xff cat\n")
    assert run(["generate", decoder]) == 2
    assert "byte 4" in capfd.readouterr().err


def test_a_terminal_gets_control_characters_escaped() -> None:
    assert safe_text("a\x1b[2Jb\x9bc\u202ed\n\te") == "a\\x1b[2Jb\\x9bc\\u202ed\n\te"
    assert safe_text("[bold]:smile:[/x] 你好 😀 é") == "[bold]:smile:[/x] 你好 😀 é"


@pytest.mark.parametrize("arguments", [[], ["--prompt", "a dog", "--num-return", "2"]], ids=["one", "many"])
def test_ctrl_c_ends_the_line_after_what_was_written(decoder, monkeypatch, capfd, arguments) -> None:
    """A real signal, as the second piece of text, or what the second prompt gave, is about to be written."""
    command = ["generate", decoder, "--prompt", "the cat", "--strategy", "sample", "--seed", "3", *arguments]
    assert run(command) == 0
    whole, pieces = capfd.readouterr().out, count(1)

    def write(text: str, end: str = "\n") -> None:
        if next(pieces) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        write_result(text, end)

    monkeypatch.setattr("txtgen.commands.generate.write_result", write)
    assert run(command) == 130
    out, error = capfd.readouterr()
    assert out.endswith("\n")
    assert 1 < len(out) < len(whole)
    assert whole.startswith(out.removesuffix("\n"))
    assert error == ""


def test_ctrl_c_in_a_real_process_leaves_whole_lines_and_a_clean_terminal(decoder, tmp_path) -> None:
    """Its progress is shown on a terminal, whose settings and cursor are as before afterwards."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\n" * 20_000, encoding="utf-8")
    command = [sys.executable, "-m", "txtgen", "generate", decoder, "--input", str(prompts), "--native", "off"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    terminal, end = os.openpty()
    before, shown = termios.tcgetattr(end), bytearray()

    def watch() -> None:
        with suppress(OSError):  # the other end is closed
            while piece := os.read(terminal, 4096):
                shown.extend(piece)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=end, env=environment
    ) as process:
        timer = threading.Timer(300, process.kill)  # a guard, not a claim
        timer.start()
        assert process.stdout is not None
        written = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        written += process.stdout.read()
    timer.cancel()
    after = termios.tcgetattr(end)
    os.close(end)
    watcher.join()
    os.close(terminal)
    screen = shown.decode()
    assert process.returncode == 130, screen
    assert "Traceback" not in screen
    assert written.endswith(b"\n")
    assert 0 < written.count(b"\n") < 20_000
    assert after == before
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h") > 0
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")
    assert screen.endswith("\r\x1b[1A\x1b[2K"), "nothing of the progress is left, and the next line begins at its left"


def test_output_that_nobody_reads_is_no_mistake(decoder) -> None:
    """Each command ends a process of its own, all of them forked from one that has imported torch."""
    generate = ["generate", decoder, "--max-new-tokens", "3", "--prompt", "the cat"]
    commands = [generate, [*generate, "--prompt", "the dog"], ["inspect", decoder], ["config", "schema"]]
    code = """
import json, os, sys, torch
from txtgen.__main__ import main
for arguments in json.loads(sys.argv[1]):
    if os.fork() == 0:
        sys.argv[1:] = arguments
        main()
    assert os.wait()[1] == 0, arguments
"""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_behind_the_output_is_one_error(decoder) -> None:
    generate = ["generate", decoder, "--max-new-tokens", "3", "--prompt", "the cat"]
    commands = [generate, [*generate, "--prompt", "the dog"], ["config", "schema"], ["--version"], ["average", "-h"]]
    with open("/dev/full", "wb") as full:
        for arguments in commands:
            command = [sys.executable, "-m", "txtgen", *arguments]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
            told = "error: cannot write the results: No space left on device; standard output; make room"
            assert (done.returncode, done.stderr.decode()[: len(told)]) == (6, told)
            assert done.stderr.count(b"\n") == 1


# -- score


def test_score_equals_the_log_probability_of_generation(decoder, translator, stdin, capfd) -> None:
    compared = 0
    for model in (decoder, translator):
        for prompt in ("the cat", "the dog and", "a fox runs"):
            assert run(["generate", model, "--prompt", prompt, "--max-new-tokens", "6", "--json"]) == 0
            found = json.loads(capfd.readouterr().out)
            end = "--end" if found["finish_reason"] == "eos" else "--no-end"
            assert run(["score", model, "--prompt", prompt, "--target", found["text"], end, "--json"]) == 0
            scored = json.loads(capfd.readouterr().out)
            assert scored["prompt_token_ids"] == found["prompt_token_ids"]
            if scored["token_ids"] == found["token_ids"]:
                assert scored["logprob"] == pytest.approx(found["logprob"], abs=1e-4)
                compared += 1
    assert compared > 2


def test_texts_to_score_come_from_flags_files_and_pipes(decoder, workshop, stdin, capfd) -> None:
    keys = "index prompt text prompt_token_ids token_ids tokens token_logprobs logprob perplexity"
    texts = ["the cat runs", "the dog", ""]
    flags = [part for text in texts for part in ("--target", text)]
    assert run(["score", decoder, *flags, "--json"]) == 0
    expected = capfd.readouterr().out
    assert [list(json.loads(line)) for line in expected.splitlines()] == [keys.split()] * 3
    Path("texts.txt").write_text("the cat runs\r\nthe dog\n\n", encoding="utf-8")
    Path("texts.jsonl").write_text("".join(json.dumps({"target": t}) + "\n" for t in texts), encoding="utf-8")
    for name in ("texts.txt", "texts.jsonl"):
        assert run(["score", decoder, "--input", name, "--json"]) == 0
        assert capfd.readouterr().out == expected
    stdin(b"the cat runs\nthe dog\n\n")
    assert run(["score", decoder, "--json"]) == 0
    assert capfd.readouterr().out == expected
    lines = [{"prompt": "a", "target": "b"}, {"prompt": "c", "target": "d"}]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert run(["score", decoder, "--input", "pairs.jsonl", "--json"]) == 0
    pairs = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(pair["prompt"], pair["text"]) for pair in pairs] == [("a", "b"), ("c", "d")]
    assert run(["score", decoder, "--input", "texts.txt"]) == 0
    shown = capfd.readouterr().out
    assert f"{json.loads(expected.splitlines()[0])['logprob']:.4f}" in shown
    assert run(["score", decoder, "--target", "the cat"]) == 0
    assert "perplexity" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "a", "--input", "x.txt"], "texts are given twice"),
        (["--input", "missing.txt"], "cannot read the texts"),
        (["--input", "broken.jsonl"], "broken.jsonl:2"),
        (["--input", "bare.jsonl"], "no target"),
        (["--input", "half.jsonl"], "half.jsonl:2"),
        (["--input", "empty.txt"], "there is no text"),
        (["--input", "pair.jsonl", "--prompt", "x"], "prompts are given twice"),
        (
            ["--target", "a", "--target", "b", "--prompt", "x", "--prompt", "y", "--prompt", "z"],
            "3 prompts and 2 texts",
        ),
        (["--target", "x" * 5000], "shorten it"),
        (["--target", "a\udc80b"], "targets"),
        (["--target", "", "--no-end"], "no tokens to score"),
    ],
)
def test_texts_that_cannot_be_scored_are_usage_errors(decoder, workshop, capfd, arguments, message) -> None:
    Path("broken.jsonl").write_text('{"target": "a"}\n{', encoding="utf-8")
    Path("bare.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    Path("half.jsonl").write_text('{"target": "a", "prompt": "b"}\n{"target": "c"}\n', encoding="utf-8")
    Path("pair.jsonl").write_text('{"target": "a", "prompt": "b"}\n', encoding="utf-8")
    Path("empty.txt").write_text("", encoding="utf-8")
    assert run(["score", decoder, *arguments]) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.out == ""


# -- evaluate, inspect, tokenizer, config


def test_evaluate_measures_text(decoder, trained, capfd) -> None:
    assert run(["evaluate", decoder, "--data", str(trained / "text" / "a.txt"), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    size = (trained / "text" / "a.txt").stat().st_size
    assert found["loss"]["bytes"] == size - 144  # a document is a line, its newline stands between documents
    assert found["translation"] is None
    assert run(["evaluate", decoder, "--json"]) == 0
    held_out = json.loads(capfd.readouterr().out)
    assert 0 < held_out["loss"]["tokens"] < found["loss"]["tokens"]


def test_evaluate_looks_back_as_far_as_asked(decoder, trained, capfd) -> None:
    text = ["evaluate", decoder, "--data", str(trained / "text" / "a.txt"), "--json"]
    losses = {}
    for length in (None, 4, 16):
        assert run([*text, *([] if length is None else ["--sequence-length", str(length)])]) == 0
        losses[length] = json.loads(capfd.readouterr().out)["loss"]
    assert len({loss["tokens"] for loss in losses.values()}) == 1
    assert losses[4]["loss"] != losses[16]["loss"]
    assert run([*text, "--sequence-length", "1000"]) == 3
    assert "more than the model's max_length" in capfd.readouterr().err


def test_evaluate_cuts_no_target(translator, trained, capfd) -> None:
    assert run(["evaluate", translator, "--data", str(trained / "pairs.tsv"), "--sequence-length", "4"]) == 2
    assert "no rows of text" in capfd.readouterr().err


def test_evaluate_translates_pairs(translator, trained, workshop, capfd) -> None:
    pytest.importorskip("sacrebleu")
    assert run(["evaluate", translator, "--data", str(trained / "pairs.tsv"), "--output", "out.txt", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["translation"]["sentences"] == 72
    assert "tok:13a" in found["translation"]["bleu_signature"]
    assert Path("out.txt").read_text().count("\n") == 72


def test_evaluate_tells_of_data_that_the_model_does_not_read(decoder, translator, trained, capfd) -> None:
    text, pairs = str(trained / "text" / "a.txt"), str(trained / "pairs.tsv")
    assert run(["evaluate", translator, "--data", text]) == 4
    assert f"plain text, and the model learnt to read other data; {text}; name pairs" in capfd.readouterr().err
    assert run(["evaluate", decoder, "--data", pairs]) == 4
    assert f"of kind tsv, and the model learnt to read other data; {pairs}; name texts" in capfd.readouterr().err


def test_evaluate_describes_what_a_model_writes(decoder, translator, trained, workshop, capfd) -> None:
    long = "the cat sat on the mat " * 10  # the second has no room in 32 positions
    Path("long.txt").write_text(f"a b{' ' * 97}c\n{long}\n", encoding="utf-8")
    command = ["evaluate", decoder, "--data", "long.txt", "--generate", "3", "--set", "decoding.max_new_tokens=4"]
    assert run([*command, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["texts"]
    assert found["texts"] == 1
    assert 0 <= found["distinct_1"] <= 1
    assert run(command) == 0
    assert "ended by themselves" in capfd.readouterr().out
    assert run(["evaluate", decoder, "--data", str(trained / "text" / "a.txt"), "--generate", "3"]) == 4
    assert "nothing to go on from" in capfd.readouterr().err
    pairs = ["--data", str(trained / "pairs.tsv"), "--no-translate", "--generate", "5", "--json"]
    assert run(["evaluate", translator, *pairs]) == 0
    assert json.loads(capfd.readouterr().out)["texts"]["texts"] == 5


def test_evaluate_looks_for_room_without_a_word(decoder, workshop, capfd, caplog) -> None:
    """What is said of lengths is said once, of what is generated."""
    texts = [" " * 120, "a" + " " * 120 + "c", "a" * 15 + " " * 120 + "c", "a b" + " " * 120 + "c"]
    Path("texts.txt").write_text("\n".join(texts), encoding="utf-8")
    for setting, accepted, notes in (("max_new_tokens=100", 3, 1), ("max_length=8", 2, 0), ("max_length=1", 0, 0)):
        caplog.clear()
        command = ["evaluate", decoder, "--data", "texts.txt", "--generate", "9", "--set", f"decoding.{setting}"]
        assert run([*command, "--json"]) == (0 if accepted else 4)
        shown = capfd.readouterr().out
        assert not accepted or json.loads(shown)["texts"]["texts"] == accepted
        assert caplog.text.count("does not fit") == notes


def test_evaluate_cuts_a_source_that_is_too_long(translator, workshop, capfd) -> None:
    pytest.importorskip("sacrebleu")
    for number in (10, 11, 300):  # three byte pieces each, and the model reads 31 and an end
        Path("pairs.tsv").write_text("猫" * number + "\tKatze\n", encoding="utf-8")
        assert run(["evaluate", translator, "--data", "pairs.tsv", "--output", f"{number}.txt", "--json"]) == 0
    assert Path("10.txt").read_bytes() == Path("11.txt").read_bytes() == Path("300.txt").read_bytes()


def test_evaluate_validates_as_training_did(decoder, capfd) -> None:
    assert run(["evaluate", decoder, "--json", "--dtype", "float32"]) == 0
    found = json.loads(capfd.readouterr().out)["loss"]["loss"]
    lines = [json.loads(line) for line in (Path(decoder) / "metrics.jsonl").read_text().splitlines()]
    best = min(line["val_loss"] for line in lines if "val_loss" in line)
    assert found == pytest.approx(best, rel=0.01)  # training computed in bfloat16 where the machine can


def test_machine_code_can_be_asked_for_and_not(decoder, capfd, caplog, monkeypatch) -> None:
    command = ["generate", decoder, "--prompt", "the cat", "--max-new-tokens", "5", "--native"]
    texts = set()
    for native in ("auto", "off"):
        assert run([*command, native]) == 0
        texts.add(capfd.readouterr().out)
    assert len(texts) == 1
    monkeypatch.setattr("txtgen.model.stepping.load_library", without_compiler)
    assert run([*command, "auto"]) == 0
    assert {capfd.readouterr().out} == texts
    assert "generating without machine code: none here" in caplog.text
    assert run([*command, "require"]) == 6
    assert "error: no machine code: none here" in capfd.readouterr().err


def test_compiled_steps_can_be_asked_for_and_not(decoder, capfd, caplog, monkeypatch) -> None:
    made = []
    monkeypatch.setattr("torch.compile", lambda step, **options: made.append(options) or step)
    command = ["generate", decoder, "--prompt", "the cat", "--max-new-tokens", "5", "--device", "cpu"]
    command += ["--dtype", "float32"]
    texts = set()
    for flags, times in (([], 0), (["--no-compile"], 0), (["--compile"], 1), (["--set", "compile=true"], 2)):
        assert run([*command, *flags]) == 0
        texts.add(capfd.readouterr().out)
        assert len(made) == times
    assert len(texts) == 1
    assert run([*command, "--compile", "--native", "require"]) == 2
    assert "compile: and native: require exclude each other" in capfd.readouterr().err
    monkeypatch.setattr("torch.compile", None)
    assert run([*command, "--compile"]) == 0
    assert {capfd.readouterr().out} == texts
    assert "generating without compiled steps: TypeError: 'NoneType' object is not callable" in caplog.text


def without_compiler():
    raise UnavailableError("none here")


def test_inspect_tells_config_lineage_and_sums(decoder, capfd) -> None:
    assert run(["inspect", decoder, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["config"]["model"]["d_model"] == 16
    assert found["parameters"] == sum(t.numel() for t in load_checkpoint(Path(decoder) / "best.pth").model.values())
    assert found["lineage"]["run"] == "decoder"
    assert run(["inspect", decoder]) == 0
    assert "lineage, step" in capfd.readouterr().out


def test_tokenizer_train_and_show(workshop, capfd) -> None:
    assert run(["tokenizer", "train", "text/a.txt", "--out", "my.model", "--vocab-size", "290", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["path"] == "my.model"
    assert run(["tokenizer", "show", "my.model", "--text", "the 猫", "--file", "text/a.txt", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["lossless"]
    assert found["tokens"][-1]["end"] == len("the 猫".encode())
    assert found["files"][0]["byte_fallback_rate"] == 0
    assert run(["tokenizer", "show", "missing.model"]) == 5
    assert run(["tokenizer", "train", "missing.txt", "--out", "x.model"]) == 4
    assert run(["tokenizer", "train", "text/a.txt", "--out", "x.model", "--character-coverage", "2"]) == 2


def test_config_show_and_schema(workshop, capfd) -> None:
    assert run(["config", "show", "decoder.yaml", "--set", "train.steps=5"]) == 0
    assert "steps: 5" in capfd.readouterr().out
    assert run(["config", "schema", "finetune"]) == 0
    assert "base" in json.loads(capfd.readouterr().out)["properties"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pretrian"], 2, "pretrain"),
        (["pretrain", "--stpes", "3"], 2, "--steps"),
        (["pretrain", "decoder.yaml", "--set", "model.d_modle=3"], 3, "d_model"),
        (["pretrain", "decoder.yaml", "--set", "model"], 2, "="),
        (["pretrain", "decoder.yaml", "--resume", "--overwrite"], 2, "contradict"),
        (["pretrain", "missing.yaml"], 3, "missing.yaml"),
        (["pretrain", "missing.txt"], 4, "missing.txt"),
        (["pretrain", "decoder.yaml", "--device", "cuda"], 3, "cuda"),
        (["pretrain", "decoder.yaml", "--set", "data.sources.0.path=nowhere/*.txt"], 4, "nowhere"),
        (["pretrain", "decoder.yaml", "--set", "tokenizer.path=nowhere.model"], 5, "nowhere.model"),
        (["pretrain", "decoder.yaml", "--runs-path", "decoder.yaml"], 6, "decoder.yaml"),
        (
            ["pretrain", "decoder.yaml", "--set", "model.d_ff=1000000000000", "--set", "model.d_model=1000000"],
            3,
            "d_ff",
        ),
        (["pretrain", "decoder.yaml", "--set", "model.d_ff=2000000000"], 6, "GB"),
        (["generate", "missing.pth", "--prompt", "x"], 5, "missing.pth"),
        (["generate", "decoder.yaml", "--prompt", "x"], 5, "decoder.yaml"),
        (["inspect", "text"], 5, "no model in this folder"),
        (["evaluate", "missing.pth"], 5, "missing.pth"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_every_mistake_is_one_clear_error(workshop, capfd, arguments, code, message) -> None:
    from importlib.util import find_spec

    if "cuda" in arguments and find_spec("torch") and __import__("torch").cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert run(arguments) == code
    captured = capfd.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not list(Path("runs").glob("*/last.pth")) if Path("runs").exists() else True


def test_help_and_version(capfd) -> None:
    assert run(["--help"]) == 0
    assert run(["generate", "-h"]) == 0
    assert run(["--version"]) == 0
    assert txtgen.__version__ in capfd.readouterr().out


@pytest.mark.parametrize(
    "variables", [{"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "20"}, {"LANG": "C", "LC_ALL": "C"}]
)
def test_odd_environments(decoder, variables) -> None:
    command = [
        sys.executable,
        "-m",
        "txtgen",
        "generate",
        decoder,
        "--prompt",
        "das Mädchen 猫",
        "--max-new-tokens",
        "3",
    ]
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    done.stdout.decode("utf-8")


def test_what_is_piped_is_utf8_whatever_the_locale(workshop) -> None:
    Path("named.yaml").write_text("name: das Mädchen 猫\ndata: {sources: [{kind: text, path: text}]}\n", "utf-8")
    command = [sys.executable, "-m", "txtgen", "config", "show", "named.yaml"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "das Mädchen 猫" in done.stdout.decode("utf-8")


def test_ctrl_c_before_the_command_line_is_read(monkeypatch) -> None:
    class Interrupted:
        @property
        def run(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "txtgen.cli", Interrupted())
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "200"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_waiting_threads_leave_the_cores_to_others_unless_told(monkeypatch, given, expected) -> None:
    seen = []
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("txtgen.cli.run", lambda _: seen.append(os.environ.get("GOMP_SPINCOUNT")) or 0)
    with pytest.raises(SystemExit):
        entry.main()
    assert seen == [expected]
