"""Losses that jump out of their usual range: the first sign of a learning rate that is too high, or of bad text."""

import math
from dataclasses import dataclass, field

WARMUP_STEPS = 20
"""So many losses are looked at before one can be unusual."""
DEVIATIONS, SHARE = 8.0, 0.2
"""A spike is so many usual deviations above the usual loss, and by at least this share of it."""
MEMORY = 0.95


@dataclass
class SpikeWatch:
    """Follows the loss: its running mean and mean deviation, of the last twenty steps or so.

    steps: those at which a spike began.
    """

    steps: list[int] = field(default_factory=list)
    _mean: float = 0.0
    _deviation: float = 0.0
    _seen: int = 0
    _high: bool = False

    def add(self, step: int, loss: float) -> float | None:
        """Take up the loss of a step. The usual loss if a spike begins with this one, else None."""
        distance = loss - self._mean
        high = self._seen >= WARMUP_STEPS and distance > max(DEVIATIONS * self._deviation, SHARE * abs(self._mean))
        begins, usual = high and not self._high, self._mean
        self._high = high
        self._seen += 1
        keep = min(MEMORY, 1 - 1 / self._seen)
        if math.isfinite(loss):
            self._mean += (1 - keep) * distance
            self._deviation += (1 - keep) * (abs(distance) - self._deviation) if self._seen > 1 else 0.0
        if begins:
            self.steps.append(step)
        return usual if begins else None
