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


def constrain(
    scores: Tensor, said: Sequence[tuple[int, ...]], rows: Sequence[int], constraints: Sequence[Constraint]
) -> Tensor:
    """Forbids what any of the constraints does. scores: [R,V]. said: new tokens of each row. rows: their prompts."""
    for constraint in constraints:
        allowed = torch.stack(list(map(constraint.allowed, rows, said)))
        scores = scores.masked_fill(~allowed.to(scores.device), FORBIDDEN)
    return scores
