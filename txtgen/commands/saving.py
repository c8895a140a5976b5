"""What a run saves: how its checkpoints are made and written, and how a resumed run takes one up."""

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import txtgen
from txtgen.checkpoint import Checkpoint, save_checkpoint
from txtgen.commands.job import Job
from txtgen.commands.starting import environment
from txtgen.config.commands import CheckpointConfig, chat_format
from txtgen.data import merge_bookmarks
from txtgen.train import TrainState


class Saving:
    """The checkpoints of a run in progress. Making one is the work of all ranks together, writing it of rank 0."""

    def __init__(self, job: Job, state: TrainState) -> None:
        self.job, self.state = job, state
        self.changes = [*job.changes]
        """What resuming users accepted, each with its step."""
        self.saved = state.step
        """The step of the last checkpoint that can be resumed."""

    def save(self, progress: dict[str, Any]) -> Path:
        """Write the checkpoint of this step. Returns where it is.

        Args:
            progress: what a resumed run needs beside the state of the loop; plain data.
        """
        checkpoint, folder = self.checkpoint(progress), self.job.folder
        path = self.job.world.from_main(
            lambda: folder.save(self.state.step, checkpoint, self.job.config.train.keep_last)
        )
        self.saved = self.state.step
        return path

    def save_best(self) -> None:
        """Write the model as it is now to best.pth, without what a resumed run needs."""
        checkpoint = self.checkpoint(None)
        self.job.world.from_main(lambda: save_checkpoint(self.job.folder.best, checkpoint))

    def checkpoint(self, progress: dict[str, Any] | None) -> Checkpoint:
        """The model as it is now, and with what a resumed run needs if any progress is given."""
        return Checkpoint(
            config=checkpoint_config(self.job),
            model=self.state.model.state_dict(),
            tokenizer=self.job.tokenizer,
            source_tokenizer=self.job.source_tokenizer,
            lineage=self.lineage(),
            training=None if progress is None else {**progress, **self.loop_state()},
        )

    def loop_state(self) -> dict[str, Any]:
        """What the loop itself needs to go on."""
        state = self.state
        return {
            "step": state.step,
            "tokens": state.tokens,
            "bookmark": merge_bookmarks(self.job.world.gather(state.bookmark)) if state.bookmark else {},
            "optimizer": state.optimizer.state_dict(),
            "non_finite": int(state.non_finite),
        }

    def restore(self, training: dict[str, Any]) -> None:
        """Put the loop where the training state of a checkpoint says; its weights are in the model already."""
        self.state.step = self.saved = training["step"]
        self.state.tokens = training["tokens"]
        self.state.bookmark = training["bookmark"]
        self.state.optimizer.load_state_dict(training["optimizer"])
        self.state.non_finite = training.get("non_finite", 0)

    def lineage(self) -> dict[str, Any]:
        """Where the weights come from and how they were made."""
        job, device = self.job, next(self.job.model.parameters()).device
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
            "txtgen": txtgen.__version__,
            "python": platform.python_version(),
            **environment(job.config.train, device, job.dtype, job.world),
        }


def checkpoint_config(job: Job) -> CheckpointConfig:
    """What the checkpoints of a run say of themselves."""
    return CheckpointConfig(
        model=job.model.config,
        chat=chat_format(job.settled.data),
        framing=job.framing,
        generation=job.settled.generation,
        run={"command": job.command, **job.config.plain()},
    )
