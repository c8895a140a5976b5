"""A run in progress: the loop, and everything that happens around its steps."""

import time
from collections.abc import Callable, Iterator
from collections.abc import Generator as Batches
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from txtgen.checkpoint import LoadedModel
from txtgen.commands.running.feeding import training_batches
from txtgen.commands.running.job import Job
from txtgen.commands.running.journal import Journal
from txtgen.commands.running.pacing import Pace
from txtgen.commands.running.reference import reference_table
from txtgen.commands.running.reporting import Reporter
from txtgen.commands.running.rolling_back import roll_back
from txtgen.commands.running.sampling import Samples
from txtgen.commands.running.saving import Saving, checkpoint_config
from txtgen.commands.running.signals import EXIT_CODES, Interrupted
from txtgen.commands.running.status import State
from txtgen.commands.running.validation import Validation
from txtgen.commands.showing.console import ProgressDisplay
from txtgen.config.loader import dump_config
from txtgen.data import Batch, StreamReport
from txtgen.distributed import is_sharded
from txtgen.errors import ConfigError, DataError, OutOfMemoryError, TxtgenError
from txtgen.generator import Generator
from txtgen.memory import give_back_free_memory
from txtgen.train import (
    NonFiniteError,
    StepReport,
    TrainState,
    WeightAverage,
    build_optimizer,
    checkpoint_activations,
    refuse_non_finite,
    train,
)

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: its folder, the steps done, the best validation metrics, and the signal that stopped it."""

    folder: Path
    step: int
    metrics: dict[str, float]
    stopped_by: str | None = None

    @property
    def exit_code(self) -> int:
        """0, or what the signal demands."""
        return EXIT_CODES[self.stopped_by] if self.stopped_by else 0


class Session:
    """A run in progress: the loop, and when it validates, samples and saves."""

    def __init__(self, job: Job, display: ProgressDisplay, journal: Journal) -> None:
        began, config, resumed = time.monotonic(), job.config.train, job.resumed
        self.job, self.display, self.journal = job, display, journal
        self.status, self.stop = job.start.status, job.start.stop
        if config.activation_checkpointing:
            checkpoint_activations(job.model)
        self.state = TrainState(job.model, build_optimizer(job.model, config.optimizer))
        if config.ema_decay is not None:
            self.state.average = WeightAverage(job.model, config.ema_decay)
        self.saving = Saving(job, self.state)
        data = job.settled.data
        self.objective = job.objective(data.training_objective, data.subword_sampling)
        loaded = LoadedModel(job.model, job.tokenizer, job.source_tokenizer, checkpoint_config(job))
        self.generator = Generator(loaded, batch_size=64)
        self.reference = reference_table(job, display)
        self.validation = Validation(job, job.objective(data.objective), self.generator, self.reference)
        self.samples = Samples(job, self.generator)
        self.reporter = Reporter(job, display, journal)
        self.reading = StreamReport()
        self.unread: list[StepReport] = []
        """Steps whose figures may still be on their way."""
        self.better: dict[str, float] | None = None
        """What was measured of a model that is the best so far, until it is saved."""
        self.told: Path | None = None
        """The checkpoint that status.json tells of."""
        if resumed is not None:
            self.saving.restore(resumed)
            self.validation.restore(resumed)
            began -= resumed["seconds"]
            self.status.set("starting", step=self.state.step)
        self.pace = Pace(job, self.state, began)
        give_back_free_memory()  # of what was read for this

    @property
    def is_alone(self) -> bool:
        """Whether no other rank is there to be met."""
        return self.job.world.size == 1

    def progress(self) -> dict[str, Any]:
        """What the training state of a checkpoint holds beside that of the loop."""
        known = {} if self.reference is None else {"reference": self.reference.state()}
        return {**self.validation.progress(), **known, "seconds": self.pace.elapsed()}

    def run(self) -> RunResult:
        """The loop with everything around it.

        Raises:
            ResourceError: there is no room on the disk for what will be saved.
        """
        if self.job.world.is_main:
            self.job.folder.forget_after(self.state.step)  # what a killed start did beyond is done again
        self.job.world.from_main(self.saving.require_room)
        with self.stop.deferred():
            if self.saving.saved < self.state.step:
                self.save_at_last()  # a run that goes on from the checkpoint of another one can then be resumed itself
                self.settle_in()
            elif self.job.config.train.on_non_finite == "roll_back" and self.job.resumed is None:
                self.save(resumable=True)  # or there is nowhere to go back to
            if self.validation_is_owed():
                self.validate()
                self.save(resumable=True)
            if told := self.nothing_to_do():
                self.save_at_last()
                if not self.state.step:
                    raise ConfigError(f"there is nothing to do: {told}", "train.minutes", "give it more time")
                self.display.note(f"nothing to do in {self.job.folder.path}: {told}")
                self.status.set("finished", step=self.state.step, exit_code=0)
                return self.result(None)
            self.settle_in()
            self.journal.begin(self.state.step, self.reading)
            self.status.set("running", step=self.state.step, steps=self.pace.end)
            with self.kept_before_errors():
                if not self.state.step:
                    self.measure_base()
                if not self.must_stop():
                    self.learn()
                if self.validation.step < self.state.step and not self.must_stop():
                    self.validate()
            self.save_at_last()
        return self.finish()

    @contextmanager
    def kept_before_errors(self) -> Iterator[None]:
        """Save what has been learnt before an error of the corpus ends the run, where no other rank has to help.

        Raises:
            DataError: that error, with the checkpoint to go on from.
        """
        try:
            yield
        except DataError as error:
            if self.is_alone:
                with suppress(TxtgenError):  # the first error is the one to mend
                    self.take_up(wait=True)
                    self.save_at_last()
                    self.status.set("running", step=self.state.step)
            if self.job.world.is_main:  # no other rank knows what was saved
                last = f"the last checkpoint is {self.saving.last}" if self.saving.last else "nothing was saved yet"
                error.where = f"{error.where or 'the corpus'}, after step {self.state.step}"
                error.fix = "; ".join(filter(None, (error.fix, last)))
            raise

    def settle_in(self) -> None:
        """Say in the run's folder by which config it goes on."""
        if self.job.world.is_main:
            self.job.folder.write_text(self.job.folder.config, dump_config(self.job.config))

    def nothing_to_do(self) -> str:
        """Why a resumed run has nothing left to do, if it has not."""
        if self.pace.is_over:
            return f"{self.state.step} of {self.pace.end} steps are done"
        if self.pace.time_is_up():
            return "the time of the run is over; raise train.minutes"
        if self.validation.out_of_patience:
            return f"{self.validation.no_better} validations without a better one; raise train.patience"
        return ""

    # -- steps

    def learn(self) -> None:
        """Train from where the run is, and after a roll-back from there."""
        while True:
            with closing(self.batches(self.reading)) as batches:
                for line in self.reading.changed_files:
                    self.display.note(f"another corpus than before: {line}")
                try:
                    return self.steps(batches)
                except NonFiniteError as error:
                    report = error.report  # not the error, which holds on to all that the step had in memory
            self.recover(report)

    def recover(self, report: StepReport) -> None:
        """Go back from a step that is not finite.

        Raises:
            DivergedError: the config does not say so, or it came to this too often.
        """
        training = roll_back(self.saving, report)
        self.unread.clear()
        self.validation.restore(training)
        self.journal.go_back(self.state.step)
        self.pace.go_back()
        self.status.set("running", step=self.state.step)
        self.save(resumable=True)  # the same step with another place in the data, for whoever resumes

    def batches(self, report: StreamReport) -> Batches[Batch]:
        """The batches to train on from where the run is; what is met in reading is counted in the report."""
        return training_batches(self.saving, self.objective, self.reference, report)

    def steps(self, batches: Iterator[Batch]) -> None:
        """Train until the steps are done or something asks to stop, and do what is due on the way."""
        job, config, pace = self.job, self.job.config.train, self.pace
        seed = job.config.seed
        for report in train(self.state, batches, config, dtype=job.dtype, seed=seed, world=job.world, loss=job.loss):
            self.take_up_save()
            self.unread.append(report)
            self.take_up(wait=pace.acts())
            self.reporter.changes(self.state)
            self.reporter.reading(self.reading)
            if pace.is_due(config.validate_every) and not self.must_stop():
                self.validate()
            if pace.is_due(job.config.samples.every) and not self.must_stop():
                self.sample()
            if self.must_stop():
                self.take_up(wait=True)
                return
            if pace.must_be_fitted():
                self.fit_into_time()
            self.save(resumable=pace.is_due(config.save_every))
            if self.validation.out_of_patience:
                return

    def take_up(self, wait: bool) -> None:
        """Log the steps whose figures are at hand, which on a GPU are all but the last, or wait for all.

        Raises:
            NonFiniteError: they are not finite; nobody may act on the weights before they are known.
        """
        while self.unread and (wait or len(self.unread) > 1 or self.unread[0].figures.at_hand):
            refuse_non_finite(self.unread[0], self.job.config.train)
            self.log(self.unread.pop(0))

    def log(self, report: StepReport) -> None:
        """Tell of a step."""
        if self.job.world.is_main:
            self.reporter.step(report, self.pace.end, self.pace.elapsed())

    def must_stop(self) -> bool:
        """Whether any rank was asked to stop: then all were, by the same signal."""
        signals = (None, *EXIT_CODES)
        found = signals[self.job.world.max(signals.index(self.stop.signal))]
        if found is not None:  # or one that came meanwhile would be forgotten
            self.stop.signal = found
        return found is not None

    def fit_into_time(self) -> None:
        """Decide anew how many steps the run is to have."""
        self.take_up(wait=True)
        self.pace.fit_into_time()
        self.display.fit(self.pace.end)
        self.status.set("running", steps=self.pace.end)

    # -- what happens between them

    def aside(self, what: str, every: int, work: Callable[[], Made], *, alone: bool) -> Made | None:
        """What is made with the weights that are to be used, which training goes on without if that fails by a fault of
        ours, or for want of memory; its time is noted. A signal breaks it off.

        alone: the rank that does it meets no other one. Else it may not fail, for some would go on and some wait, but
        for want of memory that all are told of; nor be broken off.
        """
        began, made = time.monotonic(), None
        try:
            with self.state.averaged(), suppress(Interrupted), self.stop.deferred(not alone):
                made = work()
        except Exception as error:
            told_to_all = isinstance(error, OutOfMemoryError) and not is_sharded(self.job.model)
            if not told_to_all and (isinstance(error, TxtgenError) or not alone):
                raise
            self.reporter.failure(what, self.state.step, error)
        self.pace.note(what, time.monotonic() - began, every)
        return made

    def validation_is_owed(self) -> bool:
        """Whether the run was stopped before a validation that was due at this very step."""
        return 0 < self.state.step != self.validation.step and self.pace.validates()

    def measure_base(self) -> None:
        """Measure how well the base model knows what must not be forgotten."""
        limit = self.job.config.train.micro_batch_tokens
        with self.status.during("validating"):
            begin = partial(self.validation.retention.begin, self.stop, limit)
            metrics = self.aside("validation", 0, begin, alone=self.is_alone)
        if metrics and self.job.world.is_main:
            self.reporter.validation(self.state.step, metrics, self.pace.elapsed())

    def validate(self) -> None:
        """Measure on the held-out text, if any is; keep the model as best.pth if it never was better."""
        config = self.job.config.train
        limit = self.state.micro_batch_tokens or config.micro_batch_tokens
        with self.status.during("validating"):
            measure = partial(self.validation.measure, self.stop, limit)
            metrics = self.aside("validation", config.validate_every, measure, alone=self.is_alone)
        if metrics is None:
            return
        self.validation.step = self.state.step
        if metrics:
            if self.job.world.is_main:
                self.reporter.validation(self.state.step, metrics, self.pace.elapsed())
            if "val_loss" in metrics and self.validation.improves(metrics, self.saving.best):
                self.better = {"step": self.state.step, **metrics}
        if not self.job.config.samples.every:
            self.sample()
        self.journal.page()

    def sample(self) -> None:
        """Show what the model makes of the sample prompts."""
        if not self.samples.are_made_here:
            return
        with self.status.during("sampling"):
            self.aside("sampling", self.samples.every, self.show_samples, alone=self.samples.are_made_alone)

    def show_samples(self) -> None:
        """Generate for the sample prompts, and tell of each text at once."""
        for generation in self.samples.generate():
            if self.job.world.is_main:
                self.reporter.sample(self.state.step, generation, self.samples.joint)

    def save(self, *, resumable: bool) -> None:
        """Begin to save this step: to be resumed from, as the best model, or both; or neither."""
        if resumable or self.better:
            with self.status.during("saving"):
                seconds = self.saving.save(self.progress() if resumable else None, self.better)
            self.note_save(seconds)

    def save_at_last(self) -> None:
        """Save this step if it is not yet, and wait until it stands."""
        with self.status.during("saving"):
            seconds = self.saving.finish(self.progress(), self.better)
        self.note_save(seconds)

    def note_save(self, seconds: float) -> None:
        """Note how long training stood still for saving."""
        self.better = None
        self.tell_of_checkpoint()
        self.pace.note("saving", seconds, self.job.config.train.save_every)
        self.journal.write({"step": self.state.step, "save_seconds": seconds, "seconds": self.pace.elapsed()})

    def take_up_save(self) -> None:
        """Take up a save that has ended since the last step."""
        self.saving.settle(wait=False)
        self.tell_of_checkpoint()

    def tell_of_checkpoint(self) -> None:
        """Tell in status.json of the checkpoint that was finished last."""
        if self.saving.last is not None and self.saving.last != self.told:
            self.told = self.saving.last
            self.status.set(self.status.state, last_checkpoint=str(self.told))

    # -- the end

    def finish(self) -> RunResult:
        """Say how it ended and what to do next."""
        result, no_better = self.result(self.stop.signal), self.validation.no_better
        early = self.validation.out_of_patience and result.stopped_by is None
        finished = early or self.pace.is_over
        self.reporter.irregularities(self.reading)
        state: State = "finished" if finished else "interrupted"
        self.status.set(
            state,
            step=result.step,
            exit_code=result.exit_code,
            reason=f"no better validation in {no_better}" if early else result.stopped_by or state,
        )
        if early:
            self.display.note(f"stopped early: no better validation in {no_better}")
        self.reporter.end(f"{state} at step {result.step}", self.pace.elapsed(), result.metrics, resumable=not finished)
        return result

    def result(self, stopped_by: str | None) -> RunResult:
        """The run as it stands."""
        return RunResult(self.job.folder.path, self.state.step, self.saving.best, stopped_by)
