"""What search needs to know of a model: a step function and a state that can be reordered. No model class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor

FinishReason = Literal["eos", "stop", "loop", "length"]


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts of unequal length, padded on the right.

    input_ids: [B,T] int64, what the decoder starts from. lengths: [B] int64, each at least 1. source_ids:
    [B,S] int64 and source_mask: [B,S] bool (True is a token), for an encoder-decoder. bidirectional: [B] bool, the
    prompts whose tokens see one another in both directions; None: none do.
    """

    input_ids: Tensor
    lengths: Tensor
    source_ids: Tensor | None = None
    source_mask: Tensor | None = None
    bidirectional: Tensor | None = None

    def __len__(self) -> int:
        """Number of prompts, B."""
        return self.input_ids.shape[0]


class StepState(Protocol):
    """What a model remembers of the tokens that it has seen, a row per hypothesis."""

    @property
    def lengths(self) -> Tensor:
        """[B] int64: tokens remembered in each row."""

    def select(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was: reorders, copies or drops. rows: [B'] int64."""

    def truncate(self, lengths: Tensor) -> None:
        """Forget what lies beyond lengths: [B] int64."""


State = TypeVar("State", bound=StepState)


class StepModel(Protocol[State]):
    """A model as search sees it."""

    def prefill(self, prompt: PromptBatch, capacity: int) -> tuple[Tensor, State]:
        """Read the prompts. Returns logits [B,V] float32 of the token after each, and the state.

        `capacity` is the largest number of tokens that any row will hold, the prompt included.
        """

    def extend(self, tokens: Tensor, state: State) -> Tensor:
        """Read tokens [B,N] int64, N more in every row. Returns logits [B,N,V] float32; updates the state."""


@runtime_checkable
class HiddenModel(StepModel[State], Protocol[State]):
    """A model that can also tell what its logits are computed from."""

    def prefill_hidden(self, prompt: PromptBatch, capacity: int) -> tuple[Tensor, State]:
        """As `prefill`, but returns a vector for every token of the prompts, [B,T,D]."""

    def extend_hidden(self, tokens: Tensor, state: State) -> Tensor:
        """As `extend`, but returns a vector for every token, [B,N,D]."""

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [...,V] of the token after those with these vectors, [...,D]."""

    def narrow_head(self, token_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """As `head`, of these tokens alone: [N] int64. It computes no others."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One generated sequence.

    token_ids: the generated part, end token included when it was produced. logprob: the sum of natural
    log-probabilities of its tokens. score: what results are ranked by, higher is better. proposed, accepted: the
    tokens that speculation proposed, and how many of these the model took.
    """

    token_ids: tuple[int, ...]
    logprob: float
    score: float
    finish_reason: FinishReason
    proposed: int = 0
    accepted: int = 0
