"""What a run saves: how its checkpoints are made and written, and how a resumed run takes one up."""

import logging
import platform
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from txtgen.checkpoint import Checkpoint, is_finite, save_checkpoint
from txtgen.commands.running.job import Job
from txtgen.commands.running.resuming import environment, horizon_from
from txtgen.commands.running.staging import Staging
from txtgen.config.checkpoint import CheckpointConfig, bidirectional_prompt, chat_format
from txtgen.data import merge_bookmarks
from txtgen.distributed import local, reshard, share_out
from txtgen.errors import DivergedError, ResourceError
from txtgen.files import require_space
from txtgen.train import Compilation, Horizon, TrainState

logger = logging.getLogger(__name__)

RECORD_BYTES = 600
"""What a checkpoint says of a tensor beside its content, about."""
WAITING_SECONDS = 0.1
"""Of one wait for a save, after which signals are heard."""


@dataclass
class Write:
    """A save in progress: of which step, with or without what a resumed run needs, and as best.pth or not.

    What the newest step to resume and the best model were before it; best_stands: best.pth is written.
    """

    step: int
    resumable: bool
    best: dict[str, float] | None
    future: Future[Path | None] = field(default_factory=Future)
    saved_before: int = 0
    best_before: dict[str, float] = field(default_factory=dict)
    best_stands: bool = False


class Saving:
    """The checkpoints of a run in progress. Making one is the work of all ranks together, writing it of rank 0.

    Training goes on while a thread writes. A save that fails for want of space or by a fault of the disk is a warning:
    the weights are safest where they are, and the next save tries again. The last one of a run must succeed.
    """

    def __init__(self, job: Job, state: TrainState) -> None:
        self.job, self.state = job, state
        self.config = job.config.train
        self.changes = [*job.start.changes]
        """What resuming users accepted, each with its step."""
        self.saved = state.step
        """The step of the newest checkpoint to resume, written or being written."""
        self.best: dict[str, float] = {}
        """What was measured of the model in best.pth, and its step."""
        self.last: Path | None = None
        """The newest checkpoint that stands whole under its name."""
        self._staging = Staging(keep=job.world.is_main, copy=self.config.save_in_background)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._writing: Write | None = None
        self._fault: ResourceError | None = None
        self._lost: dict[str, float] = {}
        """What was measured of a best model that could not be saved."""
        self._stop_at_once = threading.Event()

    def __enter__(self) -> Self:
        """Nothing is begun yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let a save in progress end; one that is cut off by a second Ctrl-C leaves nothing."""
        if isinstance(error, KeyboardInterrupt):
            self._stop_at_once.set()
        self._writer.shutdown()
        if (write := self._writing) and (fault := write.future.exception()):
            logger.warning("the checkpoint of step %d is not saved: %s", write.step, str(fault) or "interrupted")

    def save(self, progress: dict[str, Any] | None, best: dict[str, float] | None = None) -> float:
        """Begin to save this step, once the save before has ended. Returns the seconds that training stood still.

        Args:
            progress: what a resumed run needs beside the state of the loop, plain data; None: save no such state.
            best: what was measured if this is the best model so far; then it becomes best.pth too.

        Raises:
            Exception: what made the save before fail, if that was no fault of machine or disk.
        """
        began, world = time.perf_counter(), self.job.world
        world.from_main(self.settle)
        write = Write(self.state.step, progress is not None, best)
        if best:
            self.best, write.best_before = best, self.best
        checkpoint = self.checkpoint(None if progress is None else {**progress, "best": self.best})
        if progress is not None:
            self.saved, write.saved_before = self.state.step, self.saved
        if world.is_main:
            write.future = self._writer.submit(self._write, write, checkpoint)
            self._writing = write
        if not self.config.save_in_background:
            world.from_main(self.settle)
        return time.perf_counter() - began

    def settle(self, *, wait: bool = True) -> None:
        """Take up what became of the save in progress, if any; without `wait` only if it has ended.

        Raises:
            Exception: what made it fail, if that was no fault of machine or disk.
        """
        write = self._writing
        if write is None or not (wait or write.future.done()):
            return
        error = _failure(write.future)
        self._writing = self._fault = None
        if error is None:
            self.last = write.future.result() or self.last
            return
        if not isinstance(error, ResourceError):
            raise error
        self._fault = error
        logger.warning("the checkpoint of step %d is not saved: %s", write.step, error)
        self.saved = write.saved_before if write.resumable else self.saved
        if write.best and not write.best_stands:
            self.best, self._lost = write.best_before, write.best

    def finish(self, progress: dict[str, Any], best: dict[str, float] | None = None) -> float:
        """Save this step if it is not yet, and wait until it stands. Returns the seconds that training stood still.

        Raises:
            ResourceError: it cannot be saved, told on every rank.
        """
        began, world = time.perf_counter(), self.job.world
        world.from_main(self.settle)
        if self._lost.get("step") == self.state.step:
            best = self._lost
        if world.any(self.saved < self.state.step or bool(best)):
            self.save(progress, best)
            world.from_main(self._settle_or_fail)
        return time.perf_counter() - began

    def _settle_or_fail(self) -> None:
        self.settle()
        if self._fault:
            raise self._fault

    def _write(self, write: "Write", checkpoint: Checkpoint) -> Path | None:
        """Write the files of a save. Returns the checkpoint to resume, if it is among them."""
        require_finite(checkpoint.model, write.step)
        cancelled = self._stop_at_once.is_set
        if write.best:
            save_checkpoint(self.job.folder.best, replace(checkpoint, training=None), cancelled)
            write.best_stands = True
        if not write.resumable:
            return None
        config = self.config
        return self.job.folder.save(
            write.step, checkpoint, keep_last=config.keep_last, keep_every=config.keep_every, cancelled=cancelled
        )

    def require_room(self) -> None:
        """Refuse a run whose checkpoints, as many as will be kept at once and a temporary one, do not fit on the disk.

        Raises:
            ResourceError: with the bytes that are needed and free.
        """
        whole, model, kept = self.sizes()
        folder = self.job.folder
        files = [folder.best, *(path for _, path in folder.steps())]
        present = sum(path.stat().st_size for path in files if path.exists())
        require_space(folder.path, max(whole, (1 + kept) * whole + model - present))

    def sizes(self) -> tuple[int, int, int]:
        """Bytes of a checkpoint to resume and of best.pth, and how many of the former are kept in the end."""
        config, weights = self.config, self.weights()
        model = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        averaged = model if config.ema_decay is not None else 0
        tokenizers = filter(None, (self.job.tokenizer, self.job.source_tokenizer))
        beside = sum(len(content) for tokenizer in tokenizers for content in tokenizer.files().values())
        beside += RECORD_BYTES * len(weights)
        whole = model + averaged + self.state.optimizer.state_bytes() + beside + 2 * RECORD_BYTES * len(weights)
        model += beside
        saves = 1 + (config.steps // config.save_every if config.save_every else 0)
        kept = config.keep_last
        if config.keep_every and config.minutes is None:
            kept += config.steps // config.keep_every
        return whole, model, min(saves, kept)

    def checkpoint(self, progress: dict[str, Any] | None) -> Checkpoint:
        """The model as it is now, and with what a resumed run needs if any progress is given; on the CPU."""
        reshard(self.state.model)
        state: dict[str, Any] = {"model": self.weights(), "training": None}
        if self.state.average is not None:
            state["model"].update(self.state.average.averaged)
        if progress is not None:
            state["training"] = {**progress, **self.loop_state()}
        taken = self._staging.take(state)
        return Checkpoint(
            config=checkpoint_config(self.job),
            model=taken["model"],
            tokenizer=self.job.tokenizer,
            source_tokenizer=self.job.source_tokenizer,
            lineage=self.lineage(),
            training=taken["training"],
        )

    def weights(self) -> dict[str, Tensor]:
        """What checkpoints have of the model: all weights, or of a run with an adapter only those that are learnt."""
        state = self.state.model.state_dict()
        if checkpoint_config(self.job).adapter is None:
            return state
        learnt = {name for name, parameter in self.state.model.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in state.items() if name in learnt}

    def loop_state(self) -> dict[str, Any]:
        """What the loop itself needs to go on."""
        state = self.state
        return {
            "step": state.step,
            "tokens": state.tokens,
            "bookmark": merge_bookmarks(self.job.world.gather(state.bookmark)) if state.bookmark else {},
            "optimizer": state.optimizer.state_dict(),
            "non_finite": int(state.non_finite),
            "micro_batch_tokens": [self.config.micro_batch_tokens, state.micro_batch_tokens],
            "compiled": [self.config.compile, state.compilation.compiled],
            "horizon": self.horizon(),
            "weights": None if state.average is None else state.average.weights,
        }

    def horizon(self) -> list[Any]:
        """The horizon of the run, and the length that the user wanted, for which alone it is good."""
        horizon = self.state.horizon or Horizon(self.config.steps)
        return [horizon.steps, horizon.since, horizon.share, self.config.steps, self.config.minutes]

    def restore(self, training: dict[str, Any]) -> None:
        """Put the loop where the training state of a checkpoint says.

        The weights of the checkpoint are in the model already. If they are an average, those that are trained come with
        the training state. These, and the state of the optimizer, are taken out of it, so that nobody holds them twice.
        """
        self.state.step = training["step"]
        self.best, self._lost = training["best"], {}
        here = self.job.folder.step_path(self.state.step)
        if self.job.world.from_main(here.exists):  # not so in a run that goes on from another's checkpoint
            self.saved, self.last = self.state.step, here
        self.state.tokens = training["tokens"]
        self.state.bookmark = training["bookmark"]
        self.state.optimizer.load_state_dict(training.pop("optimizer"), self.job.world)
        self.state.non_finite = training.get("non_finite", 0)
        said, used = training.get("micro_batch_tokens", [None, None])
        self.state.micro_batch_tokens = used if said == self.config.micro_batch_tokens else None
        said, compiled = training.get("compiled", [None, None])
        self.state.compilation = Compilation(compiled if said == self.config.compile else None)
        self.state.horizon = horizon_from(training, self.config)
        parameters = dict(self.state.model.named_parameters())
        for name, weight in (training.pop("weights", None) or {}).items():
            local(parameters[name].detach()).copy_(local(share_out(weight, parameters[name], self.job.world)))

    def lineage(self) -> dict[str, Any]:
        """Where the weights come from and how they were made."""
        job = self.job
        return {
            "command": job.command,
            "run": job.folder.path.name,
            "parent": job.parents[-1] if job.parents else None,
            "ancestors": list(job.parents),
            "changes": list(self.changes),
            "step": self.state.step,
            "tokens": self.state.tokens,
            "seed": job.config.seed,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            **environment(job.config.train, job.device, job.dtype, job.world),
        }


def checkpoint_config(job: Job) -> CheckpointConfig:
    """What the checkpoints of a run say of themselves."""
    return CheckpointConfig(
        model=job.model.config,
        chat=chat_format(job.settled.data),
        framing=job.framing,
        bidirectional_prompt=bidirectional_prompt(job.settled.data.objective),
        generation=job.settled.generation,
        adapter=job.base.adapter if job.base else None,
        run={"command": job.command, **job.config.plain()},
    )


def _failure(save: Future[Path | None]) -> BaseException | None:
    """What made a save fail, if anything, once it has ended.

    Waited for in short turns: a signal that another thread of the process was given wakes none that waits for a lock,
    and a second Ctrl-C is not to wait for the disk.
    """
    while True:
        with suppress(TimeoutError):
            return save.exception(WAITING_SECONDS)


def require_finite(weights: dict[str, Tensor], step: int) -> None:
    """Keep weights that are worth nothing from taking the place of good ones.

    Raises:
        DivergedError: a weight is not finite.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise DivergedError(
                f"weight {name} is not finite", f"step {step}", "go on from the last checkpoint with --resume"
            )
