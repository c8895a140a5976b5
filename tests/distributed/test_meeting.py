"""Ranks meet in a store in which lost ranks have been before, and know by it that one launch started them all."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from txtgen.distributed import meeting
from txtgen.distributed.meeting import Meeting, host_launch, meet

TIMEOUT = timedelta(seconds=20)


@pytest.fixture
def attempt(monkeypatch):
    """Lets the ranks of one attempt meet in the store of a launch, each in a thread of its own."""

    def come(store, *ranks: int, size: int = 2, timeout: timedelta = TIMEOUT) -> list[Meeting]:
        def rendezvous(_, timeout):
            yield store.clone(), rank_of.pop(), size  # a client for each: one that waits is busy

        monkeypatch.setattr(meeting, "rendezvous", rendezvous)
        rank_of = [*ranks]
        with ThreadPoolExecutor(len(ranks)) as threads:
            waiting = [threads.submit(meet, timeout) for _ in ranks]
            return sorted((one.result() for one in waiting), key=lambda found: found.rank)

    return come


def test_each_attempt_has_a_part_of_the_store_for_itself(attempt) -> None:
    store, launch = host_launch()
    with pytest.raises(RuntimeError):
        attempt(store, 1, timeout=timedelta(seconds=0.1))  # lost before rank 0 came: its question stays
    seen = set()
    for number in range(3):
        first, second = attempt(store, 0, 1)
        assert (first.rank, second.rank) == (0, 1)
        assert first.launch == second.launch == launch
        assert not first.store.check(["failure"])
        second.store.set("failure", f"of attempt {number}")
        assert first.store.get("failure") == f"of attempt {number}".encode()
        seen.add(first.store.get("failure"))
    assert len(seen) == 3


def test_a_rank_that_does_not_come_is_named(attempt) -> None:
    with pytest.raises(RuntimeError, match="rank 1 did not come"):
        attempt(host_launch()[0], 0, timeout=timedelta(seconds=0.1))


def test_another_launch_has_another_name(attempt) -> None:
    names = {attempt(host_launch()[0], 0, size=1)[0].launch for _ in range(3)}
    assert len(names) == 3
