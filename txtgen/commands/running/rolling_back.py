"""What becomes of a run whose loss or gradient is not finite: it tells where all was well, or goes back there."""

import logging
from typing import Any

from txtgen.commands.running.run_record import resume_command
from txtgen.commands.running.saving import Saving
from txtgen.commands.running.weights import read_once, take_over
from txtgen.data import merge_bookmarks
from txtgen.distributed import reshard
from txtgen.errors import DivergedError
from txtgen.train import StepReport, WeightAverage, named

logger = logging.getLogger(__name__)


def roll_back(saving: Saving, report: StepReport) -> dict[str, Any]:
    """Put the run where its newest checkpoint is, but for the place in the data: that is behind the step at fault. So
    what was read since the checkpoint is left out, and more of the corpus is read instead. All ranks do so together.

    Source: Chowdhery et al. 2022, arXiv 2204.02311, section 5.1 (go back, and leave out the batches around a spike).

    Args:
        saving: of the run; it notes the roll-back in the lineage of all later checkpoints.
        report: of the step that is not finite.

    Returns:
        The training state of the checkpoint.

    Raises:
        DivergedError: the run is not to roll back, or did so as often as it may to this checkpoint.
    """
    job, state, world, most = saving.job, saving.state, saving.job.world, saving.config.max_non_finite
    rows = world.gather(report.documents)
    documents = sorted({document for row in rows for document in row})
    logger.info("documents of step %d: %s", report.step, ", ".join(documents))
    world.from_main(saving.settle)
    if saving.config.on_non_finite != "roll_back":
        raise _diverged(saving, report, documents)
    path, checkpoint, warnings = read_once(job.folder.newest, world)
    assert checkpoint.training is not None
    training, step = checkpoint.training, checkpoint.training["step"]
    times = 1 + sum("rolled_back_from" in change and change["step"] == step for change in saving.changes)
    if times > most:
        raise _diverged(saving, report, documents, f", after {most} roll-backs to step {step}")
    for warning in warnings:
        logger.warning(warning)
    logger.warning(
        "step %d: %s; back to step %d, and on behind the documents %s (roll-back %d of %d)",
        *(report.step, report.fault, step, named(documents), times, most),
    )
    world.from_main(lambda: job.folder.go_on_from(step, saving.config.keep_last, saving.config.keep_every))
    # What the memory allows and what was compiled is still so, and best.pth is what it is.
    kept = saving.best, state.micro_batch_tokens, state.compilation
    reshard(state.model)
    take_over(saving.weights(), checkpoint, str(path), world)
    if saving.config.ema_decay is not None:
        state.average = WeightAverage(state.model, saving.config.ema_decay)
    saving.restore(training)
    saving.best, state.micro_batch_tokens, state.compilation = kept
    state.bookmark = merge_bookmarks(world.gather(report.bookmark))
    saving.changes.append({"step": step, "rolled_back_from": report.step, "fault": report.fault})
    return training


def _diverged(saving: Saving, report: StepReport, documents: list[str], more: str = "") -> DivergedError:
    """The end of a run, with where it was well last and what to do from there. All ranks ask together."""
    advice = saving.job.world.from_main(lambda: _advice(saving, report.step, rolled_back=bool(more)))
    return DivergedError(report.fault, f"step {report.step}{more}, documents {named(documents)}", advice)


def _advice(saving: Saving, step: int, rolled_back: bool) -> str:
    """What to do about a step that is not finite, by the checkpoints that there are."""
    job, rate = saving.job, saving.job.config.train.optimizer.learning_rate or 0.0
    anew = "start again with a lower learning rate or a longer warm-up"
    if saving.last is None:
        return f"{anew}; nothing was saved yet"
    lower = resume_command(
        job.command, job.folder.path, "--accept-changes", "--set", f"train.optimizer.learning_rate={rate / 2:g}"
    )
    without = resume_command(job.command, job.folder.path, "--set", "train.on_non_finite=roll_back")
    saved = [path for _, path in job.folder.steps()]
    if saving.last != job.folder.step_path(step - 1):
        advice = f"the last good checkpoint is {saving.last}; go on from there with a lower learning rate: {lower}"
        return advice if rolled_back else f"{advice} or without these documents: {without}"
    # This step's loss and gradient come of that checkpoint's weights: no learning rate has a part in them.
    told = f"the weights of {saving.last}, just before it, may be at fault themselves"
    ways = [] if rolled_back else [f"leave out these documents: {without}"]
    if len(saved) > 1:
        ways.append(f"remove that file and go on from {saved[-2]} with a lower learning rate: {lower}")
    return f"{told}; {'; or '.join([*ways, anew])}"
