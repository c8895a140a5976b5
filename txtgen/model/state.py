"""What a decoder remembers while it generates: keys and values of every layer, row by row."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from math import gcd

import torch
from torch import Tensor

from txtgen.errors import UsageError

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one attention block, each [B,G,J,K]."""


@dataclass(frozen=True, slots=True)
class Window:
    """The slots that one call writes, the same in every layer.

    A token's slot is its position. positions: [1,N], or [B,N] if rows differ in length. stop: slots up to
    here are in use afterwards, in the longest row. rows: [B,1] numbers of the rows if they differ in length;
    None if all rows write the last N slots before `stop`.
    """

    positions: Tensor
    stop: int
    rows: Tensor | None = None


class LayerCache:
    """Keys and values of one decoder layer: its own [B,G,C,K] and, if there is a source, its [R,G,S,K]."""

    __slots__ = ("keys", "source", "values")

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.source: KeysValues | None = None

    def write(self, keys: Tensor, values: Tensor, window: Window) -> KeysValues:
        """Put keys and values [B,G,N,K] into the window. Returns all that are in use, [B,G,stop,K]."""
        if window.rows is None:
            count = keys.shape[2]
            self.keys.narrow(2, window.stop - count, count).copy_(keys)
            self.values.narrow(2, window.stop - count, count).copy_(values)
        else:
            self.keys[window.rows, :, window.positions] = keys.transpose(1, 2)
            self.values[window.rows, :, window.positions] = values.transpose(1, 2)
        return self.keys.narrow(2, 0, window.stop), self.values.narrow(2, 0, window.stop)


@torch.inference_mode(False)
def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for keys or values, to be written in and out of inference mode.

    Not empty memory: even a masked slot must hold a finite number.
    """
    return torch.zeros(shape, dtype=dtype, device=device)


def _reorder(cache: Tensor, rows: Tensor, used: int) -> Tensor:
    """The cache [B,G,C,...] with row i copied from rows[i], in place unless there are more rows than before."""
    count = rows.shape[0]
    target = cache[:count]
    if count > cache.shape[0]:
        target = _zeros((count, *cache.shape[1:]), cache.dtype, cache.device)
    target[:, :, :used] = cache[:, :, :used].index_select(0, rows)
    return target


class TransformerState:
    """The memory of a `Transformer` between two calls of `extend`; fits decode's StepState.

    Rows may be unequally long: the slot of a token is its position, and what lies beyond a row's length is
    never attended to. The host keeps a copy of the lengths, so that no step waits for the device to tell
    them.

    Sources are encoded once. Row b reads source b // fold, so that rows that share a source, such as the
    beams of one prompt, lie side by side and are answered by one attention call without copying its keys and
    values.
    """

    def __init__(
        self,
        num_layers: int,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        source_mask: Tensor | None = None,
        reach: int = 0,
    ) -> None:
        """An empty state for caches of shape [B,G,C,K].

        source_mask: [B,1,1,S], added to cross-attention. reach: how many tokens before a position its embedding
        looks at.
        """
        rows, _, self.capacity, _ = shape
        self.caches = [
            LayerCache(_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in range(num_layers)
        ]
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self._reach = reach
        # Slot 0 has as many zeros before it as an embedding may look back.
        self._tokens = _zeros((rows, 1, reach + self.capacity if reach else 0), torch.int64, device)
        self.source_mask = source_mask
        self._counts = [0] * rows
        self._slots = torch.arange(self.capacity, device=device)[None]
        self._origins = list(range(rows))
        self._fold = 1

    @property
    def sources(self) -> tuple[int, ...]:
        """For each row the number of the prompt whose source it reads."""
        return tuple(origin for origin in self._origins for _ in range(self._fold))

    def advance(self, count: int) -> tuple[Window, Tensor, Tensor | None]:
        """Make room for `count` more tokens in every row.

        Returns the window to write, the positions [1,J] of the keys in use, and the mask [1|B,1,N,J] bool of
        what each new token may attend to (None: everything).

        Raises:
            UsageError: a row would outgrow the capacity.
        """
        stop = self.stop_after(count)
        if min(self._counts, default=0) < stop - count:
            found: tuple[Window, Tensor, Tensor | None] = self.window(count, stop)
        else:
            keys, positions = self._slots[:, :stop], self._slots[:, stop - count : stop]
            allowed = None if count == 1 else keys[:, None, None, :] <= positions[:, None, :, None]
            found = Window(positions, stop), keys, allowed
        self.grow(count)
        return found

    def stop_after(self, count: int) -> int:
        """How many slots the longest row has in use once `count` more tokens are read.

        Raises:
            UsageError: they outgrow the capacity.
        """
        stop = max(self._counts, default=0) + count
        if stop > self.capacity:
            raise UsageError(
                f"a sequence of {stop} tokens does not fit",
                f"the state holds {self.capacity} a row",
                "raise capacity",
            )
        return stop

    def window(self, count: int, stop: int) -> tuple[Window, Tensor, Tensor]:
        """As `advance`, for rows of any lengths and without making room. Slots up to `stop` are looked at, perhaps more
        than are in use. Only tensors say how long rows are.
        """
        device = self.lengths.device
        keys, rows = torch.arange(stop, device=device)[None], torch.arange(len(self.lengths), device=device)[:, None]
        positions = self.lengths[:, None] + torch.arange(count, device=device)
        return Window(positions, stop, rows), keys, keys[:, None, None, :] <= positions[:, None, :, None]

    def grow(self, count: int) -> None:
        """Count tokens that every row has been given."""
        self.lengths = self.lengths + count
        self._counts = [length + count for length in self._counts]

    def with_context(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Remember tokens [B,N], which are to be read at positions [1|B,N]. Returns them after those that stand before
        them: [B,reach+N].
        """
        columns = torch.arange(self._reach + tokens.shape[1], device=tokens.device) + positions[:, :1]
        rows = torch.arange(tokens.shape[0], device=tokens.device)[:, None]
        self._tokens[rows, 0, columns[:, self._reach :]] = tokens
        return self._tokens[rows, 0, columns]

    def select(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was: reorders, copies or drops. rows: [B'] int64."""
        order: list[int] = rows.tolist()
        if order == list(range(len(self._counts))):
            return
        rows = rows.to(self.lengths.device)
        self.lengths = self.lengths[rows]
        self._counts = [self._counts[row] for row in order]
        used = max(self._counts, default=0)
        self._tokens = _reorder(self._tokens, rows, self._reach + used if self._reach else 0)
        for cache in self.caches:
            cache.keys = _reorder(cache.keys, rows, used)
            cache.values = _reorder(cache.values, rows, used)
        self._select_sources(order)

    def _select_sources(self, order: list[int]) -> None:
        """Keep each source once per run of rows that share it; unequal runs are cut to a common length."""
        stored = [row // self._fold for row in order]
        origins = [self._origins[place] for place in stored]
        fold = gcd(*(len(list(run)) for _, run in groupby(origins))) or 1
        kept = stored[::fold]
        if kept != list(range(len(self._origins))):
            places = torch.tensor(kept, dtype=torch.int64, device=self.lengths.device)
            for cache in self.caches:
                if cache.source is not None:
                    keys, values = cache.source
                    cache.source = keys.index_select(0, places), values.index_select(0, places)
            if self.source_mask is not None:
                self.source_mask = self.source_mask.index_select(0, places)
        self._origins, self._fold = origins[::fold], fold

    def complete_source_mask(self) -> None:
        """Have a mask where there are sources, also if it allows everything."""
        keys = self.caches[0].source and self.caches[0].source[0]
        if keys is not None and self.source_mask is None:
            self.source_mask = keys.new_zeros(len(keys), 1, 1, keys.shape[2])

    def relocate(self, place: Callable[[str, Tensor, int, float], Tensor]) -> None:
        """Let `place` say where keys, values and all else that outlives a step lie from now on.

        It is told the name of a tensor, the tensor, a dimension in which it may be longer, and what with.
        """
        for number, cache in enumerate(self.caches):
            cache.keys = place(f"keys {number}", cache.keys, 2, 0.0)
            cache.values = place(f"values {number}", cache.values, 2, 0.0)
            if cache.source is not None:
                keys, values = cache.source
                keys = place(f"source keys {number}", keys, 2, 0.0)
                cache.source = keys, place(f"source values {number}", values, 2, 0.0)
        if self.source_mask is not None:
            self.source_mask = place("source mask", self.source_mask, 3, float("-inf"))
        if self._reach:
            self._tokens = place("tokens", self._tokens, 2, 0.0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those of tensors that a step reads, besides the number of rows."""
        source = () if self.source_mask is None else self.source_mask.shape
        return (self.caches[0].keys.shape[2], self._tokens.shape[2], *source)

    def truncate(self, lengths: Tensor) -> None:
        """Forget what lies beyond lengths: [B] int64.

        Raises:
            UsageError: a length is negative or exceeds what the row holds.
        """
        counts: list[int] = lengths.tolist()
        for row, (new, old) in enumerate(zip(counts, self._counts, strict=True)):
            if not 0 <= new <= old:
                raise UsageError(f"cannot cut to {new} tokens", f"row {row} holds {old}", f"give 0 to {old}")
        self.lengths = lengths.to(self.lengths.device)
        self._counts = counts
