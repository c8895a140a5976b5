"""How ranks find one another: in a store that outlives them when they are started again.

torchrun's agents, and `--nproc`, keep one store for as long as they run. What lost ranks wrote is still in it, and each
agent counts restarts by itself, some not at all. So ranks agree anew which part of the store is theirs.
"""

import time
import uuid
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # the stubs lack it
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

LAUNCH = "txtgen/launch"
"""Where in the store a launch has its name."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks have met. store: of these ranks alone. launch: the same for all that one launch starts, also
    again, and for no others."""

    store: Store
    rank: int
    size: int
    launch: str


def host_launch() -> tuple[TCPStore, str]:
    """A store in this process, for the ranks that it starts on this machine, and the name of the launch."""
    store, launch = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), uuid.uuid4().hex
    store.set(LAUNCH, launch)
    return store, launch


def meet(timeout: timedelta) -> Meeting:
    """Meet the ranks that the environment describes, as torchrun sets it.

    Raises:
        RuntimeError, ValueError: the store or a rank cannot be reached, or the environment is incomplete.
    """
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    launch = store.compare_set(LAUNCH, "", uuid.uuid4().hex).decode()
    name = _admit(store, size, timeout.total_seconds()) if rank == 0 else _be_admitted(store, rank, timeout)
    return Meeting(PrefixStore(name, store), rank, size, launch)


def _admit(store: Store, size: int, seconds: float) -> str:
    """Name a part of the store, and tell every rank that asks until all are there. A lost one may have asked before."""
    name, missing, end = f"txtgen/{uuid.uuid4().hex}", set(range(1, size)), time.monotonic() + seconds
    while missing:
        for rank in sorted(missing):
            if store.check([f"txtgen/asks/{rank}"]):
                store.set(f"txtgen/answer/{store.get(f'txtgen/asks/{rank}').decode()}", name)
            if store.check([f"{name}/is here/{rank}"]):
                missing.remove(rank)
        if missing and time.monotonic() > end:
            raise RuntimeError(f"rank {min(missing)} did not come")
        time.sleep(0.02 * bool(missing))
    return name


def _be_admitted(store: Store, rank: int, timeout: timedelta) -> str:
    """Ask rank 0, with a word that nobody asked with before, which part of the store is ours."""
    word = uuid.uuid4().hex
    store.set(f"txtgen/asks/{rank}", word)
    store.wait([f"txtgen/answer/{word}"], timeout)
    name = store.get(f"txtgen/answer/{word}").decode()
    store.set(f"{name}/is here/{rank}", "")
    return name
