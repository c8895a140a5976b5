"""A session at a terminal: a line is a prompt, which is answered, or a command with a slash in front."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

from txtgen.commands.models import load_for, resolve_model
from txtgen.commands.running.signals import StopRequest
from txtgen.commands.showing.lines import Lines
from txtgen.commands.showing.output import write_result
from txtgen.config.commands import GeneratingConfig
from txtgen.config.decoding import STRATEGIES, DecodingConfig
from txtgen.config.decoding_options import resolve_decoding
from txtgen.config.flags import from_flags
from txtgen.errors import TxtgenError, UsageError
from txtgen.generator import Generator, Prompt


@dataclass(frozen=True, slots=True)
class Command:
    """Something that a session does when it is told to; run is given what follows the name."""

    argument: str
    help: str
    run: Callable[[str], None]


class Talk(Protocol):
    """What a session makes of lines."""

    def commands(self) -> Mapping[str, Command]:
        """Those of its own, by name."""

    def answer(self, line: str) -> None:
        """Answer a line."""


class Quit(Exception):
    """The user has had enough."""


class Replies:
    """A generator that streams replies, and the settings of its next one.

    Args:
        generator: generates.
        options: settings given so far; what the model brings along fills the rest.
        lines: where the user is told of it.
    """

    def __init__(self, generator: Generator, options: Mapping[str, Any], lines: Lines) -> None:
        self.generator, self.options, self.lines = generator, dict(options), lines
        self.decoding = self._resolved(self.options)
        self.count = 0
        """Replies so far, by which samples of one seed differ."""

    def set(self, text: str) -> None:
        """Change a setting, given as key=value; without a value it is left to the model again.

        Raises:
            UsageError: there is no such setting, or not of that value; nothing is changed.
        """
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals):
            raise UsageError("a setting needs a key, = and a value", "/set", "write /set temperature=0.8")
        if value:
            changed = from_flags(GeneratingConfig, {"decoding": self.options}, [f"decoding.{key}={value}"]).decoding
        else:
            changed = {name: kept for name, kept in self.options.items() if name != key}
        strategy = STRATEGIES.get(changed.get("strategy", self._default.strategy))
        left = [name for name in changed if strategy and key == "strategy" and name not in strategy.model_fields]
        changed = {name: kept for name, kept in changed.items() if name not in left}
        self.decoding, self.options = self._resolved(changed), changed
        if left:
            self.lines.note(f"{self.decoding.strategy} knows no {', '.join(left)}: left out")

    def show(self) -> None:
        """Show the settings that are not as usual."""
        shown = {"strategy": self.decoding.strategy, **self.decoding.model_dump(mode="json", exclude_defaults=True)}
        for name, value in shown.items():
            self.lines.note(f"{name}={json.dumps(value)}{'' if name in self.options else '  (the model has it so)'}")

    @classmethod
    def of(cls, config: GeneratingConfig) -> Self:
        """Those of the model that a command was told to use, which is named; errors as for `load`."""
        path, lines = resolve_model(config.model, config.runs_path), Lines()
        generator = load_for(config.model_copy(update={"model": str(path)}), remembers=True)
        lines.note(str(path))
        return cls(generator, config.decoding, lines)

    @property
    def _default(self) -> DecodingConfig:
        return self.generator.loaded.config.generation

    def _resolved(self, options: Mapping[str, Any]) -> DecodingConfig:
        return resolve_decoding(self._default, options)

    def stream(self, prompt: Prompt, **how: Any) -> tuple[str, bool]:
        """Write a reply as it is decided. Returns its text, and whether it was stopped before its end.

        Ctrl-C stops it after the token that is being computed, a second one at once.
        """
        text, tokens, reason = "", 0, None
        began = time.monotonic()
        pieces = self.generator.stream_pieces(prompt, number=self.count, **how, **self.options)
        self.count += 1
        try:
            with _stoppable() as request:
                for piece in pieces:
                    write_result(piece.text, end="")
                    text, tokens, reason = text + piece.text, piece.tokens, piece.finish_reason
                    if request:
                        break
        finally:
            if tokens:
                write_result("")
        seconds = max(time.monotonic() - began, 1e-9)
        ends = {None: "  stopped", "length": "  cut off at its greatest length", "loop": "  ended in a loop"}
        self.lines.note(f"{tokens} tokens  {tokens / seconds:,.0f} tok/s{ends.get(reason, '')}\n")
        return text, reason is None


@contextmanager
def _stoppable() -> Iterator[StopRequest]:
    """Take Ctrl-C as a request to stop, a second one as an interruption."""
    request = StopRequest()
    before = signal.signal(signal.SIGINT, request.receive)
    try:
        with request.deferred():
            yield request
    finally:
        signal.signal(signal.SIGINT, before)


class Session:
    """Reads lines until there are no more, and lets a talk answer them.

    Args:
        replies: with settings to be changed.
        talk: answers.
    """

    def __init__(self, replies: Replies, talk: Talk) -> None:
        self.lines, self.talk = replies.lines, talk
        self.commands = {
            "set": Command("KEY=VALUE", "change a setting; without VALUE it is as the model has it", replies.set),
            "settings": Command("", "show the settings", lambda _: replies.show()),
            **talk.commands(),
            "help": Command("", "show this", lambda _: self.help()),
            "quit": Command("", "end the session; so does Ctrl-D", self._quit),
        }
        self.lines.complete([f"/{name}" for name in self.commands])

    def run(self) -> None:
        """Answer line after line. At a terminal, mistakes are told and the session goes on.

        Raises:
            TxtgenError: a mistake, where nobody is there to make it good.
        """
        self.lines.note("/help shows the commands, Ctrl-C stops a reply, Ctrl-D ends the session")
        while True:
            try:
                line = self.lines.ask()
                if line is None:
                    return
                self._take(line)
            except Quit:
                return
            except KeyboardInterrupt:
                self.lines.note("")
            except TxtgenError as error:
                if not self.lines.interactive:
                    raise
                self.lines.complain(error)

    def _take(self, line: str) -> None:
        if not line.startswith("/") or line.startswith("//"):
            if line.strip():
                self.talk.answer(line.removeprefix("/") if line.startswith("//") else line)
            return
        name, _, argument = line[1:].partition(" ")
        command = self.commands.get(name)
        if command is None:
            told = ", ".join(f"/{known}" for known in self.commands)
            raise UsageError(f"unknown command /{name}", "", f"the commands are {told}; // begins a text with a slash")
        if bool(argument.strip()) and not command.argument:
            raise UsageError(f"/{name} takes nothing more", argument.strip(), f"write /{name}")
        if not argument.strip() and command.argument:
            raise UsageError(f"/{name} needs {command.argument}", "", f"write /{name} {command.argument}")
        command.run(argument.strip())

    def help(self) -> None:
        """Show the commands."""
        usages = {f"/{name} {command.argument}".rstrip(): command.help for name, command in self.commands.items()}
        width = max(map(len, usages))
        for usage, words in usages.items():
            self.lines.note(f"{usage.ljust(width)}  {words}")
        self.lines.note(
            "Ctrl-C stops a reply. A line that ends with \\ goes on in the next. // begins a text with a slash."
        )

    def _quit(self, _: str) -> None:
        raise Quit
