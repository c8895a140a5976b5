"""What the base model says of the pairs of a run that learns preferences."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from txtgen.commands.running.job import Job
from txtgen.commands.showing.console import ProgressDisplay
from txtgen.config.objectives import DpoObjective
from txtgen.data import Batch, every_batch
from txtgen.distributed import reshard
from txtgen.train import ReferenceTable, even_micro_batches, pair_logprobs


def reference_table(job: Job, display: ProgressDisplay) -> ReferenceTable | None:
    """The log-probabilities of all answers before the first step, or of a run that goes on those that were saved; None:
    the run compares no answers, or its model can tell them at any time.

    Raises:
        DataError: a pair cannot be read, or cannot be used and is not to be skipped.
    """
    if not isinstance(job.config.data.objective, DpoObjective) or job.has_base_within:
        return None
    if (resumed := job.resumed) is not None:
        return ReferenceTable.from_state(job.world.from_main(lambda: resumed["reference"]))
    batches = every_batch(job.config.data, job.objective(job.settled.data.objective), **job.stream_options)
    with display.counting("reference", batches.num_units) as advance:
        return ReferenceTable.of(_measured(job, batches, advance), job.world)


def _measured(job: Job, batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the log-probabilities [B,2] of its pairs."""
    model, kind, world = job.model.eval(), job.device.type, job.world
    for batch in batches:
        parts = even_micro_batches(model, batch, job.config.train.micro_batch_tokens, world)
        with torch.autocast(kind, dtype=job.dtype, enabled=job.dtype != torch.float32):
            found = [pair_logprobs(model, part.to(job.device)) for part in parts]
        yield batch, torch.cat(found)[: batch.input_ids.shape[0]]
        advance(world.size * batch.num_scored_rows)
    reshard(model)
