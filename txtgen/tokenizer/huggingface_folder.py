"""The tokenizer of a Hugging Face folder, by one door."""

from dataclasses import dataclass
from pathlib import Path

from txtgen.tokenizer.types import Tokenizer


@dataclass(frozen=True, slots=True)
class ImportedTokenizer:
    """A tokenizer, and how its family uses it.

    prefix, suffix: the ids that the family puts before and after a text. chat_template: a Jinja template that
    turns a conversation into text for `encode_with_special`, or None.
    """

    tokenizer: Tokenizer
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    chat_template: str | None = None


def tokenizer_from_hf_folder(folder: Path, *, target: bool = False) -> ImportedTokenizer:
    """The tokenizer of a Hugging Face folder; with `target`, the one of the target texts where there are two.

    Raises:
        CheckpointError: there is none, or it is damaged or of a kind that is not known.
    """
    raise NotImplementedError
