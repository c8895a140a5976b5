"""A Transformer that generates by machine code: the same results, without torch between two tokens."""

from collections.abc import Callable, Iterator
from ctypes import addressof
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtgen.model.native_state import Ints, NativeState, address, cache_room, layer_pointers
from txtgen.model.packing import PackedModel
from txtgen.model.transformer import Prompt, Transformer
from txtgen.native import Library, UnavailableError, bindings

ROWS_AT_ONCE = 512
"""Tokens of prompts that are read together: enough for matrices to be worth reading, and not much memory."""

NO_MEMORY, UNKNOWN_TOKEN = 1, 2
"""What the machine code may answer in place of 0."""


class NativeTransformer:
    """What search needs of a Transformer, computed by machine code. Weights are copied: later changes do not count.

    The result of a row depends on nothing but the row: not on what else is in the batch, nor on the number of threads.

    Raises:
        UnavailableError: the model has a part that the machine code does not know.
    """

    def __init__(self, model: Transformer, library: Library) -> None:
        device = next(model.parameters()).device
        if device.type != "cpu":
            raise UnavailableError(f"the model is on {device.type}")
        self._model, self._library = model, library
        self._packed = PackedModel(model, library)

    @torch.no_grad()
    def prefill(self, prompt: Prompt, capacity: int) -> tuple[Tensor, NativeState]:
        """As `Transformer.prefill`."""
        tokens, state = self._begin(prompt, capacity)
        lengths = tokens.lengths(len(prompt.lengths))
        logits = torch.empty(len(lengths), self._packed.decoder.head.rows)
        for part in tokens.parts(whole=prompt.bidirectional is not None):
            last = np.flatnonzero(part.positions == lengths[part.sequences] - 1).astype(np.int32)
            out = logits[part.sequences[last[0]] :] if len(last) else logits
            self._read(self._packed.decoder, part.call(state.call), last, out, vectors=False)
        state.grow(lengths)
        return logits, state

    @torch.no_grad()
    def prefill_hidden(self, prompt: Prompt, capacity: int) -> tuple[Tensor, NativeState]:
        """As `Transformer.prefill_hidden`; what belongs to padding is 0."""
        tokens, state = self._begin(prompt, capacity)
        hidden = torch.zeros(*prompt.input_ids.shape, self._packed.decoder.width)
        for part in tokens.parts(whole=prompt.bidirectional is not None):
            hidden[part.sequences, part.positions] = self._read_vectors(self._packed.decoder, part.call(state.call))
        state.grow(tokens.lengths(len(hidden)))
        return hidden, state

    def _begin(self, prompt: Prompt, capacity: int) -> tuple["_Tokens", NativeState]:
        """The tokens of the prompts, and a state that expects them and knows the sources."""
        self._model.check_prompt(prompt, capacity)
        self._packed.reach(capacity)
        lengths = prompt.lengths.numpy().astype(np.int32)
        state = NativeState(self._library, self._packed.decoder, len(lengths), capacity)
        if prompt.source_ids is not None:
            self._read_sources(prompt.source_ids, prompt.source_mask, state)
        tokens = _Tokens.of(prompt.input_ids.numpy(), lengths)
        if prompt.bidirectional is not None:
            both = prompt.bidirectional.numpy()[tokens.sequences]
            tokens = tokens._replace(stops=np.where(both, lengths[tokens.sequences], tokens.stops))
        state.expect(tokens.ids, tokens.sequences, tokens.positions)
        return tokens, state

    def _read_sources(self, ids: Tensor, mask: Tensor | None, state: NativeState) -> None:
        """Encode sources [B,S] and let the state have what the decoder looks at of them."""
        encoder, (rows, width) = self._packed.encoder, ids.shape
        if encoder is None:
            return
        self._packed.reach(width)
        lengths = np.full(rows, width, dtype=np.int32)
        if mask is not None:
            counts = mask.sum(-1, dtype=torch.int32).numpy()
            lengths = np.where(counts > 0, counts, lengths)  # a row without a single token may look anywhere
        state.set_sources(lengths, width)
        for part in _Tokens.of(ids.numpy(), lengths).parts(whole=True):
            first, count = int(part.sequences[0]), int(part.sequences[-1] - part.sequences[0]) + 1
            # One layer's keys and values are no longer needed when the next one's are made.
            layer = cache_room(self._library, encoder, 1, count, width).expand(encoder.num_layers, -1, -1, -1, -1)
            cache, homes = layer_pointers(layer), np.arange(count, dtype=np.int32)
            place = bindings.Call(capacity=width, cache=addressof(cache), homes=address(homes))
            inside = part._replace(sequences=part.sequences - np.int32(first), stops=lengths[part.sequences])
            encoded = self._read_vectors(encoder, inside.call(place))
            call, threads = part.call(state.call), torch.get_num_threads()
            _check(self._library.remember_source(self._packed.decoder, call, encoded.data_ptr(), threads))

    @torch.no_grad()
    def extend(self, tokens: Tensor, state: NativeState) -> Tensor:
        """As `Transformer.extend`."""
        logits = torch.empty(*tokens.shape, self._packed.decoder.head.rows)
        self._extend(tokens, state, logits, vectors=False)
        return logits

    @torch.no_grad()
    def extend_hidden(self, tokens: Tensor, state: NativeState) -> Tensor:
        """As `Transformer.extend_hidden`."""
        hidden = torch.empty(*tokens.shape, self._packed.decoder.width)
        self._extend(tokens, state, hidden, vectors=True)
        return hidden

    def _extend(self, tokens: Tensor, state: NativeState, out: Tensor, vectors: bool) -> None:
        """Read tokens [B,N]; what they lead to goes to `out`."""
        rows, count = tokens.shape
        state.check_room(rows, count)
        if count == 1:
            ids, call = tokens.contiguous(), state.call
            state.expect_one_each(ids)
            call.rows, call.tokens = rows, ids.data_ptr()
        else:
            new = _Tokens.after(state.counts, tokens.numpy())
            state.expect(new.ids, new.sequences, new.positions)
            call = new.call(state.call)
        self._read(self._packed.decoder, call, None, out, vectors)
        state.grow(count)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [...,V] of hidden [...,D], as `Transformer.head`."""
        return self._logits(hidden, self._packed.decoder)

    def narrow_head(self, token_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """As `Transformer.narrow_head`."""
        narrow = self._packed.narrow(token_ids)
        return lambda hidden: self._logits(hidden, narrow.decoder)

    @torch.no_grad()
    def _logits(self, hidden: Tensor, stack: bindings.Stack) -> Tensor:
        logits = torch.empty(*hidden.shape[:-1], stack.head.rows)
        rows = logits[..., 0].numel()
        call = bindings.Call(rows=rows, num_wanted=rows, out=logits.data_ptr())
        vectors = hidden.contiguous()
        _check(self._library.score(stack, call, vectors.data_ptr(), torch.get_num_threads()))
        return logits

    def _read(
        self, stack: bindings.Stack, call: bindings.Call, wanted: Ints | None, out: Tensor, vectors: bool
    ) -> None:
        """Read tokens; logits of those that are wanted (None: all), or the vectors that logits are computed from, go to
        the first rows of `out`."""
        call.num_wanted, call.wanted = (call.rows, None) if wanted is None else (len(wanted), address(wanted))
        call.out, call.vectors = out.data_ptr(), vectors
        _check(self._library.read(stack, call, torch.get_num_threads()))

    def _read_vectors(self, stack: bindings.Stack, call: bindings.Call) -> Tensor:
        """Read tokens; returns what logits are computed from, [rows,D]."""
        vectors = torch.empty(call.rows, stack.width)
        self._read(stack, call, None, vectors, vectors=True)
        return vectors


class _Tokens(NamedTuple):
    """Tokens in the order of their sequences and positions; none sees what lies at its stop or beyond."""

    ids: NDArray[np.int64]
    sequences: Ints
    positions: Ints
    stops: Ints

    @classmethod
    def of(cls, ids: NDArray[np.int64], lengths: Ints) -> "_Tokens":
        """Those of rows [B,T] that are padded on the right."""
        sequences, positions = np.nonzero(np.arange(ids.shape[1]) < lengths[:, None])
        return cls._seeing_the_past(ids[sequences, positions], sequences, positions)

    @classmethod
    def after(cls, lengths: Ints, ids: NDArray[np.int64]) -> "_Tokens":
        """Those of rows [B,N] that follow tokens which are known already."""
        sequences, places = np.nonzero(np.ones_like(ids))
        return cls._seeing_the_past(ids[sequences, places], sequences, places + lengths[sequences])

    @classmethod
    def _seeing_the_past(
        cls, ids: NDArray[np.int64], sequences: NDArray[np.int64], places: NDArray[np.int64]
    ) -> "_Tokens":
        positions = places.astype(np.int32)
        return cls(ids, sequences.astype(np.int32), positions, positions + np.int32(1))

    def lengths(self, count: int) -> Ints:
        """Of so many sequences."""
        return np.bincount(self.sequences, minlength=count).astype(np.int32)

    def parts(self, whole: bool) -> Iterator["_Tokens"]:
        """About ROWS_AT_ONCE tokens each; if `whole`, no sequence is divided."""
        start = 0
        while start < len(self.ids):
            stop = min(start + ROWS_AT_ONCE, len(self.ids))
            if whole and stop < len(self.ids):
                begun = int(np.searchsorted(self.sequences, self.sequences[stop]))
                stop = begun if begun > start else int(np.searchsorted(self.sequences, self.sequences[stop], "right"))
            yield self._replace(**{name: column[start:stop].copy() for name, column in self._asdict().items()})
            start = stop

    def call(self, place: bindings.Call) -> bindings.Call:
        """A call that reads these tokens, which must outlive it, into the cache of another one."""
        call = bindings.Call.from_buffer_copy(place)
        call.rows, call.one_each, call.tokens = len(self.ids), 0, address(self.ids)
        call.sequences, call.positions, call.stops = map(address, (self.sequences, self.positions, self.stops))
        return call


def _check(answer: int) -> None:
    if answer == UNKNOWN_TOKEN:
        raise IndexError("a token id is outside the vocabulary")
    if answer == NO_MEMORY:
        raise MemoryError
