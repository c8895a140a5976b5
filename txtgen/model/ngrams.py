"""Embeddings of the n-grams that end at a token, beside that of the token itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txtgen.model.functions import dropout

PRIME, FACTOR = 2**31 - 1, 1_000_003
"""Of the hash: a product of two numbers below these fits into 64 bits."""


class NgramEmbedding(nn.EmbeddingBag):
    """The sum of one vector per order n = 2 ... N: that of the n tokens which end at a position.

    There are too many n-grams for a vector each, so each order hashes its own into `num_buckets` vectors.

    In training each vector is left out with probability `dropout`, and the others are scaled up: long n-grams are few
    times seen, and a model that leans on them learns its text by heart.

    Source: Pagnoni et al. 2024, arXiv 2412.09871, section 3.2.1; Huang et al. 2025, arXiv 2501.16975.
    """

    def __init__(self, max_order: int, num_buckets: int, width: int, dropout: float = 0.0) -> None:
        super().__init__((max_order - 1) * num_buckets, width, mode="sum")
        self.max_order, self.num_buckets, self.dropout = max_order, num_buckets, dropout

    @property
    def reach(self) -> int:
        """How many tokens before a position are looked at."""
        return self.max_order - 1

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:  # type: ignore[override]
        """Embeddings [B,N,D] of the last N of ids [B,reach+N], which stand at positions [1|B,N].

        A token counts only if it belongs to the same document, which begins at position 0.
        """
        buckets = self._buckets(ids, positions).flatten(0, 1)
        kept = None
        if self.training and self.dropout:
            kept = dropout(self.weight.new_ones(buckets.shape), self.dropout, self.training)
        return super().forward(buckets, per_sample_weights=kept).view(ids.shape[0], positions.shape[1], -1)

    def _buckets(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Rows of the table [B,N,N-1], an order each."""
        count = positions.shape[1]
        hashes = ids[:, self.reach :] + 1
        buckets = []
        for back in range(1, self.max_order):
            before = ids.narrow(1, self.reach - back, count) + 1
            hashes = (hashes * FACTOR + before * (positions >= back)) % PRIME
            buckets.append(hashes % self.num_buckets + (back - 1) * self.num_buckets)
        return torch.stack(buckets, -1)


def with_room_before(ids: Tensor, reach: int) -> Tensor:
    """Rows of ids [B,N] with `reach` zeros before each: [B,reach+N]."""
    return F.pad(ids, (reach, 0))
