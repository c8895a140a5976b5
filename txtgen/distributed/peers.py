"""How a rank learns what became of the others: each tells that it lives, how far it came, and why it fails.

Collectives cannot tell: a rank that is gone shows as a closed connection or as silence, without its name or reason.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.distributed.distributed_c10d import Store

from txtgen.errors import DistributedError, TxtgenError

BEAT_SECONDS = 0.5
PATIENCE_SECONDS = 3.0
"""How long a rank looks for the reason why a collective failed: a living rank beats several times meanwhile."""
SILENCE_SECONDS = 60.0
"""After so long without a beat a rank is taken for gone by those who wait for it outside a collective."""

FAILURE = "failure"


class Peers:
    """What the ranks tell each other beside the collectives.

    Args:
        store: that all ranks share.
        rank: of this process.
        size: number of ranks.
        name: of this process, for people: where it runs.
    """

    def __init__(self, store: Store, rank: int, size: int, name: str) -> None:
        self._store, self.rank, self.size, self._name = store, rank, size, name
        self._entered = 0
        self._made = 0
        self._end = threading.Event()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Tell the others that this rank lives while the block runs, and why it failed if it does."""
        self._store.set(f"name/{self.rank}", self._name)
        self._store.set(f"beat/{self.rank}", "0 0")
        own = self._store.clone()  # type: ignore[attr-defined]  # the stubs lack it
        thread = threading.Thread(target=self._beat, args=(own,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            self._tell(error)
            raise
        finally:
            self._end.set()
            thread.join()

    def _beat(self, store: Store) -> None:
        beats = 0
        with suppress(RuntimeError):  # the store went away with the process that holds it: nobody is left to tell
            while not self._end.wait(BEAT_SECONDS):
                beats += 1
                store.set(f"beat/{self.rank}", f"{beats} {self._entered}")

    def enter(self) -> None:
        """Count a collective that this rank is about to enter."""
        self._entered += 1

    def _tell(self, error: BaseException) -> None:
        """Tell why this rank fails, unless another one failed before."""
        if isinstance(error, TxtgenError):
            parts: list[Any] = [error.exit_code, error.what, error.where, error.fix]
        elif isinstance(error, KeyboardInterrupt):
            parts = [getattr(error, "exit_code", 130), "stopped at once", "", ""]
        else:
            parts = [TxtgenError.exit_code, f"{type(error).__name__}: {error}", "", ""]
        with suppress(RuntimeError):
            first = json.loads(self._store.compare_set(FAILURE, "", json.dumps([self.rank, *parts])))
            if isinstance(error, TxtgenError) and first[0] != self.rank and first[1:3] == parts[:2]:
                error.told = True

    def failure(self) -> BaseException | None:
        """Why another rank failed, in this rank's words, or None."""
        if not self._store.check([FAILURE]):
            return None
        rank, code, what, where, fix = json.loads(self._store.get(FAILURE))
        if code >= 128:
            interrupt = KeyboardInterrupt(f"rank {rank} was stopped at once")
            interrupt.exit_code = code  # type: ignore[attr-defined]
            return interrupt
        kind = {kind.exit_code: kind for kind in TxtgenError.__subclasses__()}.get(code, TxtgenError)
        error = kind(what if kind is DistributedError else f"rank {rank}: {what}", where, fix)
        error.told = self.rank != 0  # rank 0 repeats it: what the other one said may stand on another machine
        return error

    def verdict(self) -> BaseException:
        """Which rank is to blame for a collective that failed, and why, as far as that is known."""
        try:
            before, end = self._beats(), time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < end:
                if (failure := self.failure()) is not None:
                    return failure
                time.sleep(BEAT_SECONDS / 5)
            after = self._beats()
            others = [rank for rank in range(self.size) if rank != self.rank]
            if silent := [rank for rank in others if after[rank] == before[rank]]:
                return self._gone(silent)
            if behind := [rank for rank in others if after[rank][1] < self._entered]:
                return self._late(self._named(behind))
            return self._late(f"one of {self._named(others)}" if len(others) > 1 else self._named(others))
        except RuntimeError:
            return DistributedError(
                "the process that connects the ranks is gone", f"rank {self.rank}", "look at what it said; resume"
            )

    def _late(self, named: str) -> DistributedError:
        return DistributedError(
            f"{named} did not come to where the others wait",
            f"rank {self.rank}",
            "look at what holds it up, or raise train.rank_timeout_seconds",
        )

    def _gone(self, ranks: list[int]) -> DistributedError:
        return DistributedError(
            f"{self._named(ranks)} is gone or stopped", f"rank {self.rank}", "look at what it said; resume the run"
        )

    def _named(self, ranks: list[int]) -> str:
        names = [f"rank {rank} ({self._store.get(f'name/{rank}').decode()})" for rank in ranks[:5]]
        return ", ".join(names) + (f" and {len(ranks) - 5} more" if len(ranks) > 5 else "")

    def _beats(self) -> list[tuple[int, int]]:
        """Of each rank how often it has beaten, and how many collectives it has entered."""
        values = self._store.multi_get([f"beat/{rank}" for rank in range(self.size)])
        return [(int(beats), int(entered)) for beats, entered in (value.decode().split() for value in values)]

    def announce(self) -> None:
        """Tell the others, who `wait`, that rank 0 has made something."""
        self._made += 1
        with suppress(RuntimeError):  # without a store they wait in the collective that follows
            self._store.set(f"made/{self._made}", "")

    def wait(self) -> None:
        """Wait until rank 0 has made something, however long it takes, for as long as it lives.

        Raises:
            TxtgenError: what rank 0, or another rank, failed of.
        """
        self._made += 1
        beat, since = (-1, -1), time.monotonic()
        with suppress(RuntimeError):  # without a store, as above
            while not self._store.check([f"made/{self._made}"]):
                if (failure := self.failure()) is not None:
                    raise failure
                if (now := self._beats()[0]) != beat:
                    beat, since = now, time.monotonic()
                elif time.monotonic() - since > SILENCE_SECONDS:
                    raise self._gone([0])
                time.sleep(0.02)
