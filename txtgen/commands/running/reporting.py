"""What is told of a run in progress: on the screen, in its log, and in its metrics."""

import logging
import shlex

import torch

from txtgen.commands.running.job import Job
from txtgen.commands.running.journal import Journal
from txtgen.commands.running.run_record import resume_command
from txtgen.commands.showing.console import ProgressDisplay, duration
from txtgen.commands.showing.run_tables import MEASURES
from txtgen.data import StreamReport
from txtgen.errors import TxtgenError
from txtgen.generator import Generation
from txtgen.train import Contention, Speed, SpikeWatch, StepReport, TrainState

logger = logging.getLogger(__name__)


class Reporter:
    """Tells people and files how a run goes on. Only that of rank 0 is heard."""

    def __init__(self, job: Job, display: ProgressDisplay, journal: Journal) -> None:
        self.job, self.display, self.journal = job, display, journal
        self._speed, self._spikes = Speed(job.device, job.dtype), SpikeWatch()
        threads = torch.get_num_threads() if job.device.type == "cpu" and job.world.size == 1 else None
        self._contention = None if threads is None else Contention(threads)
        self._told: set[str] = set()
        """What is said once."""
        self._micro_batch: int | None = None

    def step(self, report: StepReport, end: int, seconds: float) -> None:
        """A step of a run that ends with step `end`, and now and then its line of metrics. seconds: of the run."""
        self.job.start.status.beat(step=report.step, loss=None if report.non_finite else report.loss)
        if report.non_finite:
            logger.warning("step %d is left out: %s", report.step, report.fault)
            return
        self.display.step(report)
        self._speed.add(report)
        if usual := self._spikes.add(report.step, report.loss):
            logger.warning("the loss jumped at step %d: %.4f after about %.4f", report.step, report.loss, usual)
        if report.step % self.job.config.train.log_every == 0 or report.step in (1, end):
            self._metrics(report, seconds)

    def _metrics(self, report: StepReport, seconds: float) -> None:
        speed = self._speed.take()
        self.display.speed(speed)
        crowded = self._contention.warning() if self._contention is not None else None
        if crowded is not None:
            self.display.note(crowded)
            self._contention = None  # told once
        self.journal.write(
            {
                "step": report.step,
                "loss": report.loss,
                "objective_loss": report.objective_loss,
                **report.told,
                "learning_rate": report.learning_rate,
                "grad_norm": report.grad_norm,
                "tokens": report.total_tokens,
                **speed,
                "seconds": seconds,
            }
        )
        logger.info("step %d loss %.4f grad_norm %.3f", report.step, report.loss, report.grad_norm)

    def changes(self, state: TrainState) -> None:
        """That micro-batches have become smaller; once, why layers are not compiled that were meant to be, or that
        they are other than before."""
        now, found = state.micro_batch_tokens, state.compilation
        if now is not None and now != self._micro_batch:
            self._micro_batch = now
            self.complain(f"memory {now}", f"memory ran out: from now on {now:,} tokens go through the model at once")
        if found.told and "compile" not in self._told:
            expected = self.job.config.train.compile == "auto" and found.before is None
            logger.log(logging.INFO if expected else logging.WARNING, "train.compile: %s", found.told)
            self._told.add("compile")

    def reading(self, report: StreamReport) -> None:
        """What is odd about conversations that were read, each kind once."""
        for what, found in report.oddities.items():
            if what not in self._told:
                self.complain(what, f"odd conversations: {what}, first at {found.places[0]}; counted at the end")

    def complain(self, about: str, told: str) -> None:
        """Something went wrong which does not keep the run from going on; aloud the first time."""
        logger.log(logging.INFO if about in self._told else logging.WARNING, told)
        self._told.add(about)

    def validation(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """What was measured on held-out text. seconds: of the run."""
        self.display.validation(metrics)
        self.job.start.status.beat(validation={"step": step, **metrics})
        self.journal.write({"step": step, **metrics, "seconds": seconds})
        logger.info("validation at step %d: %s", step, metrics)

    def sample(self, step: int, generation: Generation, joint: str) -> None:
        """What was generated for a prompt, the joint between them."""
        self.display.sample(generation.prompt, generation.text, joint)
        self.journal.sample(step, generation)
        logger.info("sample at step %d: %r -> %r", step, generation.prompt, generation.text)

    def failure(self, what: str, step: int, error: Exception) -> None:
        """Something beside training failed, by a fault of ours or for want of memory."""
        logger.info("%s at step %d failed", what, step, exc_info=error)
        told = str(error) if isinstance(error, TxtgenError) else repr(error)
        self.complain(what, f"{what} at step {step} failed, and training goes on: {told}")

    def irregularities(self, report: StreamReport) -> None:
        """What was not as it should be in what was read, and in how it was learnt."""
        if report.bad_records:
            bad = f"skipped, as bad, {report.bad_records:,} of {report.records:,} records read"
            self.display.note(f"{bad}, such as {report.bad_examples[0]}")
        if report.cut_examples:
            length, most = self.job.row_length, self.job.model.config.max_length
            cut = f"in {report.records:,} records read cut {report.cut_examples:,} examples"
            rows = f"{length:,} tokens (train.sequence_length, at most {most:,})"
            self.display.note(f"{cut} that were too long for {rows} or for the source")
        for what, found in report.oddities.items():
            places = ", ".join(found.places)
            self.display.note(f"odd, in {found.count:,} of {report.records:,} records read: {what}, such as {places}")
        if steps := self._spikes.steps:
            more = f" and {len(steps) - 1} times after" if len(steps) > 1 else ""
            self.display.note(f"the loss jumped at step {steps[0]}{more}")

    def end(self, told: str, seconds: float, best: dict[str, float], *, resumable: bool) -> None:
        """How the run ended, and what to do next.

        Args:
            told: in what state, at which step.
            seconds: of the run.
            best: the best validation metrics, with their step.
            resumable: whether there is something left to do.
        """
        folder = self.job.folder.path
        metric = self.job.config.train.validation_metric
        measured = f", best validation {best['val_loss']:.4f} at step {best['step']}" if best else ""
        if best and metric != "loss":
            name, spec = MEASURES[f"val_{metric}"]
            measured = f", best {name} {best[f'val_{metric}']:{spec}} at step {best['step']}"
        self.display.note(f"{told} after {duration(seconds)}{measured}: {folder}")
        if resumable:
            self.display.note(f"resume:   {resume_command(self.job.command, folder)}")
        self.display.note(f"generate: txtgen generate {shlex.quote(str(folder))} --prompt TEXT")
