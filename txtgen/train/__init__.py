"""Training: losses, optimizers, schedules and the loop."""

from txtgen.train.accumulation import even_micro_batches, micro_batches
from txtgen.train.average import WeightAverage
from txtgen.train.budget import TimeBudget
from txtgen.train.checkpointing import checkpoint_activations
from txtgen.train.compilation import Compilation, compile_layers, settle_compilation
from txtgen.train.cost import FlopCounts, count_flops, matrix_peak, peak_memory_bytes
from txtgen.train.estimate import MemoryEstimate, estimate_memory
from txtgen.train.figures import Figures, StepReport, named
from txtgen.train.loop import NonFiniteError, TrainState, refuse_non_finite, train
from txtgen.train.loss import Loss, LossSums, TokenLoss, batch_loss, cross_entropy_sums
from txtgen.train.memory import HeldBytes, held_bytes, require_memory, smaller_batch
from txtgen.train.optimizer import build_optimizer
from txtgen.train.preference import PreferenceLoss, pair_logprobs
from txtgen.train.reference import ReferenceTable
from txtgen.train.schedule import Horizon, share_of_peak, warmup_steps
from txtgen.train.speed import Contention, Speed
from txtgen.train.spikes import SpikeWatch

__all__ = [
    "Compilation",
    "Contention",
    "Figures",
    "FlopCounts",
    "HeldBytes",
    "Horizon",
    "Loss",
    "LossSums",
    "MemoryEstimate",
    "NonFiniteError",
    "PreferenceLoss",
    "ReferenceTable",
    "Speed",
    "SpikeWatch",
    "StepReport",
    "TimeBudget",
    "TokenLoss",
    "TrainState",
    "WeightAverage",
    "batch_loss",
    "build_optimizer",
    "checkpoint_activations",
    "compile_layers",
    "count_flops",
    "cross_entropy_sums",
    "estimate_memory",
    "even_micro_batches",
    "held_bytes",
    "matrix_peak",
    "micro_batches",
    "named",
    "pair_logprobs",
    "peak_memory_bytes",
    "refuse_non_finite",
    "require_memory",
    "settle_compilation",
    "share_of_peak",
    "smaller_batch",
    "train",
    "warmup_steps",
]
