"""One class per subcommand that is no run: everything that it can be told."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from txtgen.config.base import Config, Count, NonNegative
from txtgen.config.data import BleuTokenizer
from txtgen.config.ensemble import Mixture
from txtgen.config.model import Compile, Native, Quantization
from txtgen.config.runs import Device, RunName


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


def ways_problems(compile: Compile, native: Native) -> Iterator[tuple[str, str]]:
    """Compiled steps and machine code are two ways to compute, of which one is taken."""
    if compile is True and native == "require":
        yield "compile", "and native: require exclude each other; leave one of them out"


class GeneratingConfig(ModelUseConfig):
    """What is told to every command that generates."""

    decoding: dict[str, Any] = Field(default_factory=dict)
    """Options of the strategy that the user gave; the checkpoint's defaults fill the rest."""
    compile: Compile = "auto"
    """Whether decoding steps are compiled, in place of machine code; auto: on a GPU, for many prompts."""
    draft: str | None = None
    """A smaller model with the same tokens, for decoding.speculation of kind draft."""
    shortlist: str | None = None
    """A file of `txtgen shortlist`: an encoder-decoder scores the tokens that a source may need, and no others."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """A draft is for speculation, and a short-list for a single model; one way computes."""
        yield from super().problems()
        yield from ways_problems(self.compile, self.native)
        if self.shortlist is not None and self.ensemble:
            yield "shortlist", "and ensemble exclude each other: several models decide about all tokens"
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
    shortlist: str | None = None
    """A file of `txtgen shortlist`, for the translation of pairs; what of their targets it has is told."""
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
    compile: Compile = "auto"
    """Of what is generated, as for `GeneratingConfig`."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """One way computes."""
        yield from ways_problems(self.compile, self.native)


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
    overwrite: bool = False
    """A run of this name is moved aside."""
    accept_changes: bool = False
    """Although files, or how they are learnt, are not as they were."""

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


class ShortlistConfig(Config):
    """`txtgen shortlist`."""

    model: str | None = None
    runs_path: str = "runs"
    paths: tuple[str, ...]
    """Data files with pairs, such as the model was trained on."""
    target: str | None = None
    """A file whose line i is the target of line i of the data file."""
    output: str
    """The file to write."""
    frequent: NonNegative = 100
    """So many of the most frequent target tokens are in every list."""
    per_token: Count = 20
    """And so many of the likeliest target tokens of each source token."""
    max_pairs: Count = 200_000
    """Pairs that are read, the first ones of more."""
    overwrite: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """There must be something to learn from."""
        if not self.paths:
            yield "paths", "there are no pairs to learn from; give --data PATH"


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
