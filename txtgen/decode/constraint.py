"""Rules about the text behind the tokens, which search does not know."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from txtgen.decode.filters import FORBIDDEN


class Constraint(Protocol):
    """Says which tokens may come next, whatever became of the rows that it was asked about before."""

    def allowed(self, row: int, token_ids: tuple[int, ...]) -> Tensor:
        """[V] bool: what may follow these new tokens, generated for prompt `row`."""


def constrain(scores: Tensor, generated: Tensor, rows: Sequence[int], constraints: Sequence[Constraint]) -> Tensor:
    """Forbids what any of the constraints does. scores: [R,V]. generated: [R,N]. rows: the prompt of each row."""
    sequences = [tuple(token_ids) for token_ids in generated.tolist()]
    for constraint in constraints:
        pairs = zip(rows, sequences, strict=True)
        allowed = torch.stack([constraint.allowed(row, token_ids) for row, token_ids in pairs])
        scores = scores.masked_fill(~allowed.to(scores.device), FORBIDDEN)
    return scores
