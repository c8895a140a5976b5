"""A run that is ready to train."""

from dataclasses import dataclass, field
from typing import Any

import torch

from txtgen.commands.run_folder import RunFolder
from txtgen.commands.signals import StopRequest
from txtgen.commands.status import Status
from txtgen.config.commands import CheckpointConfig, RunConfig, inherited, row_length
from txtgen.config.data import SubwordSampling
from txtgen.config.tokenizer import Framing
from txtgen.data import Objective, StreamOptions, build_objective
from txtgen.distributed import World
from txtgen.model import Transformer
from txtgen.tokenizer import Tokenizer


@dataclass(frozen=True)
class Job:
    """A run that is ready to train: everything built, nothing learnt yet (or as far as `resumed` says).

    parents: fingerprints of the checkpoints that it descends from, the nearest last. base: what the checkpoint that
    it goes on from says of itself, or None. resumed: the training state of that checkpoint, or None. changes: what
    resuming users accepted, each with its step. accept_changes: go on although the corpus is not what it was.
    stop: what signals asked for. status: where the run says what it does.
    """

    command: str
    config: RunConfig
    model: Transformer
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer | None
    folder: RunFolder
    dtype: torch.dtype
    world: World = field(default_factory=World)
    base: CheckpointConfig | None = None
    parents: tuple[str, ...] = ()
    resumed: dict[str, Any] | None = None
    changes: tuple[dict[str, Any], ...] = ()
    accept_changes: bool = False
    stop: StopRequest = field(default_factory=StopRequest)
    status: Status = field(default_factory=lambda: Status(None))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def settled(self) -> RunConfig:
        """The config with what it leaves open taken from the base model."""
        return self.config if self.base is None else inherited(self.config, self.base)

    @property
    def framing(self) -> Framing | None:
        """The tokens around texts that the base model knows; None: txtgen's own."""
        return None if self.base is None else self.base.framing

    @property
    def row_length(self) -> int:
        """Positions of a packed row, or of the longest target."""
        return row_length(self.config.train.sequence_length, self.model.config, self.framing)

    def objective(self, sampling: SubwordSampling | None = None) -> Objective:
        """What the run learns. sampling: how the tokens of a training text are drawn; None: for validation."""
        return build_objective(
            self.settled.data.objective,
            self.tokenizer,
            self.source_tokenizer,
            max_length=self.row_length,
            max_source_length=self.model.config.source_length,
            framing=self.framing,
            sampling=sampling,
        )

    @property
    def stream_options(self) -> StreamOptions:
        """What the streams of the training and of the held-out text have in common."""
        return StreamOptions(
            batch_tokens=self.config.train.batch_tokens,
            length=self.row_length,
            seed=self.config.seed,
            rank=self.world.rank,
            world_size=self.world.size,
        )
