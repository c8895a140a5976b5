"""Training: losses, optimizers, schedules and the loop."""

from txtgen.train.cost import FlopCounts, count_flops, matrix_peak, peak_memory_bytes
from txtgen.train.loop import StepReport, TrainState, train
from txtgen.train.loss import LossSums, batch_loss, cross_entropy_sums
from txtgen.train.optimizer import build_optimizer
from txtgen.train.schedule import learning_rate
from txtgen.train.speed import Speed

__all__ = [
    "FlopCounts",
    "LossSums",
    "Speed",
    "StepReport",
    "TrainState",
    "batch_loss",
    "build_optimizer",
    "count_flops",
    "cross_entropy_sums",
    "learning_rate",
    "matrix_peak",
    "peak_memory_bytes",
    "train",
]
