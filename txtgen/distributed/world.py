"""This process among the ranks. A world of one is the same code path without any communication."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from txtgen.distributed.meeting import Meeting, meet
from txtgen.distributed.peers import Peers
from txtgen.errors import DistributedError, TxtgenError

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class World:
    """This process among the others: its rank, how many there are, and what becomes of them.

    launch: the same for all ranks that one launch starts, also again in place of lost ones; None: nobody launched us.
    """

    rank: int = 0
    size: int = 1
    peers: Peers | None = None
    launch: str | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all ranks do together: where it fails because of another rank, the error says which one and why.

        Raises:
            TxtgenError: what another rank failed of, or a DistributedError that names one which is gone or behind.
        """
        if self.peers is None:
            yield
            return
        self.enter()
        try:
            yield
        except RuntimeError as error:
            if not _is_of_communication(error):
                raise
            raise self.peers.verdict() from error

    def enter(self) -> None:
        """Count a collective that this rank is about to enter, so that one which does not come can be told."""
        if self.peers is not None:
            self.peers.enter()

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        with self.together():
            dist.all_reduce(total)
        return cast(list[float], total.tolist())

    def sum_tensor(self, values: Tensor) -> Tensor:
        """Values summed over all ranks, where they are: no rank waits for its device."""
        if self.size > 1:
            with self.together():
                dist.all_reduce(values)
        return values

    def max(self, value: int) -> int:
        """The greatest of the values of all ranks."""
        if self.size == 1:
            return value
        greatest = torch.tensor(value)
        with self.together():
            dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return int(greatest)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: Made) -> list[Made]:
        """The values of all ranks, in order of rank, on every rank. Plain data only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.together():
            dist.all_gather_object(values, value)
        return values

    def raise_on_all(self, kind: type[TxtgenError], error: TxtgenError | None) -> None:
        """Raise the error, of this kind, that any rank has met: on that rank as it is, on the others with its number.

        Raises:
            TxtgenError: some rank has one.
        """
        found = self.gather(None if error is None else (error.what, error.where, error.fix))
        if error is not None:
            raise error
        for rank, parts in enumerate(found):
            if parts is not None:
                raise kind(f"rank {rank}: {parts[0]}", *parts[1:])

    def from_main(self, make: Callable[[], Made]) -> Made:
        """What rank 0 makes, on every rank; plain data. The others wait for it as long as rank 0 lives.

        Raises:
            TxtgenError: what rank 0 failed of, on every rank.
        """
        if self.peers is None:
            return make()
        values: list[Any] = [None]
        if self.is_main:
            values = [make()]
            self.peers.announce()
        else:
            self.peers.wait()
        with self.together():
            dist.broadcast_object_list(values)
        return cast(Made, values[0])


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether an error may be another rank's fault; gloo says so in words only."""
    words = ("gloo", "nccl", "connection", "timed out")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


@contextmanager
def open_world(device: torch.device, timeout_seconds: float = 600.0) -> Iterator[World]:
    """The world that torchrun's environment describes, or a world of one without it.

    Args:
        device: where this process computes.
        timeout_seconds: for how long ranks wait for one another.

    Raises:
        DistributedError: the other ranks cannot be reached, or have another version of torch.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World()
        return
    timeout = timedelta(seconds=timeout_seconds)
    try:
        meeting = meet(timeout)
        if size > 1:
            _connect(meeting, device, timeout)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise DistributedError(
            f"cannot join {size} ranks within {timeout_seconds:g} seconds: {str(error).splitlines()[0]}",
            f"rendezvous at {address}",
            "check the address, the port and the other ranks",
        ) from error
    if size == 1:
        yield World(launch=meeting.launch)
        return
    peers = Peers(meeting.store, meeting.rank, size, f"process {os.getpid()} on {socket.gethostname()}")
    try:
        with peers.beating():
            world = World(meeting.rank, size, peers, meeting.launch)
            _refuse_other_versions(world)
            yield world
    finally:
        dist.destroy_process_group()


def _connect(meeting: Meeting, device: torch.device, timeout: timedelta) -> None:
    """Make the connections over which the ranks send tensors."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Counts and flags are summed on the CPU, gradients where they are.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    groups = PrefixStore("groups", meeting.store)
    dist.init_process_group(backend, store=groups, rank=meeting.rank, world_size=meeting.size, timeout=timeout)


def _refuse_other_versions(world: World) -> None:
    versions = world.gather(str(torch.__version__))
    for rank, version in enumerate(versions):
        if version != versions[0]:
            raise DistributedError(
                f"rank {rank} has torch {version}, rank 0 has {versions[0]}", "", "install the same on all machines"
            )
