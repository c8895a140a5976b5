"""`txtgen data check`: the report of a run's data before it is begun, and what a run says of odd data itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from txtgen.checkpoint import load_checkpoint, save_checkpoint
from txtgen.cli import run
from txtgen.commands.showing import data_table
from txtgen.tokenizer import load_tokenizer

BAD = '{"messages": [{"role": "user", "content": "nobody answers"}]}\n'


def checked(capfd, *arguments: str) -> tuple[int, dict]:
    code = run(["data", "check", *arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_a_pretraining_run(workshop, capfd) -> None:
    code, found = checked(capfd, "decoder.yaml")
    assert code == 0
    assert found["errors"] == []
    training, validation = found["training"], found["validation"]
    assert training["report"]["records"] + validation["report"]["records"] == 144
    assert training["ending"] == training["examples"]
    assert validation["shared"] > 0  # every line is there four times
    assert any("are in the training text too" in warning for warning in found["warnings"])
    assert not Path("runs").exists()


def test_files_and_a_base_model(workshop, trained, capfd) -> None:
    base = ["--base", str(trained / "runs" / "decoder")]
    code, found = checked(capfd, "chats.jsonl", *base)
    assert code == 0
    (first, *_) = found["training"]["samples"]
    assert first["tokens"][1][0] == "<|user|>"
    assert first["tokens"][-1][0] == "</s>"
    assert first["tokens"][-1][2] is True


def test_a_base_model_gets_the_tokens_that_the_run_would_give_it(workshop, trained, capfd) -> None:
    base = ["chats.jsonl", "--base", str(trained / "runs" / "decoder")]
    _, old = checked(capfd, *base)
    code, new = checked(capfd, *base, "--set", "tokenizer.pieces=[what is a]")
    assert code == 0
    assert any("what" in piece and "is" in piece for piece, *_ in new["training"]["samples"][0]["tokens"])
    assert new["training"]["tokens"] < old["training"]["tokens"]
    # A base without the symbols of conversations gets them.
    symbols = ["--set", "tokenizer.control_symbols=[<|system|>, <|user|>, <|assistant|>]"]
    train = ["tokenizer", "train", "text/a.txt", "--out", "plain.model", "--vocab-size", "290"]
    assert run([*train, "--set", "control_symbols=[]"]) == 0
    plain = replace(
        load_checkpoint(trained / "runs" / "decoder" / "last.pth"), tokenizer=load_tokenizer(Path("plain.model"))
    )
    save_checkpoint(Path("plain.pth"), plain)
    base = ["chats.jsonl", "--base", "plain.pth"]
    assert run(["data", "check", *base]) != 0
    assert "<|user|>" in capfd.readouterr().err
    code, found = checked(capfd, *base, *symbols)
    assert (code, found["errors"]) == (0, [])
    assert found["training"]["samples"][0]["tokens"][1][0] == "<|user|>"
    assert run(["finetune", *base, *symbols, "--steps", "1", "--name", "a"]) == 0


def test_bad_records_are_an_error_of_data(workshop, trained, capfd) -> None:
    with open("chats.jsonl", "a") as file:
        file.write(BAD)
    arguments = ["chats.jsonl", "--base", str(trained / "runs" / "decoder")]
    code, found = checked(capfd, *arguments)
    assert code == 4
    assert "chats.jsonl:49: nothing to learn" in found["errors"][0]
    code, found = checked(capfd, *arguments, "--set", "data.on_bad_record=skip")
    assert (code, found["errors"]) == (0, [])
    assert found["training"]["report"]["bad_records"] == 1
    Path("chats.jsonl").write_text(BAD * 3)
    code, found = checked(capfd, *arguments, "--set", "data.on_bad_record=skip")
    assert code == 4
    assert "there is nothing to learn" in found["errors"][1]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["missing.yaml"], 3, "missing.yaml"),
        (["decoder.yaml", "--set", "data.sources.0.path=missing"], 4, "missing"),
        (["chats.jsonl", "--base", "missing.pth"], 5, "no such model"),
        (["decoder.yaml", "--samples", "-1"], 2, "samples"),
    ],
)
def test_mistakes(workshop, capfd, arguments, code, told) -> None:
    assert run(["data", "check", *arguments]) == code
    assert told in capfd.readouterr().err


def test_for_people_it_is_exact_when_piped_and_escaped_on_a_terminal(workshop, trained, capfd, monkeypatch) -> None:
    turns = [{"role": "user", "content": "\x1b[31m猫\u202e"}, {"role": "assistant", "content": "a\nb"}]
    Path("c.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    arguments = ["data", "check", "c.jsonl", "--base", str(trained / "runs" / "decoder")]
    assert run(arguments) == 0
    out = capfd.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("row: ")]
    assert line.startswith("row: <s> <|user|> ")
    assert line.count("[ ") == 1
    assert line.endswith("</s> ]")
    assert "<0x1B>" in line
    assert "ending with the end" in out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    data_table._tokens("row", [("\x1b[31m\u202e", False), ("\n", True)])
    shown = capfd.readouterr().out
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown
    assert "\\u202e" in shown


def test_a_run_tells_of_odd_conversations_and_keeps_it_in_its_report(workshop, trained, capfd) -> None:
    with open("chats.jsonl", "a") as file:
        turns = [("assistant", "hello"), ("user", "hi"), ("assistant", "")]
        messages = [{"role": role, "content": text} for role, text in turns]
        file.write((json.dumps({"messages": messages}) + "\n") * 9)
    arguments = [
        "finetune",
        "chats.jsonl",
        "--base",
        str(trained / "runs" / "decoder"),
        "--steps",
        "3",
        "--name",
        "odd",
    ]
    assert run(arguments) == 0
    told = capfd.readouterr().err
    assert "warning: odd conversations: the assistant speaks first, first at chats.jsonl:" in told
    assert "records read: an empty turn of the assistant, such as chats.jsonl:" in told
    reading = json.loads(Path("runs/odd/run.json").read_text())["reading"]
    assert set(reading["oddities"]) == {"the assistant speaks first", "an empty turn of the assistant"}
    assert "the assistant speaks first" in Path("runs/odd/report.html").read_text()
