"""What pretrain and finetune share: a run from its start to its end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from txtgen.commands.running.job import Job
from txtgen.commands.running.journal import Journal
from txtgen.commands.running.session import RunResult, Session
from txtgen.commands.running.starting import Launch, Start, start_run
from txtgen.commands.showing.console import ProgressDisplay
from txtgen.config.runs import RunConfig
from txtgen.errors import OutOfMemoryError
from txtgen.memory import is_out_of_memory


def run(config: RunConfig, launch: Launch | None, prepare: Callable[[Start, ProgressDisplay], Job]) -> RunResult:
    """Begin the run that `prepare` makes of the config, or go on with an interrupted one, to its end.

    Raises:
        TxtgenError: the run cannot begin, or cannot go on; the last checkpoint stays.
    """
    with start_run(config, launch or Launch()) as start:
        display = ProgressDisplay(config.train.steps, quiet=not start.world.is_main)
        for told in (*start.warnings, *config.remarks()):
            display.note(told)
        return _trained(prepare(start, display), display)


def _trained(job: Job, display: ProgressDisplay) -> RunResult:
    """Train, validate, sample and save until the steps are done, the time is up, or a signal asks to stop.

    Raises:
        TxtgenError: the run cannot go on; the last checkpoint stays.
    """
    journal = Journal(job)
    try:
        with job.start.status.failures(), _running_out_of_memory_told(job), display, job.world.together():
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
        raise OutOfMemoryError(
            "out of memory while training",
            f"batch_tokens {job.config.train.batch_tokens}",
            "set train.micro_batch_tokens lower (the batch stays the same), or shrink the model",
        ) from error
