"""How weights are learnt."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from txtgen.config.base import Config, Count, NonNegative, Share
from txtgen.config.model import Compile

Sharding = Literal["replicate", "shard"]
LearningRate = Annotated[float, Field(gt=0.0, le=10.0)]
LayerDecay = Annotated[float, Field(gt=0.0, le=1.0)]


class AdamWConfig(Config):
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2017, arXiv 1711.05101."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: LearningRate | None = None
    """Peak learning rate; None: 1e-3 when pretraining and for adapters, 1e-4 when finetuning all weights and beside
    Muon; a tenth of that for preferences (dpo)."""
    beta1: Share = 0.9
    beta2: Share = 0.95
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """On matrices only: never on biases, norms or embeddings."""
    layer_decay: LayerDecay = 1.0
    """Each layer learns at this share of the rate of the one above it; the last one, and what stands behind it, at the
    full rate, embeddings slowest. Source: Clark et al. 2020, arXiv 2003.10555; Howard and Ruder 2018, arXiv
    1801.06146."""

    def settled(self, ratio: float = 1.0) -> "AdamWConfig":
        """With its learning rate spelt out: what the user said, or the usual one times `ratio`."""
        return self.model_copy(update={"learning_rate": self.learning_rate or 1e-3 * ratio})


class MuonConfig(Config):
    """Muon for the linear layers inside blocks, AdamW for all else.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """

    kind: Literal["muon"] = "muon"
    learning_rate: LearningRate | None = None
    """Peak learning rate of Muon; None: 0.02 when pretraining, 0.002 when finetuning; a tenth of that for preferences
    (dpo)."""
    momentum: Share = 0.95
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    layer_decay: LayerDecay = 1.0
    """As that of AdamW, and for its part too."""
    adamw: AdamWConfig = AdamWConfig()
    """For embeddings, norms, biases and the output layer; its learning rate follows the same schedule."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """One decay for both."""
        if self.adamw.layer_decay != 1.0:
            yield "adamw.layer_decay", "is said by layer_decay of muon, for both of its parts"

    def settled(self, ratio: float = 1.0) -> "MuonConfig":
        """With its learning rates spelt out: what the user said, or the usual ones times `ratio`."""
        rates = {"learning_rate": self.learning_rate or 0.02 * ratio, "adamw": self.adamw.settled(ratio)}
        return self.model_copy(update=rates)


OptimizerConfig = Annotated[AdamWConfig | MuonConfig, Field(discriminator="kind")]


class CosineSchedule(Config):
    """Linear warm-up, then half a cosine down to final_ratio of the peak."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: NonNegative | None = None
    """None: a twentieth of the run, at most 100 steps."""
    final_ratio: Share = 0.1


class InverseSqrtSchedule(Config):
    """Linear warm-up, then down with 1 / sqrt(step). Source: Vaswani et al. 2017, section 5.3."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup_steps: Count = 2000


class ConstantSchedule(Config):
    """Linear warm-up, then no change."""

    kind: Literal["constant"] = "constant"
    warmup_steps: NonNegative = 0


class TrapezoidSchedule(Config):
    """Linear warm-up, no change, then linearly down to final_ratio of the peak.

    Source: Hägele et al. 2024, arXiv 2405.18392.
    """

    kind: Literal["trapezoid"] = "trapezoid"
    warmup_steps: NonNegative | None = None
    """None: a twentieth of the run, at most 100 steps."""
    cooldown_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """The share of the run in which the rate falls."""
    cooldown_steps: NonNegative | None = None
    """The last steps, in which the rate falls; None: the share of the run that cooldown_ratio says."""
    final_ratio: Share = 0.0

    def cooldown(self, steps: int) -> float:
        """How long the rate falls at the end of a run of so many steps: it stays at its peak up to then."""
        return self.cooldown_ratio * steps if self.cooldown_steps is None else float(self.cooldown_steps)


ScheduleConfig = Annotated[
    CosineSchedule | TrapezoidSchedule | InverseSqrtSchedule | ConstantSchedule, Field(discriminator="kind")
]


UNLIMITED = 1_000_000_000
"""Steps of a run that only its time ends."""


def _steps_or_time(schema: dict[str, Any]) -> None:
    """In the JSON Schema, too, steps are null only beside minutes."""
    steps = schema["properties"]["steps"]
    schema["properties"]["steps"] = {**steps, "type": [steps["type"], "null"]}
    schema["if"] = {"properties": {"steps": {"type": "null"}}, "required": ["steps"]}
    schema["then"] = {"properties": {"minutes": {"type": "number"}}, "required": ["minutes"]}


class TrainConfig(Config):
    """The training loop. Whatever is counted is counted in optimizer steps."""

    model_config = ConfigDict(json_schema_extra=_steps_or_time)

    steps: Annotated[int, Field(ge=1, le=2**63 - 1)] = 1000
    """Optimizer steps. Beside minutes, null or nothing: as many as fit into the time."""
    minutes: Annotated[float, Field(gt=0.0)] | None = None
    """The time of the whole run, to which its schedule is fitted. Where steps are given too, whichever comes first."""
    batch_tokens: Count = 8192
    """Tokens of one optimizer step, over all ranks and micro-batches. Packed rows: rows * sequence_length.
    Sequence to sequence: the padded target and source tokens of a batch do not exceed it."""
    sequence_length: Count | None = None
    """Length of a packed row; None: the model's max_length, of a model from elsewhere at most 1024."""
    micro_batch_tokens: Count | None = None
    """At most this many tokens go through the model at once; None: all of them."""
    activation_checkpointing: bool = False
    """Keep only what goes into each layer and compute the rest again for the gradients: far less memory, a third more
    time, the same result to the bit."""
    compile: Compile = "auto"
    """Turn the layers into machine code of their own, which takes up to a minute at the start. auto: on
    a GPU, if it makes the first batch faster. Where it fails, the run goes on without it and tells why."""
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = CosineSchedule()
    sharding: Sharding = "replicate"
    """Of several ranks: replicate: each holds all weights. shard: each holds a part of the weights, gradients and
    optimizer state, and gathers a layer's weights whenever it computes with them: for models too large for one."""
    rank_timeout_seconds: Annotated[float, Field(gt=0.0)] = 600.0
    """How long ranks wait for one another; a rank that is gone is noticed at once."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Average the weights over the steps: how much of the average stays in a step. Validation, samples, best.pth and
    the model of every checkpoint then have the average; the weights themselves go on being trained."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    on_non_finite: Literal["stop", "skip", "roll_back"] = "stop"
    """Of a step whose loss or gradient is not finite, which never reaches the weights. skip: leave it out and go on.
    roll_back: go back to the last checkpoint, leave out what was read since then, and go on behind that step."""
    max_non_finite: Count = 3
    """As many in a row are skipped, or lead back to one checkpoint; one more stops the run."""
    label_smoothing: Share = 0.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products. auto: bfloat16 on a GPU or CPU that computes in it natively, float32 elsewhere, and
    for models too narrow to gain on a CPU."""
    patience: Count | None = None
    """Stop after so many validations in a row without a better one; None: never."""
    tensorboard: bool = False
    """Also write curves and samples for TensorBoard, into the run's folder; needs txtgen[tensorboard]."""
    log_every: Count = 10
    validate_every: NonNegative = 250
    """0: only at the end."""
    validation_batches: Count | None = None
    """At most this many batches per validation; None: all of the held-out text."""
    validation_metric: Literal["loss", "bleu", "chrf"] = "loss"
    """What `best.pth` is best in; bleu and chrf translate validation pairs, greedily, and need txtgen[eval]."""
    validation_translations: Count = 200
    """How many validation pairs are translated for bleu or chrf."""
    save_every: NonNegative = 500
    """0: only at the end."""
    keep_last: Count = 2
    """As many of the newest checkpoints stay."""
    keep_every: NonNegative = 0
    """Besides, those of multiples of so many steps stay for good; 0: none."""
    save_in_background: bool = True
    """Training goes on while a checkpoint is written, from a copy in the CPU's memory; else it waits for the disk."""

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_fit(cls, value: Any) -> Any:
        """Where only the time is given, the steps are as many as fit into it."""
        if isinstance(value, dict) and value.get("minutes") is not None and value.get("steps") is None:
            return {**value, "steps": UNLIMITED}
        return value

    def problems(self) -> Iterator[tuple[str, str]]:
        """A warm-up must end before the run does."""
        if self.steps and (self.schedule.warmup_steps or 0) > self.steps:
            yield (
                "schedule.warmup_steps",
                f"is {self.schedule.warmup_steps}, more than the {self.steps} steps of the run",
            )
        elif isinstance(self.schedule, TrapezoidSchedule):
            flat = round(self.steps - self.schedule.cooldown(self.steps))
            if (self.schedule.warmup_steps or 0) > flat:
                yield (
                    "schedule.warmup_steps",
                    f"is {self.schedule.warmup_steps}, but the cooldown begins at step {flat}",
                )
        if self.keep_every and (not self.save_every or self.keep_every % self.save_every):
            yield "keep_every", f"is {self.keep_every}, not a multiple of save_every {self.save_every}"
        if self.micro_batch_tokens is not None and self.micro_batch_tokens > self.batch_tokens:
            yield "micro_batch_tokens", f"is {self.micro_batch_tokens}, more than batch_tokens {self.batch_tokens}"
