"""A Transformer whose decoding steps are compiled, and on a GPU captured as CUDA graphs."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from txtgen.config.model import Compile
from txtgen.model.agreement import disagreement
from txtgen.model.compiling import cause
from txtgen.model.padded_state import LEAST, PaddedState, Room, rounded
from txtgen.model.state import TransformerState
from txtgen.model.transformer import Prompt, Transformer, at_least_float32

logger = logging.getLogger(__name__)

PAYS_FROM = 10_000
"""Decoding steps ahead, at least, for `auto` to compile: it may take a minute, in which a GPU decodes as many."""

CALLS = 3
"""Of a step in a new shape, until a CUDA graph of it is replayed: it warms up, is captured, is replayed."""

MODELS = 100
"""Codes that torch may keep of steps; it gives up beyond 8 unless told."""

AnyState = TransformerState | PaddedState


class CompiledTransformer:
    """What search needs of a Transformer. Steps of one token are compiled; prompts and several tokens are read as ever.

    One code serves batches of any size and sequences of any length; of an encoder-decoder it is one each for rows that
    share no sources, that share some, and that share one. CUDA graphs are of one shape each, and states come in few
    (`PaddedState`). In a new shape a step is computed both ways and must agree; where it does not, or compiling fails,
    that is told once and the model itself computes.

    Args:
        model: reads; in evaluation mode.
        wanted: True: steps are compiled from the first one on. "auto": once enough of them are expected.
    """

    def __init__(self, model: Transformer, wanted: Compile) -> None:
        self._model, self._wanted = model, wanted
        self.compiles = wanted is True
        """Whether states that are made now are stepped by compiled code."""
        self._room = Room()
        self._known: set[tuple[int, ...]] = set()
        self._fast: Callable[..., Tensor] | None = None

    def expect(self, steps: int) -> None:
        """Be told how many decoding steps lie ahead."""
        if self._wanted == "auto" and steps >= PAYS_FROM:
            self.compiles = True

    def prefill(self, prompt: Prompt, capacity: int) -> tuple[Tensor, AnyState]:
        """As `Transformer.prefill`."""
        logits, state = self._model.prefill(prompt, capacity)
        return logits, self._state(state)

    def prefill_hidden(self, prompt: Prompt, capacity: int) -> tuple[Tensor, AnyState]:
        """As `Transformer.prefill_hidden`."""
        hidden, state = self._model.prefill_hidden(prompt, capacity)
        return hidden, self._state(state)

    def _state(self, state: TransformerState) -> AnyState:
        if self.compiles and not _has_room(state):
            self._give_up("too little memory is free for states that are rounded up")
        return PaddedState(state) if self.compiles else state

    def _give_up(self, reason: str) -> None:
        """Compute with the model itself from now on."""
        logger.warning("generating without compiled steps: %s", reason)
        self.compiles, self._wanted, self._fast = False, False, None

    @torch.no_grad()
    def extend(self, tokens: Tensor, state: AnyState) -> Tensor:
        """As `Transformer.extend`."""
        return at_least_float32(self.head(self.extend_hidden(tokens, state)))

    @torch.no_grad()
    def extend_hidden(self, tokens: Tensor, state: AnyState) -> Tensor:
        """As `Transformer.extend_hidden`."""
        if isinstance(state, TransformerState):
            return self._model.extend_hidden(tokens, state)
        inner, count = state.inner, tokens.shape[1]
        stop = rounded(inner.stop_after(count), LEAST)
        # Code is of one mode. The first of these brings gradients back.
        with torch.inference_mode(False), torch.no_grad():
            self._room.receive(state)
            given = self._model, state.padded(tokens), inner, stop
            hidden = self._compiled(*given) if count == 1 and self.compiles else _step(*given)
            inner.grow(count)
        return hidden[: state.count]

    def _compiled(self, *given: Any) -> Tensor:
        """A step by compiled code, or by the model itself where that fails; a step that is repeated changes nothing."""
        _, tokens, state, stop = given
        shape = (len(tokens), stop, *state.sizes)
        try:
            if shape not in self._known:
                self._try(*given)
                self._known.add(shape)
            return self._replayed(*given)
        except Exception as error:  # whatever a compiler, or its absence, may raise
            self._give_up(cause(error))
            return _step(*given)

    def _replayed(self, *given: Any) -> Tensor:
        """A step by compiled code, which is made when it is first needed."""
        if self._fast is None:
            self._fast = torch.compile(_step, fullgraph=True, dynamic=True, mode="reduce-overhead")
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._fast(*given).clone()  # which the next replay of a CUDA graph would write over

    def _try(self, *given: Any) -> None:
        """Compute a step in a shape that is new, up to where CUDA graphs are replayed.

        Raises:
            RuntimeError: it is wrong.
        """
        from torch._dynamo import config as dynamo
        from torch.fx.experimental import _config as symbolic

        exact = _step(*given)
        free = symbolic.patch(use_duck_shape=False)  # type: ignore[attr-defined]  # sizes that are equal may differ
        many = dynamo.patch(recompile_limit=MODELS)  # which counts the codes of all models
        with warnings.catch_warnings(), free, many:
            warnings.simplefilter("ignore")  # of torch about its own parts
            for _ in range(CALLS):
                found = self._replayed(*given)
        kind = "float32" if exact.dtype in (torch.float32, torch.float64) else "fused"
        # Of logits, for in hidden states a last bit of a channel far from the others is more than the spread allows.
        exact, found = (at_least_float32(self.head(hidden)) for hidden in (exact, found))
        if bool(exact.isfinite().all()) and (wrong := disagreement(found, exact, kind)):
            raise RuntimeError(wrong)

    def head(self, hidden: Tensor) -> Tensor:
        """As `Transformer.head`."""
        return self._model.head(hidden)

    def narrow_head(self, token_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """As `Transformer.narrow_head`."""
        return self._model.narrow_head(token_ids)


def _has_room(state: TransformerState) -> bool:
    """Whether a GPU has memory for a copy of a state with rows and slots rounded up: up to four times as much."""
    tensors: list[Tensor] = []

    def seen(_name: str, tensor: Tensor, _dim: int, _fill: float) -> Tensor:
        tensors.append(tensor)
        return tensor

    state.relocate(seen)
    if tensors[0].device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(tensors[0].device)
    return free > 2 * 4 * sum(tensor.nbytes for tensor in tensors)  # the copy, and the rows on their way to it


def _step(model: Transformer, tokens: Tensor, state: TransformerState, stop: int) -> Tensor:
    """Read tokens [B,N] of rows of any lengths, and look at slots up to `stop`. The state does not count them yet."""
    return model.read(tokens, state, *state.window(tokens.shape[1], stop))
