"""How a conversation is written: by role tokens, in plain text, or by a template."""

from collections.abc import Iterator
from datetime import date
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from txtgen.config.base import Config
from txtgen.config.tokenizer import CHAT_ROLES


class TokensChatFormat(Config):
    """Every turn is a role token, the text, and the end token: `<|user|> text </s>`. No text can forge a role."""

    # Whether the format itself writes what a model expects before a conversation, so that nothing may be put there.
    complete: ClassVar[bool] = False

    kind: Literal["tokens"] = "tokens"


class TextChatFormat(Config):
    """Roles written as plain text, for tokenizers without role tokens. `{content}` stands for the turn's text."""

    complete: ClassVar[bool] = False

    kind: Literal["text"] = "text"
    system: str = "{content}\n\n"
    user: str = "User: {content}\n"
    assistant: str = "Assistant: {content}"
    separator: str = "\n"
    """Stands between an assistant turn (after its end token) and the next turn."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Each turn must say where its content goes."""
        for role in CHAT_ROLES:
            if getattr(self, role).count("{content}") != 1:
                yield role, "must hold {content} exactly once"


SpecialSpelling = Annotated[str, Field(min_length=1, max_length=1_000)]


class TemplateChatFormat(Config):
    """The Jinja template of a model from elsewhere, which writes roles, beginning and end by itself.

    The special tokens that the template spells count as such; those that a turn spells stay text. Only turns of the
    assistant can be learnt.
    """

    complete: ClassVar[bool] = True

    kind: Literal["template"] = "template"
    template: Annotated[str, Field(min_length=1, max_length=100_000)]
    bos_token: SpecialSpelling | None = None
    """How the template gets the token spelled; None: it is not defined there."""
    eos_token: SpecialSpelling | None = None
    pad_token: SpecialSpelling | None = None
    unk_token: SpecialSpelling | None = None
    today: str = "2024-07-26"
    """The date that a template is told, always the same, so that a conversation always gives the same tokens. This
    one is what Llama's own templates fall back to."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """The date must be one."""
        try:
            date.fromisoformat(self.today)
        except ValueError:
            yield "today", f"{self.today!r} is no date like 2024-07-26"


ChatFormat = Annotated[TokensChatFormat | TextChatFormat | TemplateChatFormat, Field(discriminator="kind")]
