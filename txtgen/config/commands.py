"""One class per subcommand: everything that it can be told."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from txtgen.config.base import Config, Count, Expected, NonNegative, Seed, Share
from txtgen.config.data import (
    BleuTokenizer,
    ChatFormat,
    ChatObjective,
    DataConfig,
    DpoObjective,
    MixtureObjective,
    ObjectiveConfig,
    PartConfig,
    Seq2SeqObjective,
    TokensChatFormat,
)
from txtgen.config.decoding import DecodingConfig, GreedyConfig, Mixture, SampleConfig
from txtgen.config.finetuning import AdapterRecord, FreezeConfig, LoraConfig
from txtgen.config.model import EncoderDecoderConfig, ModelConfig, Native, Quantization, TransformerConfig
from txtgen.config.objectives import TEXTS, Objective
from txtgen.config.tokenizer import Framing, TokenizerConfig, VocabularyConfig
from txtgen.config.train import TrainConfig
from txtgen.errors import ConfigError

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
    for group, sources in (("data.sources", data.sources), ("data.validation.sources", data.validation.sources)):
        for number, source in enumerate(sources):
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
    if train.validation_metric != "loss":
        yield "train.validation_metric", f"{train.validation_metric} needs source and target pairs; set it to loss"


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


class ModelUseConfig(Config):
    """What is told to every command that uses a model: which one, and how it computes."""

    model: str | None = None
    """A .pth or a run folder; None: the newest run under runs_path."""
    adapters: tuple[str, ...] = ()
    """Adapters of this model, each a .pth or a run folder; what they change is added up."""
    runs_path: str = "runs"
    batch_size: Count = 16
    independent: bool = False
    """Each row on its own: exactly the same result whatever else is computed."""
    device: Device = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Quantization | None = None
    """Weights in fewer bits; None: as they were saved."""
    native: Native = "auto"
    ensemble: tuple[str, ...] = ()
    """Models with the same tokens that decide together with the first one."""
    mixture: Mixture = Mixture()
    """How they do."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """A weight for each model."""
        count, models = len(self.mixture.weights), 1 + len(self.ensemble)
        if count and count != models:
            yield "mixture.weights", f"are {count}, and {models} models decide; give one for each, that of MODEL first"
        if not self.ensemble and self.mixture.mean != "linear":
            yield "mixture.mean", f"is {self.mixture.mean}, but a single model decides; give --ensemble MODEL"


class PromptedConfig(ModelUseConfig):
    """What is told to every command that reads prompts."""

    prompts: tuple[str, ...] = ()
    raw: bool = False
    """Do not put the prompt of a chat model into a user turn."""
    special: bool = False
    """Spellings of special tokens in a prompt are those tokens."""
    json_output: bool = False


class GeneratingConfig(ModelUseConfig):
    """What is told to every command that generates."""

    decoding: dict[str, Any] = Field(default_factory=dict)
    """Options of the strategy that the user gave; the checkpoint's defaults fill the rest."""
    draft: str | None = None
    """A smaller model with the same tokens, for decoding.speculation of kind draft."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """A draft is for speculation."""
        yield from super().problems()
        speculation = self.decoding.get("speculation")
        kind = speculation.get("kind") if isinstance(speculation, dict) else speculation
        if self.draft is not None and kind != "draft":
            yield "draft", f"is given, but decoding.speculation is {kind}; choose one of the two"


class GenerateConfig(PromptedConfig, GeneratingConfig):
    """`txtgen generate`."""

    input: str | None = None
    """A file: a prompt a line, or .jsonl with `prompt` or `messages`; `-`: standard input."""
    output: str | None = None
    """A file for the results, which appears when all are there; None: standard output."""
    overwrite: bool = False
    """Replace what is in the way of the output."""
    workers: NonNegative = 0
    """Processes of one thread that share out the batches; 0: this process generates, by all of its threads."""
    gap: Annotated[str, Field(min_length=1)] | None = None
    """What stands in a prompt for text to be filled in; None: prompts are gone on from."""
    json_schema: str | None = None
    """A file with the JSON schema of what is generated."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What belongs to an output needs one; workers have one model, on the CPU."""
        yield from super().problems()
        if self.overwrite and self.output is None:
            yield "overwrite", "says what becomes of an output, and there is none; give --output FILE"
        if self.workers and self.device not in ("auto", "cpu"):
            yield "workers", f"compute on the CPU, and device is {self.device}; leave one of them out"
        for name in ("draft", "ensemble"):
            if self.workers and getattr(self, name):
                yield "workers", f"have one model each, and {name} is given; leave one of them out"


class ChatConfig(GeneratingConfig):
    """`txtgen chat`."""

    system: str | None = None
    """What the system says before the first turn."""


class ScoreConfig(PromptedConfig):
    """`txtgen score`. A prompt for each text, or one for all; of an encoder-decoder, its source."""

    targets: tuple[str, ...] = ()
    """The texts to score."""
    input: str | None = None
    """A file: a text a line, or .jsonl with `target` and perhaps `prompt` or `messages`; `-`: standard input."""
    end: bool = True
    """Whether the token that ends a text is scored too."""


class EvaluateConfig(Config):
    """`txtgen evaluate`."""

    model: str | None = None
    adapters: tuple[str, ...] = ()
    runs_path: str = "runs"
    paths: tuple[str, ...] = ()
    """Data files; none: the held-out data of the model's own run."""
    target: str | None = None
    """A file whose line i is the target of line i of the data file."""
    bleu_tokenizer: BleuTokenizer | None = None
    """None: as the model's own run says."""
    decoding: dict[str, Any] = Field(default_factory=dict)
    translate: bool = True
    """Generate a target for every source and score it by BLEU and chrF; only for pairs."""
    generate: NonNegative = 0
    """Go on from so many held-out beginnings of texts, or reply in so many conversations, and tell what the results
    are like."""
    sequence_length: Count | None = None
    """Positions of a row of text, which its tokens may look back to; None: as in the model's own run."""
    batch_tokens: Count = 8192
    output: str | None = None
    """A file for the generated targets, one a line."""
    json_output: bool = False
    device: Device = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    native: Native = "auto"
    """Of translation."""


WeightsDtype = Literal["auto", "float32", "bfloat16", "float16"]


class ImportConfig(Config):
    """`txtgen convert from-hf`."""

    folder: str
    """Of a model in Hugging Face's format."""
    output: str
    """The .pth to write."""
    weights: str | None = None
    """A file of weights in place of the folder's own."""
    dtype: WeightsDtype = "auto"
    overwrite: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """The output must be called what every command takes for a model."""
        if not self.output.endswith(".pth"):
            yield "output", f"{self.output} does not end in .pth"


class ExportConfig(Config):
    """`txtgen convert to-hf`."""

    model: str
    folder: str
    """To write; must not exist, or be empty."""
    runs_path: str = "runs"
    family: str | None = None
    """Of Hugging Face's models; None: the first that can say all that the model's config says."""
    dtype: WeightsDtype = "auto"
    max_shard_bytes: Annotated[int, Field(ge=1_000)] = 5_000_000_000
    """As large as a file of weights gets."""


class MergeConfig(Config):
    """`txtgen convert merge`."""

    model: str | None = None
    adapters: tuple[str, ...] = ()
    output: str
    """The .pth to write."""
    runs_path: str = "runs"
    overwrite: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """The output must be called what every command takes for a model."""
        if not self.output.endswith(".pth"):
            yield "output", f"{self.output} does not end in .pth"


class CooldownConfig(Config):
    """`txtgen cooldown`."""

    checkpoint: str
    """With a training state: a .pth, or a run folder for its last one."""
    steps: Count | None = None
    """In which the learning rate falls; None: as `minutes` say, or half as many as are done."""
    minutes: Annotated[float, Field(gt=0.0)] | None = None
    name: RunName | None = None
    """Of the new run's folder; None: that of the run, -cooldown and a number."""
    runs_path: str | None = None
    """None: where the run itself was told to be."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """One budget."""
        if self.steps is not None and self.minutes is not None:
            yield "minutes", "and steps are two budgets; give one"


class AverageConfig(Config):
    """`txtgen average`."""

    models: tuple[str, ...]
    """At least two, each a .pth or a run folder."""
    output: str
    """The .pth to write."""
    runs_path: str = "runs"
    overwrite: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """There must be something to average, and the output be called what every command takes for a model."""
        if len(self.models) < 2:
            yield "models", "one checkpoint has no average; give at least two"
        if not self.output.endswith(".pth"):
            yield "output", f"{self.output} does not end in .pth"


class QuantizeConfig(Config):
    """`txtgen quantize`."""

    model: str | None = None
    output: str
    """The .pth to write."""
    kind: Quantization = "int8"
    runs_path: str = "runs"
    overwrite: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """The output must be called what every command takes for a model."""
        if not self.output.endswith(".pth"):
            yield "output", f"{self.output} does not end in .pth"


class CheckConfig(Config):
    """`txtgen check resume`."""

    run: str
    """A run folder, or its name under runs_path."""
    steps: Count | None = None
    """So many from the checkpoint before the last, twice; None: up to the last, once."""
    runs_path: str = "runs"
    device: Device = "auto"
    """auto: as the run says."""


class DataCheckConfig(Config):
    """`txtgen data check`."""

    max_bytes: Count = 1_000_000_000
    """At most this much of the training text is read, and of the held-out text; of more, a fair sample."""
    samples: NonNegative = 3
    """Examples of each that are shown."""
    json_output: bool = False


class CheckpointConfig(Config):
    """What a checkpoint says of itself: enough to build, prompt and continue the model."""

    model: ModelConfig
    chat: ChatFormat | None = None
    """How a conversation is written; None: this is no chat model."""
    framing: Framing | None = None
    """The tokens around texts, of a model that comes from elsewhere; None: txtgen's own, and then no text can make
    the model write a special or control token."""
    bidirectional_prompt: bool = False
    """A decoder reads prompts in both directions, because it has learnt to go on from no others."""
    generation: DecodingConfig = GreedyConfig()
    quantization: Quantization | None = None
    """Weights in fewer bits, which cannot be trained; None: as they were trained."""
    adapter: AdapterRecord | None = None
    """The weights are those of an adapter alone, of the model that this names; None: they are all of the model."""
    run: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration of the run that made it."""


def chat_format(data: DataConfig) -> ChatFormat | None:
    """The conversation format that a run teaches, or None."""
    for objective in data.objective.members:
        match objective:
            case ChatObjective(format=format):
                return format or TokensChatFormat()
            case Seq2SeqObjective(format=format) if any(source.kind == "chat" for source in data.sources):
                return format or TokensChatFormat()
            case DpoObjective(format=format):
                return format
    return None


def bidirectional_prompt(objective: ObjectiveConfig) -> bool:
    """Whether a decoder learns to go on from a text only when it has read it in both directions."""
    kinds = {part.kind for part in objective.members}
    return "prefix_lm" in kinds and kinds.isdisjoint({"causal_lm", "fill_in_middle", "chat"})


Run = TypeVar("Run", bound=RunConfig)


def inherited(config: Run, base: CheckpointConfig) -> Run:
    """The config with what it leaves open taken from the model that the run goes on from.

    Raises:
        ConfigError: the objective cannot be taught in the base model's conversation format, or the base model's
            defaults of generation need a second model.
    """
    objective = config.data.objective
    if isinstance(objective, MixtureObjective):
        parts = tuple(_in_format_of(base, part) for part in objective.parts)
        settled: ObjectiveConfig = objective.model_copy(update={"parts": parts})
    elif isinstance(objective, DpoObjective):
        usual = None if isinstance(base.model, EncoderDecoderConfig) else TokensChatFormat()
        settled = objective.model_copy(update={"format": objective.format or base.chat or usual})
    else:
        settled = _in_format_of(base, objective)
    data = config.data.model_copy(update={"objective": settled})
    generation = base.generation if config.generation == GreedyConfig() else config.generation
    if generation.needs_draft:
        told = "the base model's defaults of generation ask for a draft model, and a run has none"
        raise ConfigError(
            told, "generation.speculation", "set it to {kind: prompt_lookup}, or set generation otherwise"
        )
    return config.model_copy(update={"data": data, "generation": generation})


def _in_format_of(base: CheckpointConfig, objective: PartConfig) -> PartConfig:
    """The objective, a conversation format that it leaves open taken from the base model."""
    if not isinstance(objective, ChatObjective | Seq2SeqObjective) or objective.format or base.chat is None:
        return objective
    settled = objective.model_copy(update={"format": base.chat})
    for key, complaint in settled.problems():
        raise ConfigError(f"{key}: {complaint}", f"data.objective.{key}", "or set data.objective.format to another one")
    return settled
