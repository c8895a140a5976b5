"""`txtgen chat`: a conversation with a chat model, turn by turn."""

import json
from collections.abc import Mapping
from pathlib import Path

from txtgen.commands.prompting.inputs import json_objects, read_lines, required_prompt
from txtgen.commands.prompting.session import Command, Replies, Session
from txtgen.config.commands import ChatConfig
from txtgen.errors import UsageError
from txtgen.files import replace_file
from txtgen.generator import DEFAULT_NEW_TOKENS, Message

Turns = list[Message]


def run(config: ChatConfig) -> None:
    """Talk until the user ends it. Only what the model says goes to stdout.

    Raises:
        UsageError: the model is no chat model, or an option does not fit.
        CheckpointError: the model cannot be read.
    """
    replies = Replies.of(config)
    if replies.generator.loaded.config.chat is None:
        fix = "teach it: txtgen finetune CHATS.jsonl --base MODEL; or go on from text: txtgen generate MODEL"
        raise UsageError("the model is no chat model: its checkpoint has no chat format", config.model or "", fix)
    Session(replies, Conversation(replies, config.system)).run()


class Conversation:
    """What a session makes of lines: turns of the user, each with a reply.

    Args:
        replies: of the model.
        system: what the system says first, if anything.
    """

    def __init__(self, replies: Replies, system: str | None) -> None:
        self.replies, self.lines = replies, replies.lines
        self.system = [] if system is None else [_turn("system", system)]
        self.turns: Turns = []
        """Those of user and model."""
        self._saved: set[Path] = set()

    def commands(self) -> Mapping[str, Command]:
        """What can be done with a conversation."""
        return {
            "undo": Command("", "take back your last turn and its reply", lambda _: self.undo()),
            "reset": Command("", "begin anew; what the system says stays", lambda _: self.reset()),
            "save": Command("FILE.jsonl", "save the conversation", self.save),
            "load": Command("FILE.jsonl", "go on with a saved conversation, the last in the file", self.load),
        }

    def answer(self, line: str) -> None:
        """Let the model answer a turn of the user, which is taken back if it cannot."""
        self.turns.append(_turn("user", line))
        try:
            text, stopped = self.replies.stream(self._that_fits())
        except BaseException:
            self.turns.pop()
            raise
        if text or not stopped:
            self.turns.append(_turn("assistant", text))
        else:
            self.turns.pop()

    def undo(self) -> None:
        """Take back the last turn of the user and what follows it."""
        if not self.turns:
            raise UsageError("there is no turn to take back", "/undo", "say something first")
        start = _starts(self.turns)[-1]
        self.lines.note(f"taken back: {self.turns[start]['content']}")
        del self.turns[start:]

    def reset(self) -> None:
        """Begin anew."""
        self.turns = []
        self.lines.note("a new conversation")

    def save(self, name: str) -> None:
        """Write the conversation to a file that is new, or was written by this session.

        Raises:
            UsageError: there is nothing to save, or a file is in the way.
            ResourceError: it cannot be written.
        """
        path = Path(name)
        if not self.turns:
            raise UsageError("there is no turn to save", "/save", "say something first")
        if path.suffix != ".jsonl":
            raise UsageError(f"{name} does not end in .jsonl", "/save", "a saved conversation is a line of JSON")
        if path.exists() and path.resolve() not in self._saved:
            raise UsageError("the file is there already", name, "choose another name")
        with replace_file(path) as handle:
            handle.write(json.dumps({"messages": [*self.system, *self.turns]}, ensure_ascii=False).encode() + b"\n")
        self._saved.add(path.resolve())
        self.lines.note(f"{len(self.turns)} turns saved: {path}")

    def load(self, name: str) -> None:
        """Go on with the last conversation of a file.

        Raises:
            UsageError: it cannot be read, or holds no conversation that can be gone on with.
        """
        where, messages = "", None
        for where, found in json_objects(read_lines(name, "the conversation"), name):
            messages = required_prompt(found, where)
        if messages is None or isinstance(messages, str):
            raise UsageError("there is no conversation", where or name, 'write {"messages": [...]} on a line')
        system = [message for message in messages[:1] if message["role"] == "system"]
        turns = list(messages[len(system) :])
        roles = [turn["role"] for turn in turns]
        if roles != ["user", "assistant"] * (len(turns) // 2) or not turns:
            told = "a conversation to go on with is a user and an assistant in turns, and ends with the assistant"
            raise UsageError(told, where, "choose another one")
        self.replies.generator.room([*system, *turns])  # whether the model can read it
        self.system, self.turns = system, turns
        self.lines.note(f"{len(turns)} turns loaded: {where}")

    def _that_fits(self) -> Turns:
        """The conversation without its oldest turns, as many as need be for the reply to have room.

        What is left begins with a turn of the user, after what the system says. Room is what may be generated, but no
        more than half of what the model can read.
        """
        generator, decoding = self.replies.generator, self.replies.decoding
        wanted = DEFAULT_NEW_TOKENS if decoding.max_new_tokens is None else decoding.max_new_tokens
        wanted = min(wanted, generator.loaded.model.config.max_length // 2)
        for start in _starts(self.turns):
            kept = [*self.system, *self.turns[start:]]
            room = generator.room(kept)
            if room is None or room >= wanted:
                break
        if start:
            self.lines.note(f"the model cannot read it all: without the oldest {start} of {len(self.turns)} turns")
        return kept


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _starts(turns: Turns) -> list[int]:
    """Where the turns of the user are."""
    return [place for place, turn in enumerate(turns) if turn["role"] == "user"]
