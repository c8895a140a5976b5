"""A conversation as the runs of text and the tokens that a model reads.

Every run of text is tokenised by itself. The text that opens a turn is a run of its own, so the tokens of a
history that is open for a reply are exactly the first tokens of that history with the reply in it: what the
model is asked is what it was taught.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, assert_never

from txtgen.config.chat_formats import ChatFormat, TemplateChatFormat, TextChatFormat, TokensChatFormat
from txtgen.config.tokenizer import CHAT_ROLES
from txtgen.errors import ConfigError, DataError

if TYPE_CHECKING:
    from txtgen.sandbox import ChatTemplate

_CONTENT = "{content}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text, or one token by name: "bos", "eos" or a control symbol such as "<|user|>".

    role: whose turn it belongs to. scored: whether the model is to learn to write it. special: whether special
    tokens that the text spells count as such; begun: whether the text goes on from another in the same line.
    """

    text: str = ""
    token: str = ""
    role: str = ""
    scored: bool = False
    special: bool = False
    begun: bool = False


class SpecialIds(Protocol):
    """The ids that "bos" and "eos" stand for."""

    @property
    def bos_id(self) -> int:
        """Beginning."""

    @property
    def eos_id(self) -> int:
        """End."""


class ChatTokenizer(Protocol):
    """As much of a tokenizer as conversations need."""

    @property
    def special(self) -> SpecialIds:
        """The ids of beginning and end."""

    @property
    def control_ids(self) -> Mapping[str, int]:
        """Control symbol -> id."""

    @property
    def leading_space(self) -> bool:
        """Whether `encode` puts a space before every text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, never a special or control id."""

    def encode_with_special(self, text: str) -> list[int]:
        """The ids of a text in which special and control tokens count as such."""

    def special_places(self, text: str) -> Sequence[int]:
        """Where the spellings begin that `encode_with_special` takes for tokens, overlapping ones too."""


def _no_places(_text: str) -> Sequence[int]:
    return ()


def render(
    messages: Sequence[tuple[str, str]],
    format: ChatFormat,
    scored_roles: Collection[str] = ("assistant",),
    reply: bool = False,
    special_places: Callable[[str], Sequence[int]] = _no_places,
) -> list[Piece]:
    """The pieces of a conversation of (role, content) turns, in order and without "bos".

    Of a scored role, the content and all that ends the turn are scored; what opens the turn never is. `reply`
    opens a turn of the assistant at the end, for the model to fill.

    tokens format: every turn is its role's token, the content, "eos". text format: every turn is its
    template, the content put in as it is; "eos" ends the assistant's turns, and the separator stands between
    one of them and the next turn. template format: as the template writes it, "bos" too; special tokens that a
    content spells, at its `special_places`, stay text. What is scored is what the template adds for a turn of the
    assistant to the turns before it, open for a reply; with `reply` nothing is.

    Raises:
        DataError: there is no message, or one of an unknown role; the template refuses the conversation.
        ConfigError: the template does not write turn after turn, so that none can be taught.
        CheckpointError: the template cannot be used.
    """
    if not messages:
        raise DataError("a conversation has no messages", "messages", "give at least one turn")
    for number, (role, _) in enumerate(messages, start=1):
        if role not in CHAT_ROLES:
            raise DataError(f"unknown role {role!r}", f"message {number}", f"use one of {', '.join(CHAT_ROLES)}")
    match format:
        case TokensChatFormat():
            pieces = _token_pieces(messages, scored_roles, reply)
        case TextChatFormat():
            pieces = _text_pieces(messages, format, scored_roles, reply)
        case TemplateChatFormat():
            pieces = _template_pieces(messages, format, () if reply else scored_roles, reply, special_places)
        case _:
            assert_never(format)
    return [piece for piece in pieces if piece.text or piece.token]


def _token_pieces(messages: Sequence[tuple[str, str]], scored_roles: Collection[str], reply: bool) -> Iterator[Piece]:
    for role, content in messages:
        scored = role in scored_roles
        yield Piece(token=f"<|{role}|>", role=role)
        yield Piece(text=content, role=role, scored=scored)
        yield Piece(token="eos", role=role, scored=scored)
    if reply:
        yield Piece(token="<|assistant|>", role="assistant")


def _text_pieces(
    messages: Sequence[tuple[str, str]], format: TextChatFormat, scored_roles: Collection[str], reply: bool
) -> Iterator[Piece]:
    templates = {"system": format.system, "user": format.user, "assistant": format.assistant}
    previous = ""
    for role, content in messages:
        scored = role in scored_roles
        opening, _, closing = templates[role].partition(_CONTENT)
        if previous == "assistant":
            yield Piece(text=format.separator, role=role)
        yield Piece(text=opening, role=role)
        yield Piece(text=content + closing, role=role, scored=scored)
        if role == "assistant":
            yield Piece(token="eos", role=role, scored=scored)
        previous = role
    if reply:
        if previous == "assistant":
            yield Piece(text=format.separator, role="assistant")
        yield Piece(text=format.assistant.partition(_CONTENT)[0], role="assistant")


def _template_pieces(
    messages: Sequence[tuple[str, str]],
    format: TemplateChatFormat,
    scored_roles: Collection[str],
    reply: bool,
    special_places: Callable[[str], Sequence[int]],
) -> Iterator[Piece]:
    """The first character of whatever a content spells is a piece of its own, in which no special token counts."""
    written = [format.template, *_spellings(format).values(), *(content for _, content in messages)]
    mark = _unused_character({*"".join(written)})
    turns = [(role, _marked(content, special_places(content), mark)) for role, content in messages]
    begun = False
    for text, scored in _spans(turns, format, scored_roles, reply):
        role = "assistant" if scored else ""
        for part in re.split(f"({mark}.)", text, flags=re.DOTALL):
            if part:
                alone = part.startswith(mark)
                yield Piece(part.removeprefix(mark), "", role, scored, special=not alone, begun=begun)
                begun = True


def _spans(
    turns: Sequence[tuple[str, str]], format: TemplateChatFormat, scored_roles: Collection[str], reply: bool
) -> Iterator[tuple[str, bool]]:
    """The rendered conversation in parts, and whether each is scored."""
    whole, done = _rendered(turns, format, reply), 0
    for number, (role, _) in enumerate(turns):
        if role not in scored_roles:
            continue
        if role != "assistant" or not number:
            told = f"a first turn of the {role}" if role == "assistant" else f"a turn of the role {role}"
            raise DataError(
                f"{told} cannot be learnt with a chat template",
                f"message {number + 1}",
                "begin with the user, and score the assistant only",
            )
        opened = _rendered(turns[:number], format, reply=True)
        closed = _rendered(turns[: number + 1], format, reply=False) if number < len(turns) - 1 else whole
        if not (closed.startswith(opened) and whole.startswith(closed) and len(opened) >= done):
            raise ConfigError(
                f"the chat template cannot be taught turn by turn: it writes message {number + 1} or those before it "
                "in another way once more is said",
                "data.objective.format",
                "set its kind to text, or let every conversation end after its first reply",
            )
        yield whole[done : len(opened)], False
        yield whole[len(opened) : len(closed)], True
        done = len(closed)
    yield whole[done:], False


def _rendered(turns: Sequence[tuple[str, str]], format: TemplateChatFormat, reply: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return _compiled(format.template, format.today).render(messages, reply, _spellings(format))


def _spellings(format: TemplateChatFormat) -> dict[str, str]:
    """The special tokens that templates ask for by name."""
    names = {"bos_token": format.bos_token, "eos_token": format.eos_token}
    names |= {"pad_token": format.pad_token, "unk_token": format.unk_token}
    return {name: spelling for name, spelling in names.items() if spelling is not None}


@lru_cache(maxsize=8)
def _compiled(template: str, today: str) -> "ChatTemplate":
    from txtgen.sandbox import ChatTemplate  # with jinja2, which few models need

    return ChatTemplate(template, date.fromisoformat(today))


def _unused_character(used: Collection[str]) -> str:
    """A private character that stands for nothing in a conversation."""
    found = next((chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used), "")
    if not found:
        raise DataError("the conversation holds every private character of Unicode", "messages", "remove them")
    return found


def _marked(content: str, places: Sequence[int], mark: str) -> str:
    """The content with a mark at each of the places."""
    return mark.join(content[start:end] for start, end in pairwise([0, *places, len(content)]))


def encode_chat(
    messages: Sequence[tuple[str, str]],
    format: ChatFormat,
    tokenizer: ChatTokenizer,
    scored_roles: Collection[str] = ("assistant",),
    reply: bool = False,
) -> tuple[list[int], list[bool]]:
    """The token ids of a conversation, and for each id whether it is scored: `render` and `encode_pieces` in one.

    Unless `format.complete`, what a model expects before a text is still to be put before them.

    Raises:
        ConfigError, DataError, CheckpointError: as for those two.
    """
    return encode_pieces(render(messages, format, scored_roles, reply, tokenizer.special_places), tokenizer)


def encode_pieces(pieces: Sequence[Piece], tokenizer: ChatTokenizer) -> tuple[list[int], list[bool]]:
    """The token ids of pieces, and for each id whether it is scored.

    Raises:
        ConfigError: the tokenizer lacks a control symbol that the format needs.
        DataError: a text that is not valid Unicode.
    """
    ids: list[int] = []
    scored: list[bool] = []
    for piece in pieces:
        added = [_token_id(piece.token, tokenizer)] if piece.token else _text_ids(piece, tokenizer)
        ids += added
        scored += [piece.scored] * len(added)
    return ids, scored


def _text_ids(piece: Piece, tokenizer: ChatTokenizer) -> list[int]:
    encode = tokenizer.encode_with_special if piece.special else tokenizer.encode
    if not (piece.begun and tokenizer.leading_space):
        return encode(piece.text)
    # The space belongs before the first text of a line only: here a newline takes it, and both go.
    newline = encode("\n")
    ids = encode("\n" + piece.text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(piece.text)


def _token_id(token: str, tokenizer: ChatTokenizer) -> int:
    if token == "bos":
        return tokenizer.special.bos_id
    if token == "eos":
        return tokenizer.special.eos_id
    if token not in tokenizer.control_ids:
        raise ConfigError(
            f"the tokenizer has no token {token}",
            "data.objective.format.kind",
            "set it to text, or use a tokenizer with this control symbol",
        )
    return tokenizer.control_ids[token]
