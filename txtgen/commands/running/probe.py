"""A run's own steps, validation, samples and saves, a few of each, timed: what the rest will take."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

from txtgen.commands.running.measuring import MeasuredText
from txtgen.commands.running.session import Session
from txtgen.data import Batch, StreamReport, validation_pairs
from txtgen.distributed import is_sharded
from txtgen.evaluate import translate_pairs
from txtgen.model import may_compile
from txtgen.train import Horizon, train
from txtgen.train.cost import synchronise

PROBE_SECONDS, MAX_STEP_SECONDS, MIN_STEPS, MAX_STEPS, WARM_UP_STEPS = 6.0, 3.0, 4, 1000, 2
VALIDATION_SECONDS, COUNTING_SECONDS = 2.0, 5.0
TRANSLATED = 64
"""Pairs that are translated where BLEU or chrF are measured: one batch of them."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """seconds: of a step on average, waiting for data included. positions: tokens of it, padding not counted. steps:
    how many were timed. row_share: below 1 they had fewer rows than a step, and the time of all is reckoned."""

    seconds: float
    positions: float
    steps: int
    row_share: float = 1.0


class Steps:
    """The first steps of a run, of all rows of a batch or fewer. What they do to the weights is lost."""

    def __init__(self, session: Session, batches: Iterator[Batch]) -> None:
        self.session = session
        self._rows: int | None = None
        job = session.job
        session.state.horizon = Horizon(1 << 40)  # a run of two steps is probed by as many as others
        cut = (batch if self._rows is None else batch.rows(0, self._rows) for batch in batches)
        self._steps = train(
            session.state,
            cut,
            job.config.train,
            dtype=job.dtype,
            seed=job.config.seed,
            world=job.world,
            loss=job.loss,
        )

    @property
    def compiles(self) -> bool:
        """Whether the first step may compile the layers."""
        return may_compile(self.session.job.config.train.compile, self.session.job.device)

    def time(self, rows: int | None, most: int = 1, budget: float = float("inf")) -> StepTimes:
        """Up to `most` steps of the first rows, or of all; fewer if they take longer than `budget` seconds.

        All ranks do as many, by the clock of rank 0.
        """
        world = self.session.job.world
        self._rows = rows
        positions = steps = 0
        started = time.perf_counter()
        for report in islice(self._steps, most):
            self.session.unread.append(report)
            self.session.take_up(wait=False)
            positions, steps = positions + report.positions, steps + 1
            over = steps >= MIN_STEPS and time.perf_counter() - started >= budget
            if world.any(over and world.is_main):
                break
        synchronise(self.session.job.device)
        seconds = world.from_main(lambda: time.perf_counter() - started)
        return StepTimes(seconds / steps, positions / steps, steps)


def time_steps(session: Session, rows: int) -> StepTimes:
    """Train a few steps of the run and time them, less the first ones, in which memory and caches are set up.

    Args:
        session: the run, at its beginning.
        rows: of a batch, about, on the rank that has most.
    """
    with closing(session.batches(StreamReport())) as batches:
        return _time_steps(Steps(session, batches), rows)


def _time_steps(steps: Steps, rows: int) -> StepTimes:
    if steps.compiles:  # for the shape of the first batch alone
        steps.time(None, WARM_UP_STEPS)
        return steps.time(None, MAX_STEPS, PROBE_SECONDS)
    few = 1
    found = steps.time(few)
    while few < rows and found.seconds < MAX_STEP_SECONDS:
        few = min(rows, 2 * few)
        found = steps.time(few)
    if found.seconds < MAX_STEP_SECONDS:
        steps.time(None, WARM_UP_STEPS)
        return steps.time(None, MAX_STEPS, PROBE_SECONDS)
    # What a step takes grows evenly with its rows, but for the optimizer's part.
    half = max(1, few // 2)
    small, large = steps.time(half, WARM_UP_STEPS), steps.time(few, WARM_UP_STEPS)
    each = max(0.0, large.seconds - small.seconds) / (few - half) if few > half else large.seconds
    return StepTimes(large.seconds + (rows - few) * each, large.positions * rows / few, large.steps, few / rows)


def time_validation(session: Session) -> tuple[float, float]:
    """Seconds of one validation, with all that belongs to it, and of what is measured of the base model before the
    first step: batches are counted, the first few measured; so are translations if they are due."""
    validation, retention = session.validation, session.validation.retention
    with session.state.averaged():
        base = _time_text(session, retention.text)
        seconds = _time_text(session, validation.text) + base + _seconds(retention.distances)
        if validation.text.parts and session.job.config.train.validation_metric != "loss":
            if is_sharded(session.job.model):  # then all ranks translate together
                seconds += _time_translation(session)
            else:
                seconds += session.job.world.from_main(lambda: _time_translation(session))
    return seconds, base


def _time_text(session: Session, text: MeasuredText) -> float:
    """Seconds of measuring it as the run does, reckoned from those of the first batches of each part."""
    job, seconds = session.job, 0.0
    limit = session.state.micro_batch_tokens or job.config.train.micro_batch_tokens

    def measure(batches: Iterable[Batch]) -> None:
        replace(text, parts={"": batches}).measure(job, session.stop, limit)

    for batches in text.parts.values():
        count, reading = _count(islice(batches, text.most))
        measure(islice(batches, 1))
        measured, started = 0, time.perf_counter()
        for batch in islice(batches, text.most):
            measure([batch])
            measured += 1
            if job.world.any(time.perf_counter() - started > VALIDATION_SECONDS):
                break
        seconds += max(reading, (time.perf_counter() - started) * count / max(1, measured))
    return seconds


def _count(batches: Iterable[Batch]) -> tuple[int, float]:
    """How many there are, or are read in a time, and the seconds of reading them."""
    count, started = 0, time.perf_counter()
    for _ in batches:
        count += 1
        if time.perf_counter() - started > COUNTING_SECONDS:
            break  # how many are left is not known; seldom is so much held out
    return count, time.perf_counter() - started


def _time_translation(session: Session) -> float:
    """Seconds of translating what validation translates. A model that has learnt nothing yet does not know when to
    end, so it is made to write as much as the references hold."""
    job, config = session.job, session.job.config
    total = config.train.validation_translations
    pairs = list(islice(validation_pairs(config.data, seed=config.seed), total))
    some = pairs[:TRANSLATED]
    if not some:
        return 0.0
    longest = max(len(job.tokenizer.encode(pair.target)) for pair in some)
    longest = min(longest, job.model.config.max_length - 1)
    started = time.perf_counter()
    translate_pairs(
        session.generator,
        some,
        config.data.validation.bleu_tokenizer,
        strategy="greedy",
        max_new_tokens=longest,
        min_new_tokens=longest,
    )
    return (time.perf_counter() - started) * len(pairs) / len(some)


def time_samples(session: Session) -> float:
    """Seconds of one round of samples, on the ranks that make them."""
    return _seconds(lambda: list(session.samples.generate()) if session.samples.are_made_here else [])


def time_saves(session: Session) -> tuple[float, float]:
    """Seconds of writing a checkpoint to resume, and of writing the best model."""
    saving, measured = session.saving, {"step": session.state.step, "val_loss": 0.0}

    def save(resumable: bool) -> None:
        saving.save(session.progress() if resumable else None, None if resumable else measured)
        saving.settle()

    return _seconds(lambda: save(True)), _seconds(lambda: save(False))


def _seconds(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def first_batch(session: Session) -> Batch:
    """One like those to come; the run's place in the stream stays."""
    with closing(session.batches(StreamReport())) as batches:
        return next(batches)
