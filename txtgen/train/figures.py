"""What a step found, which the device may still be computing when the step is already over."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from txtgen.data.types import Origin

MAX_NAMED = 5
"""How many documents of a step are named in one line."""


class Figures:
    """A few numbers on their way from the device. Reading waits for them and for nothing that came after.

    Args:
        values: [N] float32, on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self.at_hand = values.device.type == "cpu"
        """Whether nothing needs to be waited for."""
        self._values = values
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        return [float(value) for value in self._values.tolist()]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did, over all ranks.

    step: counted from 1. figures: steps in a row that were not finite, gradient norm, sums of objective and loss, and
    sums of what else the loss tells under these names; the properties read them. count: of what is scored, tokens or
    pairs, that these are sums of. tokens: scored tokens of this step. positions: tokens that went through the model,
    source included. seconds: wall time of the step, waiting for data included; data_seconds: of that, waiting for data.
    flops: floating-point operations of this rank's matrix products.
    total_tokens: scored tokens up to and with this step. origins: the documents of this rank's rows.
    bookmark: the place in the stream after the step.
    """

    step: int
    figures: Figures
    names: tuple[str, ...]
    count: int
    learning_rate: float
    tokens: int
    positions: int
    seconds: float
    data_seconds: float
    flops: int
    total_tokens: int = 0
    origins: tuple[Sequence[Origin], ...] = ()
    bookmark: dict[str, Any] = field(default_factory=dict)

    @property
    def objective_loss(self) -> float:
        """What was minimised, per token or pair."""
        return self.figures.read()[2] / max(1, self.count)

    @property
    def loss(self) -> float:
        """Plain negative log-likelihood, nats per token; of the preference, per pair, where answers are compared."""
        return self.figures.read()[3] / max(1, self.count)

    @property
    def told(self) -> dict[str, float]:
        """What else the loss tells, means per pair, by name."""
        return {
            name: value / max(1, self.count) for name, value in zip(self.names, self.figures.read()[4:], strict=True)
        }

    @property
    def grad_norm(self) -> float:
        """Of the gradient per token, before clipping."""
        return self.figures.read()[1]

    @property
    def non_finite(self) -> int:
        """How many steps in a row, up to this one, left the weights as they were because of such a loss or gradient."""
        return int(self.figures.read()[0])

    @property
    def fault(self) -> str:
        """What is not finite, if anything is, and for how long."""
        if not self.non_finite:
            return ""
        what = "the gradient is not finite" if math.isfinite(self.loss) else "the loss is not finite"
        return what + (f", {self.non_finite} steps in a row" if self.non_finite > 1 else "")

    @property
    def documents(self) -> list[str]:
        """The names of the documents of this rank's rows."""
        return sorted({str(origin) for row in self.origins for origin in row})


def named(documents: list[str]) -> str:
    """The first of these documents, and how many there are."""
    more = f" and {len(documents) - MAX_NAMED:,} more" if len(documents) > MAX_NAMED else ""
    return ", ".join(documents[:MAX_NAMED]) + more
