"""What a rank learns when another fails, stands still or is gone. Every case ends its world, so each has its own."""

import os
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
from rank_pool import RankPool

from txtgen.distributed import World
from txtgen.errors import DataError, DistributedError, ResourceError

pytestmark = pytest.mark.slow


def told(work: Any) -> tuple[str, int, str]:
    try:
        work()
    except (DataError, DistributedError, ResourceError) as error:
        return type(error).__name__, error.exit_code, str(error)
    return "nothing", 0, ""


def fail(world: World) -> Any:
    """Rank 1 fails of its own, as it would on its way out of `open_world`, while rank 0 waits for it."""
    if world.rank == 1:
        world.peers._tell(DataError("cannot read", "corpus.txt", "mend it"))
        torch.distributed.destroy_process_group()
        return None
    return told(lambda: world.sum([1.0]))


def fail_alone(world: World) -> Any:
    """Rank 0 fails in what it does alone."""

    def make() -> None:
        raise ResourceError("the disk is full", "runs", "free space")

    def work() -> None:
        try:
            world.from_main(make)
        except ResourceError as error:
            world.peers._tell(error)
            raise

    return told(work)


def stand_still(world: World) -> Any:
    """Rank 1 lives and does not come."""
    if world.rank == 1:
        time.sleep(30)
        return None
    return told(lambda: world.sum([1.0]))


def fail_otherwise(world: World) -> Any:
    """Rank 0 has an error of its own while rank 1 is behind: no reason to blame it."""
    if world.rank == 1:
        time.sleep(2)
        return None
    try:
        with world.together():
            raise RuntimeError("shapes do not fit")
    except RuntimeError as error:
        return str(error)


def be_killed(world: World) -> Any:
    if world.rank == 1:
        os._exit(9)
    return told(lambda: world.sum([1.0]))


@pytest.fixture
def world_of_two() -> Any:
    pool = RankPool(timeout=timedelta(seconds=20))
    yield pool
    pool.close()


def test_the_reason_of_a_rank_is_that_of_all(world_of_two) -> None:
    found, _ = world_of_two.run(fail)
    assert found == ("DataError", 4, "rank 1: cannot read; corpus.txt; mend it")


def test_an_error_of_rank_0_alone_is_raised_everywhere(world_of_two) -> None:
    first, second = world_of_two.run(fail_alone)
    assert first == ("ResourceError", 6, "the disk is full; runs; free space")
    assert second == ("ResourceError", 6, "rank 0: the disk is full; runs; free space")


def test_a_rank_that_stands_still_is_named(world_of_two) -> None:
    (kind, code, message), _ = world_of_two.run(stand_still)
    assert (kind, code) == ("DistributedError", 8)
    assert message.startswith("rank 1 (process ")
    assert "did not come to where the others wait" in message


def test_no_rank_is_blamed_for_an_error_of_ones_own(world_of_two) -> None:
    assert world_of_two.run(fail_otherwise)[0] == "shapes do not fit"


def test_a_rank_that_is_gone_is_named(world_of_two) -> None:
    kind, code, message = world_of_two.run(be_killed)[0]
    assert (kind, code) == ("DistributedError", 8)
    assert message.startswith("rank 1 (process ")
    assert "is gone or stopped" in message
