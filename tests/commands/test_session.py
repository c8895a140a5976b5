"""Sessions: lines in, replies out; at a real terminal, and without one."""

import io
import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

import txtgen
from txtgen.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from txtgen.cli import run
from txtgen.commands.prompting import session
from txtgen.commands.showing.lines import Lines
from txtgen.config.chat_formats import TextChatFormat
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.model import AlibiPosition, DecoderConfig
from txtgen.errors import safe_text
from txtgen.model import build_model, init_weights

FORMAT = TextChatFormat(system="{content}!", user="{content}?", assistant="{content}", separator="|")


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory) -> Path:
    """plain.pth: no chat model. chat.pth: one that reads 40 tokens. endless.pth: one that reads any number."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_checkpoint(trained / "runs" / "decoder" / "best.pth").tokenizer
    size = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "vocab_size": len(tokenizer), "init_std": 0.5}
    for name, more, format in [
        ("plain", {"max_length": 40}, None),
        ("chat", {"max_length": 40}, FORMAT),
        ("endless", {"max_length": 40, "position": AlibiPosition()}, FORMAT),
    ]:
        model = build_model(DecoderConfig(**size, **more))
        init_weights(model, 3)
        described = CheckpointConfig(model=model.config, chat=format)
        save_checkpoint(folder / f"{name}.pth", Checkpoint(described, model.state_dict(), tokenizer, None, {}))
    return folder


class Scripted(Lines):
    """A user at a terminal whose lines are known."""

    script: ClassVar[list[str]] = []
    notes: ClassVar[list[str]] = []

    def __init__(self) -> None:
        super().__init__()
        self.interactive = True

    def _line(self, mark: str) -> str | None:
        line = self.script.pop(0) if self.script else None
        if line == "^C":
            raise KeyboardInterrupt
        return line

    def note(self, message: str) -> None:
        self.notes.append(message)

    def complain(self, error) -> None:
        self.notes.append(f"error: {error}")


@pytest.fixture
def talk(monkeypatch, capfd):
    """Runs a session of these lines. Returns what went to stdout, and what was told."""
    monkeypatch.setattr(session, "Lines", Scripted)

    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    def talk(arguments: list[str], lines: list[str]) -> tuple[str, list[str]]:
        capfd.readouterr()
        Scripted.script, Scripted.notes = [*lines], []
        with monkeypatch.context() as patched:
            if arguments[0] == "generate":
                patched.setattr(sys, "stdin", Tty())
                patched.setattr(sys, "stdout", out := Tty())
            assert run(arguments) == 0
            told = capfd.readouterr()
            return (out.getvalue() if arguments[0] == "generate" else told.out), Scripted.notes

    return talk


def pipe(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def replies_to(path: Path, turns: list[str], **options) -> list[str]:
    """What the model says to turns of the user, by whole conversations."""
    model, messages, replies = txtgen.load(path), [], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        (found,) = model.generate([messages], **options)
        replies.append(found.text)
        messages.append({"role": "assistant", "content": found.text})
    return replies


# -- without a terminal


def test_piped_turns_are_answered_as_whole_conversations(models, monkeypatch, capfd) -> None:
    capfd.readouterr()
    pipe(monkeypatch, "the cat\nthe dog\n\n/set max_new_tokens=3\nthe sun\n")
    assert run(["chat", str(models / "endless.pth"), "--max-new-tokens", "4"]) == 0
    written = capfd.readouterr()
    first = replies_to(models / "endless.pth", ["the cat", "the dog"], max_new_tokens=4)
    assert written.out.startswith("".join(f"{text}\n" for text in first))
    assert written.err == ""


def test_a_mistake_in_piped_lines_ends_it(models, monkeypatch, capfd) -> None:
    pipe(monkeypatch, "the cat\n/set temprature=1\nthe dog\n")
    assert run(["chat", str(models / "chat.pth"), "--max-new-tokens", "2"]) == 2
    written = capfd.readouterr()
    assert written.out.count("\n") == 1 + written.out.count("\n\n")
    assert "unknown option temprature" in written.err
    assert "did you mean temperature?" in written.err


def test_a_model_without_a_chat_format_is_told(models, monkeypatch, capfd) -> None:
    assert run(["chat", str(models / "plain.pth")]) == 2
    told = capfd.readouterr().err
    assert "no chat model" in told
    assert "txtgen finetune CHATS.jsonl --base MODEL" in told


def test_a_session_needs_a_terminal(models, monkeypatch, capfd) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Tty())
    assert run(["generate", str(models / "plain.pth")]) == 2
    assert "there is no prompt" in capfd.readouterr().err


# -- scripted


def test_settings_are_those_of_the_config(models, talk) -> None:
    script = (
        "temperature=0.5", "strategy=sample", "temperature=0.5", "top_k=many", "mbr.candidates=4", "mbr=",
        "strategy=greedy", "", "x",
    )  # fmt: skip
    lines = [f"/set {setting}".rstrip() for setting in script]
    arguments = ["generate", str(models / "plain.pth"), "--max-new-tokens", "3"]
    _, notes = talk(
        arguments, [*lines[:5], "/settings", *lines[5:7], "/settings", *lines[7:], "/sett", "/help 3", "/help"]
    )
    assert notes.pop(0) == str(models / "plain.pth")
    assert notes[1].startswith(
        "error: temperature has no meaning for strategy greedy; temperature; use strategy sample"
    )
    assert notes[2].startswith("error: top_k: expected a whole number (at least 0), got 'many'")
    assert notes[3:7] == ['strategy="sample"', "max_new_tokens=3", "temperature=0.5", 'mbr={"candidates": 4}']
    assert notes[7:10] == ["greedy knows no temperature: left out", 'strategy="greedy"', "max_new_tokens=3"]
    assert "error: /set needs KEY=VALUE; write /set KEY=VALUE" in notes
    assert "error: a setting needs a key, = and a value; /set; write /set temperature=0.8" in notes
    assert any(note.startswith("error: unknown command /sett; the commands are /set, ") for note in notes)
    assert "error: /help takes nothing more; 3; write /help" in notes


def test_lines_are_gone_on_from(models, talk) -> None:
    model = txtgen.load(models / "plain.pth")
    out, notes = talk(
        ["generate", str(models / "plain.pth"), "--max-new-tokens", "3"],
        [
            "the cat",
            "^C",
            "  ",
            "//a\\",
            "b",
            "/set num_return=2",
            "/set strategy=beam",
            "/set num_return=2",
            "the dog",
        ],
    )
    expected = [model.generate(prompt, max_new_tokens=3)[0].text for prompt in ("the cat", "/a\nb")]
    expected += [each.text for each in model.generate("the dog", strategy="beam", num_return=2, max_new_tokens=3)]
    assert out == "".join(f"{safe_text(text)}\n" for text in expected)
    figures = re.compile(r"3 tokens  [\d,]+ tok/s  cut off at its greatest length\n")
    assert sum(bool(figures.fullmatch(note)) for note in notes) == 2


def test_samples_differ_and_can_be_repeated(models, talk) -> None:
    arguments = ["generate", str(models / "plain.pth"), "--strategy", "sample", "--max-new-tokens", "8"]
    out, _ = talk(arguments, ["the cat", "the cat"])
    assert len(set(out.split("\n", 1))) == 2
    assert talk(arguments, ["the cat", "the cat"])[0] == out


def test_turns_can_be_taken_back_saved_and_loaded(models, talk, tmp_path) -> None:
    model, file = str(models / "endless.pth"), tmp_path / "talk.jsonl"
    arguments = ["chat", model, "--system", "be kind", "--max-new-tokens", "3"]
    out, notes = talk(
        arguments,
        [
            "/undo", "/save x.jsonl", "the cat", "the dog", f"/save {file}", "/undo", f"/save {file}", "the dog",
            f"/save {file}", "/save x.txt", "/reset", "/undo", f"/load {file}", f"/load {tmp_path}/none.jsonl",
        ],
    )  # fmt: skip
    first, *rest = replies_to_system(model, "be kind", ["the cat", "the dog"], 3)
    assert out == "".join(f"{text}\n" for text in (first, *rest, *rest))
    (saved,) = (json.loads(line) for line in file.read_text().splitlines())
    assert [message["role"] for message in saved["messages"]] == ["system", *["user", "assistant"] * 2]
    assert saved["messages"][-1]["content"] == rest[0]
    assert "taken back: the dog" in notes
    assert [note for note in notes if note.startswith("error")] == [
        "error: there is no turn to take back; /undo; say something first",
        "error: there is no turn to save; /save; say something first",
        "error: x.txt does not end in .jsonl; /save; a saved conversation is a line of JSON",
        "error: there is no turn to take back; /undo; say something first",
        f"error: cannot read the conversation: No such file or directory; {tmp_path}/none.jsonl; check the path",
    ]
    assert f"4 turns loaded: {file}:1" in notes
    out, notes = talk(
        ["chat", model, "--max-new-tokens", "3"], [f"/save {file}", "hi", f"/save {file}", f"/load {file}", "the sun"]
    )
    assert f"error: the file is there already; {file}; choose another name" in notes
    expected = replies_to_system(model, "be kind", ["the cat", "the dog", "the sun"], 3)[-1]
    assert out.endswith(f"{expected}\n")


def replies_to_system(path: str, system: str, turns: list[str], new: int) -> list[str]:
    model, messages, replies = txtgen.load(path), [{"role": "system", "content": system}], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        replies.append(model.generate([messages], max_new_tokens=new)[0].text)
        messages.append({"role": "assistant", "content": replies[-1]})
    return replies


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [("user", "a")],
        [("assistant", "a")],
        [("user", "a"), ("user", "b")],
        [("system", "a")],
        [("dog", "a"), ("cat", "b")],
    ],
)
def test_what_is_no_conversation_cannot_be_loaded(models, talk, tmp_path, messages) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in messages]}))
    _, notes = talk(["chat", str(models / "chat.pth")], [f"/load {file}"])
    assert notes[-1].startswith("error: ")
    assert f"{file}:1" in notes[-1]


def test_what_does_not_fit_is_left_out_from_the_oldest_on(models, talk) -> None:
    """The system and the last turn stay, and every part of a conversation begins with the user."""
    model = txtgen.load(models / "chat.pth")
    turns = ["the cat", "the dog", "the sun", "the sea"] * 3
    out, notes = talk(["chat", str(models / "chat.pth"), "--system", "the", "--max-new-tokens", "5"], turns)
    told = [note for note in notes if note.startswith("the model cannot read it all")]
    assert told
    messages, expected = [], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        kept = list(messages)
        system = {"role": "system", "content": "the"}
        while len(kept) > 1 and model.room([system, *kept]) < 5:
            del kept[:2]
        (found,) = model.generate([[system, *kept]], max_new_tokens=5)
        expected.append(found.text)
        messages.append({"role": "assistant", "content": found.text})
    assert out == "".join(f"{text}\n" for text in expected)
    _, notes = talk(["chat", str(models / "chat.pth")], ["the cat " * 60, "/undo"])
    assert notes[2].startswith("error: there is no room to generate")
    assert notes[3].startswith("error: there is no turn to take back"), "what cannot be answered was never said"


# -- at a real terminal


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        import fcntl
        import termios

        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x28\x00\x64\x00\x00\x00\x00\x00")  # 40 lines of 100
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "txtgen", *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def read_until(self, pattern: str, seconds: float = 120.0) -> str:
        """What is shown up to where it matches a pattern."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"waiting for {pattern!r}: {self.seen!r}"
            try:
                new = os.read(self.master, 4096)
            except OSError:
                new = b""
            assert new, f"ended before {pattern!r}: {self.seen!r}"
            self.seen += new.decode("utf-8", "replace")
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self) -> int:
        """The exit code, once it ends."""
        while True:
            try:
                if not os.read(self.master, 4096):
                    break
            except OSError:
                break
        os.close(self.master)
        return self.process.wait(60)

    def end(self) -> None:
        """Leave no process behind, whatever it is doing."""
        self.process.kill()
        self.process.wait(60)


needs_pty = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")


@needs_pty
def test_a_conversation_at_a_terminal(models) -> None:
    terminal = Terminal(["chat", str(models / "endless.pth"), "--max-new-tokens", "6"])
    try:
        terminal.read_until("Ctrl-D ends the session.*\n(.*> )")
        terminal.type("the cat\n")
        shown = terminal.read_until(r"6 tokens  [\d,]+ tok/s")
        assert "\x1b" not in shown.split("the cat", 1)[1].split("\x1b[2m")[0], "what a model says is escaped"
        terminal.read_until("> ")
        terminal.type("/set max_new_tokens=1000000\n")
        terminal.read_until("> ")
        terminal.type("/set min_new_tokens=1000000\n")
        terminal.read_until("> ")
        terminal.type("the dog\n")
        terminal.read_until("the dog\r\n..")
        time.sleep(0.3)
        terminal.type("\x03")
        terminal.read_until(r"tokens  [\d,]+ tok/s  stopped")
        terminal.read_until("> ")
        terminal.type("\x1b[A")  # the line before, from the history
        terminal.read_until("the dog")
        time.sleep(0.3)  # Python's readline misses a signal that comes between its writing and its waiting for a key
        terminal.type("\x03")
        terminal.read_until("> ")
        terminal.type("/und\t\n")
        terminal.read_until("taken back: the dog")
        terminal.read_until("> ")
        terminal.type("\x04")
        assert terminal.wait() == 0
    finally:
        terminal.end()


@pytest.mark.slow
@needs_pty
def test_a_session_at_a_terminal(models) -> None:
    terminal = Terminal(["generate", str(models / "plain.pth"), "--max-new-tokens", "6"])
    try:
        terminal.read_until("> ")
        terminal.type("the cat\n")
        terminal.read_until(r"6 tokens  [\d,]+ tok/s")
        terminal.read_until("> ")
        terminal.type("/quit\n")
        assert terminal.wait() == 0
    finally:
        terminal.end()
