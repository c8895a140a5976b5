"""A run that is ready to train."""

from dataclasses import dataclass
from typing import Any

import torch

from txtgen.commands.devices import training_dtype
from txtgen.commands.running.resuming import row_length_so_far
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.running.starting import Start
from txtgen.config.checkpoint import CheckpointConfig, inherited
from txtgen.config.data import SubwordSampling
from txtgen.config.objectives import DpoObjective, ObjectiveConfig
from txtgen.config.runs import FinetuneConfig, RunConfig, row_length
from txtgen.config.tokenizer import Framing
from txtgen.data import Objective, StreamOptions, build_objective
from txtgen.distributed import World
from txtgen.model import Transformer
from txtgen.tokenizer import Tokenizer
from txtgen.train import Loss, PreferenceLoss, TokenLoss


@dataclass(frozen=True)
class Job:
    """A run that is ready to train: everything built, nothing learnt yet, or as far as its start resumes.

    parents: fingerprints of the checkpoints that it descends from, the nearest last. base: what the checkpoint that
    it goes on from says of itself, or None.
    """

    command: str
    config: RunConfig
    start: Start
    model: Transformer
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer | None
    parents: tuple[str, ...] = ()
    base: CheckpointConfig | None = None

    @property
    def folder(self) -> RunFolder:
        """Where the run writes."""
        return self.start.folder

    @property
    def world(self) -> World:
        """This rank among the others."""
        return self.start.world

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.start.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        lineage = self.start.resumed.lineage if self.start.resumed else None
        return training_dtype(self.config.train.dtype, self.device, self.model.config, lineage)

    @property
    def resumed(self) -> dict[str, Any] | None:
        """The training state that it goes on from, if any."""
        return self.start.resumed.training if self.start.resumed else None

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
        """Positions of a packed row, or of the longest target; in a resumed run they are as many as they were."""
        train = self.config.train
        said = train.sequence_length or row_length_so_far(self.resumed, train.batch_tokens)
        return min(row_length(said, self.model.config, self.framing), self.model.config.max_length)

    def objective(self, config: ObjectiveConfig, sampling: SubwordSampling | None = None) -> Objective:
        """What examples are made by. sampling: how the tokens of a training text are drawn; None: for validation."""
        return build_objective(
            config,
            self.tokenizer,
            self.source_tokenizer,
            max_length=self.row_length,
            max_source_length=self.model.config.source_length,
            framing=self.framing,
            sampling=sampling,
        )

    @property
    def has_base_within(self) -> bool:
        """Whether the model is its base as soon as its adapters are off."""
        adapter = self.config.adapter if isinstance(self.config, FinetuneConfig) else None
        return adapter is not None and not adapter.trainable

    @property
    def loss(self) -> Loss:
        """What the run minimises."""
        objective = self.config.data.objective
        if isinstance(objective, DpoObjective):
            return PreferenceLoss(objective, self.has_base_within)
        return TokenLoss(self.config.train.label_smoothing)

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
