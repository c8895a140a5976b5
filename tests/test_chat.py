"""Conversations as pieces and tokens: asked as it was taught, and no text forges a role."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txtgen.chat import Piece, encode_pieces, render
from txtgen.config.chat_formats import ChatFormat, TextChatFormat, TokensChatFormat
from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import ConfigError, DataError
from txtgen.tokenizer import SentencePieceTokenizer, train_sentencepiece

TOKENS, TEXT = TokensChatFormat(), TextChatFormat()
TAGS = TextChatFormat(system="[{content}]", user="<q>{content}</q>", assistant="<a>{content}</a>", separator="\n--\n")
FORMATS = [TOKENS, TEXT, TAGS]
CONTENTS = st.text(max_size=12) | st.sampled_from(["<|user|>", "{content}", "</s>", "User: hi\n", "", " ", "\u2581"])
HISTORIES = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENTS), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    text = "User: hello there\nAssistant: Hello, how can I help?\n" * 9
    return train_sentencepiece(SentencePieceConfig(vocab_size=340), [text])[0]


@dataclass
class Letters:
    """A tokenizer of one id per character, without control symbols."""

    @dataclass
    class Ends:
        bos_id: int = 1
        eos_id: int = 2

    special: Ends = field(default_factory=Ends)
    control_ids: dict[str, int] = field(default_factory=dict)
    leading_space: bool = False

    def encode(self, text: str) -> list[int]:
        return [ord(character) + 10 for character in text]

    def encode_with_special(self, text: str) -> list[int]:
        return self.encode(text)

    def special_places(self, text: str) -> list[int]:
        return []


def test_tokens_format() -> None:
    pieces = render([("system", "S"), ("user", "Q"), ("assistant", "A")], TOKENS)
    assert pieces == [
        Piece(token="<|system|>", role="system"),
        Piece(text="S", role="system"),
        Piece(token="eos", role="system"),
        Piece(token="<|user|>", role="user"),
        Piece(text="Q", role="user"),
        Piece(token="eos", role="user"),
        Piece(token="<|assistant|>", role="assistant"),
        Piece(text="A", role="assistant", scored=True),
        Piece(token="eos", role="assistant", scored=True),
    ]


def test_text_format() -> None:
    turns = [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R")]
    pieces = render(turns, TEXT, reply=True)
    assert "".join(piece.text or f"<{piece.token}>" for piece in pieces) == (
        "S\n\nUser: Q\nAssistant: A<eos>\nUser: R\nAssistant: "
    )
    assert [piece.text or piece.token for piece in pieces if piece.scored] == ["A", "eos"]


def test_what_closes_a_turn_is_learnt_with_it() -> None:
    pieces = render([("user", "Q"), ("assistant", "A")], TAGS, scored_roles=("user", "assistant"))
    assert [piece.text or piece.token for piece in pieces if piece.scored] == ["Q</q>", "A</a>", "eos"]
    assert [piece.text for piece in pieces if not piece.scored] == ["<q>", "<a>"]


@pytest.mark.parametrize("format", FORMATS)
@given(history=HISTORIES, answer=CONTENTS, scored=st.sets(st.sampled_from(["user", "assistant"])))
def test_an_open_reply_begins_the_finished_one(
    tokenizer: SentencePieceTokenizer,
    format: ChatFormat,
    history: list[tuple[str, str]],
    answer: str,
    scored: set[str],
) -> None:
    asked, flags = encode_pieces(render(history, format, reply=True), tokenizer)
    taught, _ = encode_pieces(render([*history, ("assistant", answer)], format, scored), tokenizer)
    assert taught[: len(asked)] == asked
    assert len(flags) == len(asked)
    before, _ = encode_pieces(render(history, format), tokenizer)
    assert asked[: len(before)] == before
    rest = taught[len(asked) :]
    closing = "</a>" if format is TAGS else ""
    assert rest == [*tokenizer.encode(answer + closing), tokenizer.special.eos_id]


@pytest.mark.parametrize("format", FORMATS)
@given(history=HISTORIES)
def test_what_is_scored_changes_no_token(
    tokenizer: SentencePieceTokenizer, format: ChatFormat, history: list[tuple[str, str]]
) -> None:
    none, flags_of_none = encode_pieces(render(history, format, scored_roles=()), tokenizer)
    both, flags_of_both = encode_pieces(render(history, format, scored_roles=("user", "assistant")), tokenizer)
    assert none == both
    assert not any(flags_of_none)
    assert len(flags_of_both) == len(both)


@given(contents=st.lists(CONTENTS, min_size=1, max_size=4))
def test_no_content_forges_a_role(tokenizer: SentencePieceTokenizer, contents: list[str]) -> None:
    ids, _ = encode_pieces(render([("user", content) for content in contents], TOKENS, reply=True), tokenizer)
    controls = [token_id for token_id in ids if token_id in tokenizer.control_ids.values()]
    user, assistant = tokenizer.control_ids["<|user|>"], tokenizer.control_ids["<|assistant|>"]
    assert controls == [user] * len(contents) + [assistant]
    assert ids.count(tokenizer.special.eos_id) == len(contents)
    assert tokenizer.decode(ids) == "".join(contents)


def test_content_is_never_read_as_a_template() -> None:
    pieces = render([("user", "{content} {0} {x!r} %s $y")], TEXT)
    assert "".join(piece.text for piece in pieces) == "User: {content} {0} {x!r} %s $y\n"


def test_flags_go_with_the_tokens() -> None:
    pieces = [
        Piece(token="bos"),
        Piece(text="ab"),
        Piece(text="c", scored=True),
        Piece(token="eos", scored=True),
    ]
    assert encode_pieces(pieces, Letters()) == ([1, 107, 108, 109, 2], [False, False, False, True, True])


def test_a_tokenizer_without_role_tokens_needs_the_text_format() -> None:
    turns = [("user", "hi")]
    with pytest.raises(ConfigError, match=r"<\|user\|>.*set it to text"):
        encode_pieces(render(turns, TOKENS), Letters())
    ids, _ = encode_pieces(render(turns, TEXT, reply=True), Letters())
    assert "".join(chr(token_id - 10) for token_id in ids) == "User: hi\nAssistant: "


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("reply", [False, True])
def test_conversations_that_are_none(format: ChatFormat, reply: bool) -> None:
    with pytest.raises(DataError, match="no messages"):
        render([], format, reply=reply)
    with pytest.raises(DataError, match="unknown role 'human'; message 2"):
        render([("user", "a"), ("human", "b")], format, reply=reply)
