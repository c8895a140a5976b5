"""Settings of generation that are more than a number or a word: what they hold, and how they may be written."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from txtgen.config.base import Config, Count, Expected, NonNegative


def _as_word(value: Any) -> Any:
    """The words true and false for the values, which YAML makes of them."""
    return str(value).lower() if isinstance(value, bool) else value


def _as_tuple(value: Any) -> Any:
    """Lists, and lists in them, as tuples; a single text or whole number as a tuple of itself."""
    if isinstance(value, list | tuple):
        return tuple(_as_tuple(item) if isinstance(item, list) else item for item in value)
    return (value,) if isinstance(value, str | int) else value


def _list_or_one(item: Any) -> BeforeValidator:
    """Takes one item for a list of it."""
    return BeforeValidator(_as_tuple, json_schema_input_type=tuple[item, ...] | item)


def _as_json(value: Any) -> Any:
    """A mapping as JSON text."""
    return json.dumps(value) if isinstance(value, Mapping) else value


def _json_object(text: str) -> str:
    """The text of a JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return text


Word = Literal["true", "false", "never"]

EarlyStopping = Annotated[Word, BeforeValidator(_as_word, json_schema_input_type=Word | bool)]

TokenIds = Annotated[tuple[NonNegative, ...], _list_or_one(NonNegative)]

Text = Annotated[str, Field(min_length=1)]

Texts = Annotated[tuple[Text, ...], _list_or_one(Text)]

TokenRuns = Annotated[tuple[Annotated[tuple[NonNegative, ...], Field(min_length=1)], ...], BeforeValidator(_as_tuple)]

JsonText = Annotated[
    str,
    BeforeValidator(_as_json, json_schema_input_type=str | dict[str, Any]),
    AfterValidator(_json_object),
    Expected("a JSON object"),
]

SamplerName = Literal[
    "temperature", "top_n_sigma", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "xtc"
]

SAMPLER_ORDER: tuple[SamplerName, ...] = get_args(SamplerName)
"""That of Hugging Face `generate`; what it does not have stands where llama.cpp has it, beside the cuts."""

Samplers = Annotated[tuple[SamplerName, ...], _list_or_one(SamplerName)]


class SequenceBias(Config):
    """A bias for tokens in a row: the last of them gets it wherever the others stand before.

    `text` stands for its tokens at the beginning of a text, and for those after a space.
    """

    text: Annotated[str, Field(min_length=1)] | None = None
    token_ids: TokenIds = ()
    bias: Annotated[float, Field(ge=-1e6, le=1e6)]

    def problems(self) -> Iterator[tuple[str, str]]:
        """One of the two is biased."""
        if (self.text is None) == (not self.token_ids):
            yield "token_ids", "either text or token_ids must be given, and not both"


SequenceBiases = Annotated[tuple[SequenceBias, ...], BeforeValidator(_as_tuple)]


class LengthDecay(Config):
    """Makes the end ever likelier: from `start` generated tokens on, by `factor` to the power of the tokens since."""

    start: NonNegative
    factor: Annotated[float, Field(ge=0.01, le=100.0)]


class DryPenalty(Config):
    """Makes it unlikely to go on with a repetition: "don't repeat yourself".

    Where the last `length` tokens stood before, the token that followed there loses
    multiplier * base ** (length - allowed_length), if the length is at least the allowed one. No match goes across a
    breaker or an end token, and neither of them is ever penalised. The prompt counts.
    Source: p-e-w 2024, "DRY: a modern repetition penalty", in text-generation-webui.
    """

    multiplier: Annotated[float, Field(gt=0.0, le=1e4)]
    base: Annotated[float, Field(ge=1.0, le=100.0)] = 1.75
    allowed_length: Count = 2
    breakers: Texts = ("\n", ":", '"', "*")
    """Texts: every token that holds one breaks, and so do its tokens at the beginning or after a space."""
    breaker_ids: TokenRuns = ()


class Xtc(Config):
    """Excludes top choices, with a probability: all tokens of at least `threshold` but the least likely of them.

    Source: p-e-w 2024, "Exclude Top Choices", in text-generation-webui.
    """

    probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    threshold: Annotated[float, Field(gt=0.0, le=0.5)] = 0.1


class LoopStop(Config):
    """Ends a text whose last tokens are one block of up to `max_block` tokens, `times` times in a row."""

    max_block: Count = 32
    times: Annotated[int, Field(ge=2, le=2**31 - 1)] = 4


NumProposed = Annotated[int, Field(ge=1, le=64)]
"""Tokens that are proposed at a time."""


class PromptLookup(Config):
    """What followed the last tokens where they stood before, in prompt or text, is proposed.

    Source: Saxena 2023, "Prompt Lookup Decoding", github.com/apoorvumang/prompt-lookup-decoding.
    """

    kind: Literal["prompt_lookup"] = "prompt_lookup"
    max_ngram: Annotated[int, Field(ge=1, le=16)] = 3
    """The last tokens that are looked for: so many, or else fewer."""
    num_tokens: NumProposed = 8


class DraftModel(Config):
    """A smaller model with the same tokens, which whoever loads the model names beside it, proposes."""

    kind: Literal["draft"] = "draft"
    num_tokens: NumProposed = 4


Speculation = Annotated[PromptLookup | DraftModel, Field(discriminator="kind")]


class MinimumBayesRisk(Config):
    """Draws `candidates` samples and gives those that are most like all of them: by chrF, which becomes their score.

    Source: Eikema and Aziz 2020, arXiv 2005.10283.
    """

    candidates: Annotated[int, Field(ge=2, le=2**31 - 1)] = 16
