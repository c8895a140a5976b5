"""A model that does not read again what it has just read: a conversation grows, and only what is new in it costs."""

from collections.abc import Callable
from typing import Generic

import torch
from torch import Tensor

from txtgen.decode.types import HiddenModel, PromptBatch, State


class Remembering(Generic[State]):
    """What search needs of a model, which keeps its state from one prompt to the next.

    Of a single prompt only the tokens after those that it shares with the last prompt and its result are read. Batches,
    beams and prompts with a source are read as ever.

    Args:
        model: reads.
        most: tokens that a row may hold; None: any number.
    """

    def __init__(self, model: HiddenModel[State], most: int | None) -> None:
        self._model, self._most = model, most
        self._state: State | None = None
        self._tokens: list[int] = []
        self._capacity = 0

    def prefill(self, prompt: PromptBatch, capacity: int) -> tuple[Tensor, State]:
        """As `StepModel.prefill`."""
        if len(prompt) > 1 or prompt.source_ids is not None or prompt.bidirectional is not None:
            return self._model.prefill(prompt, capacity)
        ids = prompt.input_ids[:, : int(prompt.lengths[0])]
        tokens: list[int] = ids[0].tolist()
        shared, state = self._shared(tokens), self._state
        self._state = None  # until it is read, which may break off
        if state is None or not shared or capacity > self._capacity:
            wanted = 2 * capacity  # so that a conversation that grows is not read anew at every turn
            self._capacity = wanted if self._most is None else max(capacity, min(wanted, self._most))
            logits, state = self._model.prefill(prompt, self._capacity)
        else:
            state.truncate(torch.tensor([shared], device=ids.device))
            logits = self._model.head(self._model.extend_hidden(ids[:, shared:], state)[:, -1])
        self._state, self._tokens = state, tokens
        return logits, state

    def extend(self, tokens: Tensor, state: State) -> Tensor:
        """As `StepModel.extend`."""
        if state is not self._state:
            return self._model.extend(tokens, state)
        self._state, held = None, state.lengths.tolist()
        logits = self._model.extend(tokens, state)
        if len(held) == 1:
            self._state = state
            del self._tokens[held[0] :]  # which a search has taken back
            self._tokens += tokens[0].tolist()
        return logits

    def prefill_hidden(self, prompt: PromptBatch, capacity: int) -> tuple[Tensor, State]:
        """As `HiddenModel.prefill_hidden`."""
        return self._model.prefill_hidden(prompt, capacity)

    def extend_hidden(self, tokens: Tensor, state: State) -> Tensor:
        """As `HiddenModel.extend_hidden`."""
        return self._model.extend_hidden(tokens, state)

    def head(self, hidden: Tensor) -> Tensor:
        """As `HiddenModel.head`."""
        return self._model.head(hidden)

    def narrow_head(self, token_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """As `HiddenModel.narrow_head`."""
        return self._model.narrow_head(token_ids)

    def _shared(self, tokens: list[int]) -> int:
        """With how many tokens both begin; the last one of a prompt is to be read, for what follows it."""
        held = [] if self._state is None else self._state.lengths.tolist()
        if len(held) != 1:
            return 0
        most = min(len(tokens) - 1, held[0])
        return next((place for place in range(most) if tokens[place] != self._tokens[place]), most)
