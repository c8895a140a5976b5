"""What pretrain and finetune share: the stream, the loop, and everything that happens around its steps."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from txtgen.checkpoint import LoadedModel
from txtgen.commands.console import ProgressDisplay, duration
from txtgen.commands.feeding import training_batches
from txtgen.commands.job import Job
from txtgen.commands.journal import Journal
from txtgen.commands.saving import Saving, checkpoint_config
from txtgen.commands.signals import EXIT_CODES, Interrupted
from txtgen.commands.status import State
from txtgen.commands.validation import Validation
from txtgen.config.commands import chat_format
from txtgen.config.loader import dump_config
from txtgen.data import (
    Batch,
    StreamReport,
)
from txtgen.distributed import is_sharded
from txtgen.errors import ResourceError, TxtgenError
from txtgen.generator import Generation, Generator
from txtgen.memory import is_out_of_memory
from txtgen.train import (
    Contention,
    Horizon,
    Speed,
    SpikeWatch,
    StepReport,
    TimeBudget,
    TrainState,
    WeightAverage,
    build_optimizer,
    checkpoint_activations,
    refuse_non_finite,
    train,
)

logger = logging.getLogger(__name__)


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


def run(job: Job, display: ProgressDisplay) -> RunResult:
    """Train, validate, sample and save until the steps are done, the time is up, or a signal asks to stop.

    Raises:
        TxtgenError: the run cannot go on; the last checkpoint stays.
    """
    journal = Journal(job)
    try:
        with job.status.failures(), _running_out_of_memory_told(job), display, job.world.together():
            session = Session(job, display, journal)
            with session.saving:
                return session.run()
    finally:
        journal.close()


@contextmanager
def _running_out_of_memory_told(job: Job) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            "out of memory while training",
            f"batch_tokens {job.config.train.batch_tokens}",
            "set train.micro_batch_tokens lower (the batch stays the same), or shrink the model",
        ) from error


@dataclass
class Session:
    """The state of a run in progress, around the loop's own."""

    job: Job
    display: ProgressDisplay
    journal: Journal
    report: StreamReport = field(default_factory=StreamReport)
    unread: list[StepReport] = field(default_factory=list)
    """Steps whose figures may still be on their way."""
    spikes: SpikeWatch = field(default_factory=SpikeWatch)
    told_micro_batch: int | None = None
    complained: set[str] = field(default_factory=set)
    """What is done beside training and failed, each told once."""
    validated: int = 0
    """The step that was validated last; a resumed run owes what was due and not done."""
    better: dict[str, float] | None = None
    """What was measured of a model that is the best so far, until it is saved."""
    no_better: int = 0
    """Validations in a row that were not better than the best before them."""
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        job = self.job
        if job.config.train.activation_checkpointing:
            checkpoint_activations(job.model)
        self.contention = Contention() if job.device.type == "cpu" and job.world.size == 1 else None
        self.state = TrainState(job.model, build_optimizer(job.model, job.config.train.optimizer))
        if job.config.train.ema_decay is not None:
            self.state.average = WeightAverage(job.model, job.config.train.ema_decay)
        self.saving = Saving(job, self.state)
        self.objective = job.objective(job.config.data.subword_sampling)
        self.generator = Generator(
            LoadedModel(job.model, job.tokenizer, job.source_tokenizer, checkpoint_config(job)), batch_size=64
        )
        self.validation = Validation(job, job.objective(), self.generator)
        self.speed = Speed(job.device, job.dtype)
        self.samples()  # refuses a prompt that is too long, before anything is trained
        if job.resumed is not None:
            self.restore(job.resumed)
        self.budget = self.time_budget()
        if job.world.is_main:
            job.folder.forget_after(self.state.step)  # what a killed start did beyond is done again
        job.world.from_main(self.saving.require_room)

    def restore(self, training: dict[str, Any]) -> None:
        """Go on from the training state of a checkpoint."""
        self.saving.restore(training)
        self.validated = training["validated"]
        self.no_better = training.get("no_better", 0)
        self.seconds_before = training["seconds"]
        self.job.status.set("starting", step=self.state.step, last_checkpoint=str(self.saving.last))

    def progress(self) -> dict[str, Any]:
        """What the training state of a checkpoint holds of this: what `restore` takes up."""
        return {"validated": self.validated, "no_better": self.no_better, "seconds": self.elapsed()}

    def elapsed(self) -> float:
        """Seconds of this run so far, earlier parts included."""
        return self.seconds_before + time.monotonic() - self.started

    # -- the run

    def run(self) -> RunResult:
        """The loop with everything around it."""
        with self.job.stop.deferred():
            if self.saving.saved < self.state.step:
                self.settle_in()
            if self.validation_is_owed():
                self.validate()
                self.save(resumable=True)
            if told := self.nothing_to_do():
                self.save_at_last()
                self.display.note(f"nothing to do: {told}")
                self.job.status.set("finished", step=self.state.step, exit_code=0)
                return self.result(None)
            self.journal.begin(self.state.step)
            self.job.status.set("running", step=self.state.step, steps=self.end)
            if not self.must_stop():
                self.learn()
            if self.validated < self.state.step and not self.must_stop():
                self.validate()
            self.save_at_last()
        return self.finish()

    def nothing_to_do(self) -> str:
        """Why a resumed run has nothing left to do, if it has not."""
        if self.state.step >= self.end:
            return f"{self.state.step} of {self.end} steps are done"
        if self.budget is not None and self.budget.elapsed() >= self.budget.seconds:
            return "the time of the run is over; raise train.minutes"
        if self.out_of_patience():
            return f"{self.no_better} validations without a better one; raise train.patience"
        return ""

    def learn(self) -> None:
        """Train from where the run is."""
        with closing(training_batches(self.saving, self.objective, self.report)) as batches:
            for line in self.report.changed_files:
                self.display.note(f"another corpus than before: {line}")
            self.steps(batches)

    def settle_in(self) -> None:
        """Make a run that goes on from the checkpoint of another one that can be resumed by itself."""
        self.save_at_last()
        if self.job.world.is_main:
            self.job.folder.write_text(self.job.folder.config, dump_config(self.job.config))

    def steps(self, batches: Iterator[Batch]) -> None:
        """Train until the steps are done or something asks to stop, and do what is due on the way."""
        job, config = self.job, self.job.config.train
        for report in train(self.state, batches, config, dtype=job.dtype, seed=job.config.seed, world=job.world):
            self.take_up_save()
            self.unread.append(report)
            self.take_up(wait=self.acts_after(report.step))
            self.tell_of_memory()
            self.tell_of_compilation()
            for act, every in self.rhythms():
                if due(report.step, every) and not self.must_stop():
                    act()
            if self.must_stop():
                self.take_up(wait=True)
                return
            self.fit_into_time(report.step)
            self.save(resumable=due(report.step, config.save_every))
            if self.out_of_patience():
                return

    def acts_after(self, step: int) -> bool:
        """Whether something is to be done with the weights as they are after this step."""
        train = self.job.config.train
        periods = [train.save_every, *(every for _, every in self.rhythms())]
        return step >= self.end or any(due(step, every) for every in periods)

    def rhythms(self) -> list[tuple[Callable[[], None], int]]:
        """What is done every so many steps."""
        config = self.job.config
        return [
            (self.validate, config.train.validate_every),
            (self.sample, config.samples.every),
        ]

    def take_up(self, wait: bool) -> None:
        """Log the steps whose figures are at hand, which on a GPU are all but the last, or wait for all.

        Raises:
            DivergedError: they are not finite; nobody may act on the weights before they are known.
        """
        while self.unread and (wait or len(self.unread) > 1 or self.unread[0].figures.at_hand):
            refuse_non_finite(self.unread[0], self.job.config.train)
            self.log(self.unread.pop(0))

    def at_once(self) -> AbstractContextManager[None]:
        """What can be broken off at any point, because it changes nothing; not among several ranks, who meet in it."""
        return self.job.stop.deferred(self.job.world.size > 1)

    def validation_is_owed(self) -> bool:
        """Whether the run was stopped before a validation that was due at this very step."""
        config = self.job.config.train
        last = self.state.step >= self.end
        return 0 < self.state.step != self.validated and (last or due(self.state.step, config.validate_every))

    def must_stop(self) -> bool:
        """Whether any rank was asked to stop: then all were, by the same signal."""
        signals = (None, *EXIT_CODES)
        found = signals[self.job.world.max(signals.index(self.job.stop.signal))]
        if found is not None:  # or one that came meanwhile would be forgotten
            self.job.stop.signal = found
        return found is not None

    @property
    def end(self) -> int:
        """The last step of the run, as far as it is decided."""
        return self.state.horizon.steps if self.state.horizon else self.job.config.train.steps

    def time_budget(self) -> TimeBudget | None:
        """What the run's minutes are fitted by, if it has any."""
        config = self.job.config.train
        if config.minutes is None:
            return None
        return TimeBudget(60 * config.minutes, config.steps, self.elapsed(), self.state.horizon)

    def fit_into_time(self, step: int) -> None:
        """Decide anew how many steps the run is to have, by the clock of rank 0, when that is due."""
        budget, world = self.budget, self.job.world
        if budget is None or not world.any(budget.is_due(step) and world.is_main):
            return
        self.take_up(wait=True)
        self.state.horizon = Horizon(*world.from_main(lambda: astuple(budget.decide(step))))
        self.display.fit(self.end)
        self.job.status.set("running", steps=self.end)
        logger.info("after step %d: %d steps fit into the time", step, self.end)

    def tell_of_memory(self) -> None:
        """Say that micro-batches have become smaller."""
        now = self.state.micro_batch_tokens
        if now is not None and now != self.told_micro_batch:
            self.told_micro_batch = now
            self.complain(f"memory {now}", f"memory ran out: from now on {now:,} tokens go through the model at once")

    def tell_of_compilation(self) -> None:
        """Say, once, why layers are not compiled that were meant to be, or that they are other than before."""
        found = self.state.compilation
        if found.told and "compile" not in self.complained:
            expected = self.job.config.train.compile == "auto" and found.before is None
            logger.log(logging.INFO if expected else logging.WARNING, "train.compile: %s", found.told)
            self.complained.add("compile")

    def complain(self, about: str, told: str) -> None:
        """Say, once, that something went wrong which does not keep the run from going on."""
        logger.log(logging.INFO if about in self.complained else logging.WARNING, told)
        self.complained.add(about)

    @contextmanager
    def expendable(self, what: str, every: int) -> Iterator[None]:
        """What training goes on without if it fails by a fault of ours; its time is noted.

        Among several ranks it may not fail, for some would go on and some wait.
        """
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            if isinstance(error, TxtgenError) or self.job.world.size > 1:
                raise
            logger.info("%s at step %d failed", what, self.state.step, exc_info=error)
            self.complain(what, f"{what} at step {self.state.step} failed, and training goes on: {error!r}")
        if self.budget is not None:
            self.budget.note(what, time.monotonic() - began, every)

    def out_of_patience(self) -> bool:
        """Whether validation has not become better for as long as the config allows."""
        patience = self.job.config.train.patience
        return patience is not None and self.no_better >= patience

    def log(self, report: StepReport) -> None:
        """Show a step and write its line of metrics."""
        if not self.job.world.is_main:
            return
        self.job.status.beat(step=report.step, loss=None if report.non_finite else report.loss)
        if report.non_finite:
            logger.warning("step %d is left out: %s", report.step, report.fault)
            return
        self.display.step(report)
        self.speed.add(report)
        if usual := self.spikes.add(report.step, report.loss):
            logger.warning("the loss jumped at step %d: %.4f after about %.4f", report.step, report.loss, usual)
        if report.step % self.job.config.train.log_every == 0 or report.step in (1, self.end):
            speed = self.speed.take()
            self.display.speed(speed)
            crowded = self.contention.warning() if self.contention is not None else None
            if crowded is not None:
                self.display.note(crowded)
                self.contention = None  # told once
            self.journal.write(
                {
                    "step": report.step,
                    "loss": report.loss,
                    "objective_loss": report.objective_loss,
                    "learning_rate": report.learning_rate,
                    "grad_norm": report.grad_norm,
                    "tokens": report.total_tokens,
                    **speed,
                    "seconds": self.elapsed(),
                }
            )
            logger.info("step %d loss %.4f grad_norm %.3f", report.step, report.loss, report.grad_norm)

    def validate(self) -> None:
        """Measure on the held-out text, if any is; keep the model as best.pth if it never was better."""
        metrics, config = None, self.job.config.train
        with self.job.status.during("validating"), self.expendable("validation", config.validate_every):
            limit = self.state.micro_batch_tokens or config.micro_batch_tokens
            with self.state.averaged(), suppress(Interrupted), self.at_once():
                metrics = self.validation.measure(self.job.stop, limit)
        if metrics is None:
            return
        self.validated = self.state.step
        if metrics:
            self.record(metrics)
        if not self.job.config.samples.every:
            self.sample()  # samples that have no rhythm of their own follow validation
        self.journal.page()

    def record(self, metrics: dict[str, float]) -> None:
        """Show and write what was measured."""
        job = self.job
        if job.world.is_main:
            self.display.validation(metrics)
            self.journal.write({"step": self.state.step, **metrics, "seconds": self.elapsed()})
            logger.info("validation at step %d: %s", self.state.step, metrics)
        self.no_better += 1
        # Rank 0 decides, for it alone knows whether the best model so far could be saved.
        if job.world.gather(self.validation.is_better(metrics, self.saving.best))[0]:
            self.better = {"step": self.state.step, **metrics}
            self.no_better = 0

    def samples(self) -> Iterator[Generation]:
        """What the model makes of the sample prompts, once it is asked for."""
        samples = self.job.config.samples
        if not samples.prompts:
            return iter(())
        options = {name: value for name, value in samples.decoding.model_dump().items() if value is not None}
        return self.generator.iterate(list(samples.prompts), gap=samples.gap, **options)

    def sample(self) -> None:
        """Show what the model makes of the sample prompts. All ranks of a sharded model make it together."""
        if not (self.job.world.is_main or is_sharded(self.job.model)):
            return
        goes_on = self.job.model.config.kind == "decoder" and chat_format(self.job.settled.data) is None
        joint = "" if goes_on and self.job.config.samples.gap is None else " -> "
        every = self.job.config.samples.every or self.job.config.train.validate_every
        with (
            self.job.status.during("sampling"),
            self.expendable("sampling", every),
            self.state.averaged(),
            suppress(Interrupted),
            self.at_once(),
        ):
            for generation in self.samples():
                if not self.job.world.is_main:
                    continue
                self.display.sample(generation.prompt, generation.text, joint)
                self.journal.sample(self.state.step, generation)
                logger.info("sample at step %d: %r -> %r", self.state.step, generation.prompt, generation.text)

    def save(self, *, resumable: bool) -> None:
        """Begin to save this step: to be resumed from, as the best model, or both; or neither."""
        if resumable or self.better:
            with self.job.status.during("saving"):
                seconds = self.saving.save(self.progress() if resumable else None, self.better)
            self.note_save(seconds)

    def save_at_last(self) -> None:
        """Save this step if it is not yet, and wait until it stands."""
        with self.job.status.during("saving"):
            seconds = self.saving.finish(self.progress(), self.better)
        self.note_save(seconds)

    def note_save(self, seconds: float) -> None:
        """Note how long training stood still for saving."""
        self.better = None
        if self.budget is not None:
            self.budget.note("saving", seconds, self.job.config.train.save_every)
        self.journal.write({"step": self.state.step, "save_seconds": seconds, "seconds": self.elapsed()})

    def take_up_save(self) -> None:
        """Tell in status.json of a checkpoint that was finished since the last step."""
        before = self.saving.last
        self.saving.settle(wait=False)
        if self.saving.last != before:
            self.job.status.set("running", last_checkpoint=str(self.saving.last))

    # -- the end

    def finish(self) -> RunResult:
        """Say how it ended and what to do next."""
        folder = self.job.folder
        if self.report.bad_records:
            self.display.note(f"skipped {self.report.bad_records} bad records, such as {self.report.bad_examples[0]}")
        if self.report.cut_examples:
            length, most = self.job.row_length, self.job.model.config.max_length
            told = f"cut {self.report.cut_examples:,} examples that were too long for {length:,} tokens"
            self.display.note(f"{told} (train.sequence_length, at most {most:,}) or for the source")
        result, stopped_by = self.result(self.job.stop.signal), self.job.stop.signal
        early = self.out_of_patience() and stopped_by is None
        done = early or self.state.step >= self.end
        state: State = "finished" if done else "interrupted"
        self.job.status.set(
            state,
            step=self.state.step,
            last_checkpoint=str(self.saving.last),
            exit_code=result.exit_code,
            reason=f"no better validation in {self.no_better}" if early else stopped_by or state,
        )
        if self.spikes.steps:
            first, more = self.spikes.steps[0], len(self.spikes.steps) - 1
            self.display.note(f"the loss jumped at step {first}" + (f" and {more} times after" if more else ""))
        if early:
            self.display.note(f"stopped early: no better validation in {self.no_better}")
        found = self.saving.best
        best = f", best validation {found['val_loss']:.4f} at step {found['step']}" if found else ""
        self.display.note(f"{state} at step {self.state.step} after {duration(self.elapsed())}{best}: {folder.path}")
        if state == "interrupted":
            where = "" if folder.path.parent == Path("runs") else f" --runs-path {folder.path.parent}"
            self.display.note(f"resume:   txtgen {self.job.command} --resume --name {folder.path.name}{where}")
        self.display.note(f"generate: txtgen generate {folder.path} --prompt TEXT")
        return result

    def result(self, stopped_by: str | None) -> RunResult:
        """The run as it stands."""
        return RunResult(self.job.folder.path, self.state.step, self.saving.best, stopped_by)


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens now."""
    return every > 0 and step % every == 0
