"""Texts as tokens to be scored, and what their scores say."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from txtgen.config.decoding import GreedyConfig
from txtgen.errors import DataError, UsageError
from txtgen.generator.prompts import PromptReader
from txtgen.generator.types import EncodedPrompt, Prompt, Score
from txtgen.generator.writing import begins
from txtgen.tokenizer import Tokenizer

UNLIMITED = GreedyConfig(max_length=2**31 - 1)
"""Settings by which as much may follow a prompt as the model can read."""


class Target(NamedTuple):
    """A text to be scored, its tokens, and the prompt before it, whose limit is their number."""

    text: str
    token_ids: tuple[int, ...]
    prompt: EncodedPrompt


class TargetReader:
    """Reads texts to be scored as the model would write them.

    Args:
        reader: of prompts.
        tokenizer: of what is generated.
        spell: the tokens of a text that goes on from another, without a space of the tokenizer's own.
    """

    def __init__(self, reader: PromptReader, tokenizer: Tokenizer, spell: Callable[[str], Sequence[int]]) -> None:
        self._reader, self._tokenizer, self._spell = reader, tokenizer, spell

    def read(
        self, targets: Sequence[str], prompts: Sequence[Prompt] | None, *, raw: bool, special: bool, end: bool
    ) -> list[Target]:
        """The texts, each after its prompt.

        Raises:
            UsageError: a prompt or a text that cannot be used.
        """
        if prompts is None and self._reader.reads_source:
            raise UsageError(
                "there is no source", "prompts", "an encoder-decoder scores targets of sources: give prompts"
            )
        if prompts is not None and len(prompts) != len(targets):
            told = f"{len(prompts)} prompts and {len(targets)} texts"
            raise UsageError(told, "prompts", "give one prompt for every text, one for all, or none")
        numbered: Mapping[int, Prompt] = dict(enumerate(prompts or [""] * len(targets)))
        encoded = self._reader.encode_all(numbered, raw or prompts is None, special, None, UNLIMITED)
        return [self._target(text, prompt, end) for text, prompt in zip(targets, encoded, strict=True)]

    def _target(self, text: str, prompt: EncodedPrompt, end: bool) -> Target:
        where = f"text {prompt.number + 1}"
        framing, source = self._reader.framing, self._reader.reads_source
        try:
            ids = self._ids(text, begins(self._tokenizer, self._reader.context(prompt)))
        except DataError as error:
            raise UsageError(error.what, f"{where}, {error.where}", error.fix) from error
        token_ids = (*(framing.prefix if source else ()), *ids, *(framing.end[:1] if end else ()))
        if not token_ids:
            raise UsageError("an empty text without its end has no tokens to score", where, "leave it out")
        if len(token_ids) > prompt.limit:
            raise UsageError(
                f"the text has {len(token_ids)} tokens, and {prompt.limit} are what the model can read there",
                where,
                "shorten it; txtgen evaluate measures texts of any length",
            )
        return Target(text, token_ids, replace(prompt, limit=len(token_ids)))

    def _ids(self, text: str, alone: bool) -> Sequence[int]:
        """The tokens of a text that stands alone, or of one that goes on from another."""
        if alone or not self._tokenizer.leading_space:
            return self._tokenizer.encode(text)
        return self._spell(text)


def score_of(target: Target, logprobs: Sequence[float], tokenizer: Tokenizer) -> Score:
    """What the log-probabilities of a text's tokens say of it."""
    total = math.fsum(logprobs)
    mean = -total / len(logprobs)
    return Score(
        index=target.prompt.number,
        prompt=target.prompt.text,
        text=target.text,
        prompt_token_ids=target.prompt.token_ids,
        token_ids=target.token_ids,
        tokens=tuple(tokenizer.pieces(target.token_ids)),
        token_logprobs=tuple(logprobs),
        logprob=total,
        perplexity=math.exp(mean) if mean < 700.0 else math.inf,
    )
