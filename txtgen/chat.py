"""A conversation as the runs of text and the tokens that a model reads.

Every run of text is tokenised by itself. The text that opens a turn is a run of its own, so the tokens of a
history that is open for a reply are exactly the first tokens of that history with the reply in it: what the
model is asked is what it was taught.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

from txtgen.config.data import ChatFormat, TextChatFormat, TokensChatFormat
from txtgen.config.tokenizer import CHAT_ROLES
from txtgen.errors import ConfigError, DataError

_CONTENT = "{content}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text, or one token by name: "bos", "eos" or a control symbol such as "<|user|>".

    role: whose turn it belongs to. scored: whether the model is to learn to write it.
    """

    text: str = ""
    token: str = ""
    role: str = ""
    scored: bool = False


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

    def encode(self, text: str) -> list[int]:
        """The ids of a text, never a special or control id."""


def render(
    messages: Sequence[tuple[str, str]],
    format: ChatFormat,
    scored_roles: Collection[str] = ("assistant",),
    reply: bool = False,
) -> list[Piece]:
    """The pieces of a conversation of (role, content) turns, in order and without "bos".

    Of a scored role, the content and all that ends the turn are scored; what opens the turn never is. `reply`
    opens a turn of the assistant at the end, for the model to fill.

    tokens format: every turn is its role's token, the content, "eos". text format: every turn is its
    template, the content put in as it is; "eos" ends the assistant's turns, and the separator stands between
    one of them and the next turn.

    Raises:
        DataError: there is no message, or one of an unknown role.
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


def encode_pieces(pieces: Sequence[Piece], tokenizer: ChatTokenizer) -> tuple[list[int], list[bool]]:
    """The token ids of pieces, and for each id whether it is scored.

    Raises:
        ConfigError: the tokenizer lacks a control symbol that the format needs.
        DataError: a text that is not valid Unicode.
    """
    ids: list[int] = []
    scored: list[bool] = []
    for piece in pieces:
        added = [_token_id(piece.token, tokenizer)] if piece.token else tokenizer.encode(piece.text)
        ids += added
        scored += [piece.scored] * len(added)
    return ids, scored


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
