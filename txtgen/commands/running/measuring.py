"""Text on which a run measures its model: how validation, what is forgotten, and a dry run measure it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, takewhile

from txtgen.commands.running.job import Job
from txtgen.commands.running.signals import StopRequest
from txtgen.data import Batch
from txtgen.evaluate import LossMetrics, evaluate_loss
from txtgen.train import Loss, ReferenceTable


@dataclass(frozen=True, slots=True)
class MeasuredText:
    """parts: batches by name, as many on each rank; the same at every pass. most: so many of each part; None: all.
    loss: what is measured; None: cross-entropy. reference: what the base model says of pairs of answers."""

    parts: Mapping[str, Iterable[Batch]]
    most: int | None = None
    loss: Loss | None = None
    reference: ReferenceTable | None = None

    def measure(self, job: Job, stop: StopRequest, max_tokens: int | None) -> dict[str, LossMetrics] | None:
        """The metrics of each part, over all ranks; None if any rank was asked to stop, before whichever batch.

        Args:
            job: whose model is measured.
            stop: what asks this rank.
            max_tokens: as for `evaluate_loss`.

        Raises:
            OutOfMemoryError: as for `evaluate_loss`.
        """
        world, found = job.world, {}
        for name, batches in self.parts.items():
            wanted: Iterable[Batch] = takewhile(lambda _: not world.any(bool(stop)), islice(batches, self.most))
            if self.reference is not None:
                wanted = self.reference.attach(wanted)
            found[name] = evaluate_loss(job.model, wanted, job.dtype, world, max_tokens, self.loss)
            if world.any(bool(stop)):
                return None
        return found
