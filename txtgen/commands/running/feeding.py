"""What a run reads: the training stream from where the run is, and what is said when its files changed."""

from collections.abc import Generator
from contextlib import closing

from txtgen.commands.running.job import Job
from txtgen.commands.running.saving import Saving
from txtgen.data import Batch, Objective, StreamReport, describe, train_stream
from txtgen.errors import DataError
from txtgen.train import ReferenceTable


def training_batches(
    saving: Saving, objective: Objective, reference: ReferenceTable | None, report: StreamReport
) -> Generator[Batch]:
    """The batches of a run from where it is, changed files told in `report` and noted in its lineage.

    reference: what is known of the pairs in them, if they are pairs of answers.

    Raises:
        DataError: a file was changed since the checkpoint, or is not what it was when the stream began; naming it.
    """
    job, state, workers = saving.job, saving.state, saving.job.config.data.workers
    _require_same_corpus(job)
    stream = train_stream(
        job.config.data,
        objective,
        **job.stream_options,
        bookmark=state.bookmark or None,
        accept_changes=job.start.accept_changes,
        workers=int(job.device.type != "cpu") if workers is None else workers,
        report=report,
    )
    if report.changed_files:
        saving.changes.append({"step": state.step, "data": report.changed_files})
    return stream if reference is None else _attached(stream, reference)


def _require_same_corpus(job: Job) -> None:
    """Refuse ranks on several machines whose files differ: what one of them calls its rows, another may have learnt."""
    if job.world.size == 1:
        return
    found = [(summary.name, summary.files, summary.num_bytes) for summary in describe(job.config.data)]
    all_found = job.world.gather(found)
    for rank, theirs in enumerate(all_found):
        for number, (ours, other) in enumerate(zip(all_found[0], theirs, strict=True)):
            if ours[1:] != other[1:]:
                raise DataError(
                    f"rank {rank} finds {other[1]:,} files of {other[2]:,} bytes, rank 0 {ours[1]:,} of {ours[2]:,}",
                    f"data.sources.{number}: {ours[0]}",
                    "put the same files on every machine",
                )


def _attached(stream: Generator[Batch], reference: ReferenceTable) -> Generator[Batch]:
    with closing(stream):
        yield from reference.attach(stream)
