"""Training: losses, optimizers, schedules and the loop."""

from txtgen.train.loop import StepReport, TrainState, train
from txtgen.train.loss import LossSums, batch_loss, cross_entropy_sums
from txtgen.train.optimizer import build_optimizer
from txtgen.train.schedule import learning_rate

__all__ = [
    "LossSums",
    "StepReport",
    "TrainState",
    "batch_loss",
    "build_optimizer",
    "cross_entropy_sums",
    "learning_rate",
    "train",
]
