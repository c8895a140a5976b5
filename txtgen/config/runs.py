"""What a run is told, of pretraining or of finetuning, and what must fit together in it."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from txtgen.config.base import Config, Expected, NonNegative, Seed, Share
from txtgen.config.data import DataConfig
from txtgen.config.decoding import DecodingConfig, GreedyConfig, SampleConfig
from txtgen.config.finetuning import FreezeConfig, LoraConfig
from txtgen.config.model import EncoderDecoderConfig, ModelConfig, TransformerConfig
from txtgen.config.objectives import TEXTS, TRANSLATIONS, DpoObjective, MixtureObjective, Objective, ObjectiveConfig
from txtgen.config.tokenizer import Framing, TokenizerConfig, VocabularyConfig
from txtgen.config.train import UNLIMITED, TrainConfig

Device = Literal["auto", "cpu", "cuda", "mps"]

RunName = Annotated[
    str,
    Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,99}$"),
    Expected("a folder name (at most 100 characters, no slash, no dot in front)"),
]


class SamplesConfig(Config):
    """Texts generated during training, to watch it learn."""

    prompts: tuple[str, ...] = ()
    every: NonNegative = 0
    """Steps between samples; 0: whenever validation runs."""
    decoding: DecodingConfig = SampleConfig(max_new_tokens=64, temperature=0.8)
    gap: Annotated[str, Field(min_length=1)] | None = None
    """What stands in a prompt for text to be filled in; None: prompts are gone on from."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """A rhythm needs something that has it."""
        if self.every and not self.prompts:
            yield "every", f"is {self.every}, but there are no samples.prompts; give some, or set it to 0"


class RunConfig(Config):
    """What pretraining and finetuning have in common."""

    name: RunName | None = None
    """Of the run's folder; None: the config's file name and a number."""
    runs_path: str = "runs"
    seed: Seed = 0
    device: Device = "auto"
    data: DataConfig
    train: TrainConfig = TrainConfig()
    samples: SamplesConfig = SamplesConfig()
    generation: DecodingConfig = GreedyConfig()
    """Defaults of `txtgen generate` for this model; where nothing is said, those of the base model."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """A run has one model, and its checkpoints name no other."""
        for key, decoding in (("samples.decoding", self.samples.decoding), ("generation", self.generation)):
            if decoding.needs_draft:
                yield f"{key}.speculation", "draft needs a second model, which a run has not; use prompt_lookup"
        yield from self._measuring_problems()

    def remarks(self) -> Iterator[str]:
        """What a user may not expect of this config, sound as it is."""
        if not self.data.held_out_kinds:
            yield "nothing is held out (data.validation): no validation loss, and no best.pth"
        if self.train.minutes is not None and self.train.steps < UNLIMITED:
            yield f"the run ends after {self.train.steps:,} steps or {self.train.minutes:g} minutes, whichever is less"

    def _measuring_problems(self) -> Iterator[tuple[str, str]]:
        """What is asked of measurements on held-out text that it cannot give."""
        metric, held = self.train.validation_metric, self.data.held_out_kinds
        if metric != "loss" and not held & TRANSLATIONS:
            yield (
                "train.validation_metric",
                f"{metric} needs source and target pairs that are held out (data.validation), of which there are none",
            )
        if self.train.patience is not None and not held:
            yield (
                "train.patience",
                "nothing is held out to be measured; set data.validation.fraction or .sources, or this to null",
            )


ROW_LENGTH_FROM_ELSEWHERE = 1024
"""A model from elsewhere may allow 100,000 positions, which few machines could train on or measure in one row."""


def row_length(said: int | None, model: TransformerConfig, framing: Framing | None = None) -> int:
    """Positions of a packed row, or of the longest target: what the user said, or else all that the model allows, but
    no more than ROW_LENGTH_FROM_ELSEWHERE in a row of a decoder from elsewhere, which its framing tells."""
    packed_from_elsewhere = framing is not None and not isinstance(model, EncoderDecoderConfig)
    most = ROW_LENGTH_FROM_ELSEWHERE if packed_from_elsewhere else model.max_length
    return said or min(model.max_length, most)


def objective_keys(objective: ObjectiveConfig) -> Iterator[tuple[str, Objective]]:
    """The objective itself, or the parts of a mixture, each with the dotted key of its kind."""
    if not isinstance(objective, MixtureObjective):
        yield "data.objective.kind", objective
        return
    for number, part in enumerate(objective.parts):
        yield f"data.objective.parts.{number}.kind", part


def architecture_problems(
    model: ModelConfig, data: DataConfig, train: TrainConfig, framing: Framing | None = None
) -> Iterator[tuple[str, str]]:
    """What does not fit between a model and what it is to learn, as (dotted key, complaint)."""
    kinds = {source.kind for source in data.sources}
    names = {"decoder": "a decoder", "encoder_decoder": "an encoder_decoder"}
    for key, part in objective_keys(data.objective):
        if model.kind not in part.architectures:
            yield key, f"{part.kind} needs {names[part.architectures[0]]}, but the model is {names[model.kind]}"
        elif part is not data.objective and not part.reads & kinds:
            yield key, f"there is no source that {part.kind} could read"
    for group in ("data.sources", "data.validation.sources"):
        for number, source in enumerate(data.groups[group]):
            if source.kind not in data.objective.readable:
                yield (
                    f"{group}.{number}.kind",
                    f"a {source.kind} source cannot serve the objective {data.objective.kind}",
                )
    for name, known in (("replay", data.replay), ("forgetting", data.forgetting)):
        own = None if known is None else data.own_objective(known)
        if own is not None and model.kind not in own.architectures:
            yield (
                f"data.{name}.objective",
                f"{own.kind} needs {names[own.architectures[0]]}; give one that the model knows",
            )
    length = row_length(train.sequence_length, model, framing)
    if length > model.max_length:
        yield "train.sequence_length", f"is {length}, more than the model's max_length {model.max_length}"
    if isinstance(data.objective, DpoObjective):
        yield from _preference_problems(train)
    elif model.kind == "decoder" and train.batch_tokens % length:
        near = max(1, round(train.batch_tokens / length)) * length
        yield "train.batch_tokens", f"{train.batch_tokens} is not a multiple of the row length {length}; try {near}"


def _preference_problems(train: TrainConfig) -> Iterator[tuple[str, str]]:
    """What has no meaning where answers are compared."""
    if train.label_smoothing:
        yield "train.label_smoothing", "is of tokens; the pairs' own is data.objective.label_smoothing"


class PretrainConfig(RunConfig):
    """`txtgen pretrain`: a new model from a corpus."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    source_tokenizer: TokenizerConfig | None = None
    """Of the source of an encoder-decoder; None: the same tokenizer for both."""
    model: ModelConfig

    def problems(self) -> Iterator[tuple[str, str]]:
        """The model, the objective, the sources and the batch must fit together."""
        yield from super().problems()
        yield from architecture_problems(self.model, self.data, self.train)
        if isinstance(self.data.objective, DpoObjective):
            yield "data.objective.kind", "dpo needs a trained model to be compared with; use txtgen finetune"
        if not any(self.tokenizer.problems()):
            for key, complaint in self.tokenizer.reserving(self.data.objective.control_symbols).problems():
                yield f"tokenizer.{key}", complaint
        if self.source_tokenizer is None:
            return
        if not isinstance(self.model, EncoderDecoderConfig):
            yield "source_tokenizer", "only an encoder_decoder has one"
            return
        if self.model.share_embeddings:
            yield "source_tokenizer", "two tokenizers cannot share embeddings; set model.share_embeddings: false"
        for key, part in objective_keys(self.data.objective):
            if part.reads == TEXTS:
                yield key, f"{part.kind} needs one tokenizer for both sides; leave source_tokenizer out"


class FinetuneConfig(RunConfig):
    """`txtgen finetune`: a trained model goes on learning, from other data, in smaller steps."""

    base: str | None = None
    """The model to start from: a .pth or a run folder."""
    tokenizer: VocabularyConfig | None = None
    """New tokens, or another tokenizer; None: the base model's own."""
    source_tokenizer: VocabularyConfig | None = None
    """The same for the source, of an encoder-decoder with two tokenizers."""
    freeze: FreezeConfig = FreezeConfig()
    """Parameters that stay as they are. A list is one of patterns."""
    adapter: LoraConfig | None = None
    """What is learnt in place of the base model's weights, which all stay as they are; None: these."""
    dropout: Share | None = None
    """Replaces the base model's dropout. None: leaves it as it is, but for dpo, where it is 0, for what dropout does to
    an answer would be taken for what has been learnt."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Beside an adapter there is nothing left to freeze, and nothing that could learn new tokens."""
        yield from super().problems()
        for key in ("tokenizer", "source_tokenizer"):
            if self.adapter is not None and getattr(self, key) is not None:
                yield (
                    key,
                    "and adapter exclude each other: beside an adapter, the rows of new tokens could not be learnt",
                )
        if self.adapter is not None and self.freeze != FreezeConfig():
            yield "freeze", "and adapter exclude each other: beside an adapter all weights are frozen"
