from collections.abc import Iterator

import pytest
from rank_pool import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Two ranks, for all tests."""
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def three_ranks() -> Iterator[RankPool]:
    """As many as it takes for the order of a sum to matter."""
    pool = RankPool(3)
    yield pool
    pool.close()
