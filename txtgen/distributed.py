"""The ranks that train together. A world of one is the same code path without any communication."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from txtgen.errors import DistributedError

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class World:
    """This process among the others: its rank, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        with _told_as_ours():
            dist.all_reduce(total)
        return [float(value) for value in total]

    def sum_gradients(self, gradients: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over all ranks."""
        if self.size > 1:
            with _told_as_ours():
                for gradient in gradients:
                    dist.all_reduce(gradient)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order of rank, on every rank. Plain data only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _told_as_ours():
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            with _told_as_ours():
                dist.barrier()


@contextmanager
def _told_as_ours() -> Iterator[None]:
    """A rank that is gone or does not answer shows as one of several errors inside torch."""
    try:
        yield
    except RuntimeError as error:
        raise DistributedError(
            "another rank failed or did not answer", f"rank {dist.get_rank()}", "look at what the other ranks said"
        ) from error


@contextmanager
def open_world(device: torch.device) -> Iterator[World]:
    """The world that torchrun's environment describes, or a world of one without it.

    Raises:
        DistributedError: the other ranks cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    try:
        # Counts and flags are summed on the CPU, gradients where they are.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise DistributedError(
            f"cannot join {size} ranks", f"rendezvous at {address}", "check the address, the port and the other ranks"
        ) from error
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
