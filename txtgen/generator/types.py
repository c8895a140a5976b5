"""What goes into a generator, and what comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from txtgen.decode import FinishReason
from txtgen.infilling import Gaps

Message = Mapping[str, str]
"""A turn of a conversation: its `role` and its `content`."""

Prompt = str | Sequence[Message]
"""A text, or the conversation so far for a chat model."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One result.

    prompt_index, index: the number of its prompt, and its own among the results of that prompt, from 0.
    prompt: the prompt as text; a conversation as the model reads it. text: what was generated, without end
    token or stop string. token_ids: the generated tokens, the end token included. prompt_token_ids: what the
    model was given, special tokens included; the source, for an encoder-decoder. logprob: the sum of the
    tokens' natural log-probabilities under the model itself. score: what results are ranked by.

    Where a prompt had gaps, `text` is the whole text with the gaps filled, and `fills` is what stands in each; it is
    empty otherwise, and where the model wrote the whole text anew.

    proposed, accepted: with speculation, the tokens that were proposed, and how many of these the model took.
    """

    prompt_index: int
    index: int
    prompt: str
    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    logprob: float
    score: float
    finish_reason: FinishReason
    fills: tuple[str, ...] = ()
    proposed: int = 0
    accepted: int = 0

    def __str__(self) -> str:
        """The generated text."""
        return self.text


class StreamPiece(NamedTuple):
    """A part of a text that has just been decided, perhaps empty.

    tokens: how many the text has so far. finish_reason: why it ended, with the last piece.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds a text.

    index: the number of the text. prompt: what stands before it, or its source. token_ids, tokens: of the text and its
    end, as ids and as they are displayed. token_logprobs: the natural log-probability of each after all before it.
    logprob: their sum. perplexity: exp of minus their mean.
    """

    index: int
    prompt: str
    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    logprob: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model is given it, how many tokens may follow, and the gaps that they fill, if any."""

    number: int
    text: str
    token_ids: tuple[int, ...]
    limit: int
    gaps: Gaps | None = None
