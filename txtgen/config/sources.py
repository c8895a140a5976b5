"""Where text comes from: files of texts, pairs, conversations and preferences."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from txtgen.config.base import Config, NonNegative

Paths = Annotated[tuple[str, ...], Field(min_length=1)]
"""Files, folders or glob patterns (`**` goes down folders); `.gz` files are read as what they hold."""

Weight = Annotated[float, Field(gt=0.0)]
"""Share of the training tokens, relative to the other sources; None: as the sizes of the sources are."""


class TextSource(Config):
    """Plain text."""

    kind: Literal["text"] = "text"
    path: str | Paths
    documents: Literal["file", "line", "paragraph", "continuous"] = "file"
    """What one document is: a file, a line, a block between blank lines, or all of it without any border."""
    weight: Weight | None = None


class JsonlSource(Config):
    """One JSON object a line, its text in one field."""

    kind: Literal["jsonl"] = "jsonl"
    path: str | Paths
    text_field: str = "text"
    weight: Weight | None = None


class ParallelSource(Config):
    """Two files, line i of the one belonging to line i of the other."""

    kind: Literal["parallel"] = "parallel"
    source_path: str
    target_path: str
    weight: Weight | None = None


class TsvSource(Config):
    """Source and target in two tab-separated columns, counted from 0."""

    kind: Literal["tsv"] = "tsv"
    path: str | Paths
    source_column: NonNegative = 0
    target_column: NonNegative = 1
    weight: Weight | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """The columns must differ."""
        if self.source_column == self.target_column:
            yield "target_column", f"is the same as source_column ({self.source_column})"


class JsonlPairsSource(Config):
    """One JSON object a line, with a source and a target. Several source fields are joined by a newline."""

    kind: Literal["jsonl_pairs"] = "jsonl_pairs"
    path: str | Paths
    source_field: str | Paths = "source"
    target_field: str = "target"
    weight: Weight | None = None


class ChatSource(Config):
    """One JSON object a line, its `messages` a list of `role` and `content`."""

    kind: Literal["chat"] = "chat"
    path: str | Paths
    messages_field: str = "messages"
    weight: Weight | None = None


class PreferenceSource(Config):
    """One JSON object a line: a prompt, the answer that is preferred, and one that is not.

    The prompt is a text, or a conversation that the answers go on with: a list of `role` and `content`, in the prompt's
    own field or in that of the messages.
    """

    kind: Literal["preference"] = "preference"
    path: str | Paths
    prompt_field: str = "prompt"
    messages_field: str = "messages"
    """Looked for where there is no prompt."""
    chosen_field: str = "chosen"
    rejected_field: str = "rejected"
    weight: Weight | None = None


SourceConfig = Annotated[
    TextSource | JsonlSource | ParallelSource | TsvSource | JsonlPairsSource | ChatSource | PreferenceSource,
    Field(discriminator="kind"),
]
