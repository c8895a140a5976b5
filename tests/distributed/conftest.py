from collections.abc import Iterator

import pytest
from rank_pool import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Two ranks, for all tests."""
    pool = RankPool()
    yield pool
    pool.close()
