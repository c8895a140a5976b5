"""A state in few shapes and at fixed addresses, so that a step over it can be compiled once and captured."""

from functools import partial
from itertools import groupby
from math import gcd, prod
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor

from txtgen.model.state import TransformerState

LEAST = 64
"""Slots, at least; more are rounded up to a power of two."""


def rounded(size: int, least: int) -> int:
    """The next power of two."""
    return max(least, 1 << (size - 1).bit_length())


class PaddedState:
    """A `TransformerState` with rows to spare; fits decode's StepState.

    Rows are rounded up to a power of two, at least two, or where several prompts have as many rows each, the prompts
    are. Those to spare repeat the last ones, so that nothing in them is out of the ordinary.
    """

    def __init__(self, inner: TransformerState) -> None:
        """inner: is the padded state's alone from now on."""
        self.inner, self.count = inner, len(inner.lengths)
        self.settled = False
        """Whether its tensors lie in the room that it has been put in."""
        inner.complete_source_mask()
        self.select(torch.arange(self.count))

    @property
    def lengths(self) -> Tensor:
        """[B] int64: tokens remembered in each row."""
        return self.inner.lengths[: self.count]

    def select(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was: reorders, copies or drops. rows: [B'] int64."""
        order: list[int] = rows.tolist()
        self.count, sources = len(order), self.inner.sources
        runs = [len(list(run)) for _, run in groupby(sources[row] for row in order)]
        shared = gcd(*runs) if len(runs) > 1 else 1
        groups = self.count // shared
        order += order[-shared:] * (rounded(groups, 2) - groups)
        self.inner.select(torch.tensor(order, dtype=torch.int64))
        self.settled = False

    def truncate(self, lengths: Tensor) -> None:
        """Forget what lies beyond lengths: [B] int64.

        Raises:
            UsageError: a length is negative or exceeds what the row holds.
        """
        most = max(lengths.tolist(), default=0)
        spare = self.inner.lengths[self.count :].to(lengths.device).clamp(max=most)
        self.inner.truncate(torch.cat((lengths, spare)))
        self.settled = False

    def padded(self, tokens: Tensor) -> Tensor:
        """Tokens [B,N] with those of the rows to spare, which are any."""
        return F.pad(tokens, (0, 0, 0, len(self.inner.lengths) - self.count))


class Room:
    """Memory that states lie in while they are stepped, one after the other: captured steps know it by its address."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}
        self._tenant: ref[TransformerState] | None = None

    def receive(self, state: PaddedState) -> None:
        """Let a state lie here. One that did before, and is still in use, moves out until it is received again."""
        inner = state.inner
        tenant = None if self._tenant is None else self._tenant()
        if tenant is inner and state.settled:
            return
        if tenant is not None and tenant is not inner:
            tenant.relocate(lambda _name, tensor, _dim, _fill: tensor.clone())
        self._tenant = ref(inner)
        # One slot more than are ever looked at: code for all of them would be other code than for the first ones.
        inner.relocate(partial(self._place, rounded(inner.capacity, LEAST) + 1))
        inner.lengths = inner.lengths.clone()  # a step knows no tensors of inference mode
        state.settled = True

    def _place(self, slots: int, name: str, tensor: Tensor, dim: int, fill: float) -> Tensor:
        from torch._dynamo import mark_static_address  # the compiler, which takes longer to import than torch itself

        shape, used = list(tensor.shape), tensor.shape[dim]
        shape[dim] = rounded(used, LEAST) if name.startswith("source") else max(slots, used)
        memory = self._memory.get(name)
        if memory is None or memory.numel() < prod(shape) or memory.dtype != tensor.dtype:
            memory = self._memory[name] = torch.zeros(prod(shape), dtype=tensor.dtype, device=tensor.device)
        if tensor.data_ptr() == memory.data_ptr():
            place = tensor
        else:
            place = memory[: prod(shape)].view(shape)
            place.narrow(dim, 0, used).copy_(tensor)
            place.narrow(dim, used, shape[dim] - used).fill_(fill)
        mark_static_address(place, guard=False)
        return place
