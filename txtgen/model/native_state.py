"""What a model remembers of its tokens while machine code generates."""

from ctypes import addressof, c_void_p
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtgen.errors import UsageError
from txtgen.native import Library, bindings

Ints = NDArray[np.int32]


class NativeState:
    """Keys and values of every sequence; fits decode's StepState.

    A sequence writes its keys and values into a row of the cache that is its own, its home. Sequences that begin alike
    share what lies in the homes of others: a table says for each position whose home it is. Choosing, copying and
    dropping sequences then moves a few numbers in place of all keys and values. How a row is arranged, in blocks of so
    many positions, is the machine code's affair (cpp/cache.h).
    """

    def __init__(self, library: Library, stack: bindings.Stack, rows: int, capacity: int) -> None:
        self.capacity = capacity
        self.call = bindings.Call(capacity=capacity, one_each=1)
        self._library, self._stack = library, stack
        self._cache = self._room(rows, capacity)
        self._history = np.zeros((rows, capacity if stack.ngram_order else 0), dtype=np.int64)
        self._lengths = np.zeros(rows, dtype=np.int32)
        self._origins = np.arange(rows, dtype=np.int32)  # numbers of the prompts, and so of the sources
        self._homes = np.arange(rows, dtype=np.int32)
        self._owners = self._origins  # of each row of the cache: the prompt whose sequence had it last
        self._cells: Ints | None = None  # [B,capacity]; None: everything lies at home
        self._source_cache, self._source_lengths = self._room(0, 0), np.zeros(0, dtype=np.int32)
        self._bind()

    def _room(self, rows: int, capacity: int) -> Tensor:
        return cache_room(self._library, self._stack, self._stack.num_layers, rows, capacity)

    @property
    def lengths(self) -> Tensor:
        """[B] int64: tokens remembered in each row."""
        return torch.from_numpy(self._lengths.astype(np.int64))

    @property
    def sources(self) -> tuple[int, ...]:
        """For each row the number of the prompt whose source it reads."""
        return tuple(self._origins.tolist())

    @property
    def counts(self) -> Ints:
        """[B]: as `lengths`."""
        return self._lengths

    def check_room(self, rows: int, count: int) -> None:
        """Refuse tokens that do not fit.

        Raises:
            UsageError: there are not so many rows, or no room for `count` more tokens in one of them.
        """
        if rows != len(self._lengths):
            raise UsageError(f"{rows} rows of tokens", f"the state has {len(self._lengths)}", "give each row its own")
        stop = int(self._lengths.max(initial=0)) + count
        if stop > self.capacity:
            where = f"the state holds {self.capacity} a row"
            raise UsageError(f"a sequence of {stop} tokens does not fit", where, "raise capacity")

    def expect(self, tokens: NDArray[np.int64], sequences: Ints, positions: Ints) -> None:
        """Note where tokens will be that are about to be read, and what they are."""
        if self._history.shape[1]:
            self._history[sequences, positions] = tokens
        if self._cells is not None:
            self._cells[sequences, positions] = self._homes[sequences]

    def expect_one_each(self, tokens: Tensor) -> None:
        """As `expect`, for tokens [B,1]."""
        if self._history.shape[1] or self._cells is not None:
            self.expect(tokens.numpy()[:, 0], np.arange(len(tokens), dtype=np.int32), self._lengths)

    def grow(self, counts: Ints | int) -> None:
        """Count tokens that have been read; in place, for the machine code looks there."""
        self._lengths += counts

    def set_sources(self, lengths: Ints, capacity: int) -> None:
        """Make room for sources of these lengths, one for each prompt."""
        self._source_cache, self._source_lengths = self._room(len(lengths), capacity), lengths
        self.call.source_capacity = capacity
        self._bind()

    def select(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was: reorders, copies or drops. rows: [B'] int64."""
        order = rows.numpy()
        if np.array_equal(order, np.arange(len(self._lengths))):
            return
        if self._cells is not None and self._uneven():
            self._separate()
        firsts = np.unique(order, return_index=True)[1]
        if len(firsts) < len(order) and self._cells is None:
            self._cells = np.repeat(self._homes[:, None], self.capacity, axis=1)
        homes = self._homes[order]
        if len(firsts) < len(order):
            self._rehouse(homes, self._origins[order], firsts)
        self._homes, self._origins = homes, self._origins[order]
        self._lengths, self._history = self._lengths[order], self._history[order]
        self._cells = None if self._cells is None else self._cells[order]
        self._bind()

    def _rehouse(self, homes: Ints, origins: Ints, firsts: NDArray[np.int64]) -> None:
        """Give all sequences but the `firsts`, which keep those of their parents, homes that are empty.

        Nobody may still see what was there: the last owner was of the same prompt, whose sequences are equally long and
        see nothing from where the new one writes on, or of a prompt that no sequence is left of.
        """
        empty = np.setdiff1d(np.arange(len(self._owners)), homes[firsts]).tolist()
        live = set(origins.tolist())
        pools: dict[int, list[int]] = {}
        for home in empty:
            owner = int(self._owners[home])
            pools.setdefault(owner if owner in live else -1, []).append(home)
        new = len(self._owners)
        for place in np.setdiff1d(np.arange(len(homes)), firsts).tolist():
            pool = pools.get(int(origins[place])) or pools.get(-1)
            if pool:
                homes[place] = pool.pop()
            else:
                homes[place], new = new, new + 1
        if new > len(self._owners):
            wider = self._room(new, self.capacity)
            used = -(-int(self._lengths.max(initial=0)) // self._library.lanes)
            wider[:, : len(self._owners), :, :used] = self._cache[:, :, :, :used]
            self._cache = wider
        owners = np.full(new, -1, dtype=np.int32)
        owners[: len(self._owners)] = self._owners
        owners[homes] = origins
        self._owners = owners

    def _uneven(self) -> bool:
        """Whether sequences of the same prompt differ in length."""
        if (self._lengths == self._lengths[0]).all():
            return False
        pairs = set(zip(self._origins.tolist(), self._lengths.tolist(), strict=True))
        return len(pairs) > len(set(self._origins.tolist()))

    def _separate(self) -> None:
        """Give every sequence a copy of its own of all that it sees."""
        if self._cells is not None:
            rows = self.call.rows = len(self._lengths)
            apart = self._room(rows, self.capacity)
            to = layer_pointers(apart)
            self._library.copy_cells(self._stack, self.call, addressof(to), torch.get_num_threads())
            self._cache, self._cells = apart, None
            self._homes, self._owners = np.arange(rows, dtype=np.int32), self._origins

    def truncate(self, lengths: Tensor) -> None:
        """Forget what lies beyond lengths: [B] int64.

        Raises:
            UsageError: a length is negative or exceeds what the row holds.
        """
        for row, (new, old) in enumerate(zip(lengths.tolist(), self._lengths.tolist(), strict=True)):
            if not 0 <= new <= old:
                raise UsageError(f"cannot cut to {new} tokens", f"row {row} holds {old}", f"give 0 to {old}")
        self._separate()  # what one row would write over, another may still see
        self._lengths = lengths.numpy().astype(np.int32)
        self._bind()

    def _bind(self) -> None:
        """Tell the machine code where everything is."""
        call = self.call
        call.positions, call.homes, call.sources = map(address, (self._lengths, self._homes, self._origins))
        call.history = address(self._history)
        call.cells = None if self._cells is None else address(self._cells)
        call.source_lengths = address(self._source_lengths)
        self._pointers = layer_pointers(self._cache), layer_pointers(self._source_cache)
        call.cache, call.source_cache = map(addressof, self._pointers)


def cache_room(library: Library, stack: bindings.Stack, layers: int, rows: int, capacity: int) -> Tensor:
    """Room for keys and values in so many layers, of rows of so many positions: [layers,rows,G,blocks,bytes]."""
    blocks, size = -(-capacity // library.lanes), library.block_bytes(stack)
    return torch.empty(layers, rows, stack.groups, blocks, size, dtype=torch.uint8)


def layer_pointers(cache: Tensor) -> Any:
    """Addresses of the layers of a cache."""
    step = cache.stride(0) * cache.element_size()
    return (c_void_p * cache.shape[0])(*(cache.data_ptr() + number * step for number in range(cache.shape[0])))


def address(array: NDArray[Any]) -> int:
    """Where the numbers of an array lie."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]
