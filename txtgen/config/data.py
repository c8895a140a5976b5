"""Where text comes from, and what is learnt from it."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from txtgen.config.base import Config, Count, NonNegative
from txtgen.config.objectives import PAIRS, PREFERENCES, TEXTS, CausalLmObjective, Objective, TextObjective
from txtgen.config.shape import sections, tag
from txtgen.config.tokenizer import CHAT_ROLES

Paths = Annotated[tuple[str, ...], Field(min_length=1)]
"""Files, folders or glob patterns (`**` goes down folders); `.gz` files are read as what they hold."""

Weight = Annotated[float, Field(gt=0.0)]
"""Share of the training tokens, relative to the other sources; None: as the sizes of the sources are."""


class TextSource(Config):
    """Plain text."""

    kind: Literal["text"] = "text"
    path: str | Paths
    documents: Literal["file", "line", "paragraph", "continuous"] = "file"
    """What one document is: a file, a line, a block between blank lines, or all of it without any border."""
    weight: Weight | None = None


class JsonlSource(Config):
    """One JSON object a line, its text in one field."""

    kind: Literal["jsonl"] = "jsonl"
    path: str | Paths
    text_field: str = "text"
    weight: Weight | None = None


class ParallelSource(Config):
    """Two files, line i of the one belonging to line i of the other."""

    kind: Literal["parallel"] = "parallel"
    source_path: str
    target_path: str
    weight: Weight | None = None


class TsvSource(Config):
    """Source and target in two tab-separated columns, counted from 0."""

    kind: Literal["tsv"] = "tsv"
    path: str | Paths
    source_column: NonNegative = 0
    target_column: NonNegative = 1
    weight: Weight | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """The columns must differ."""
        if self.source_column == self.target_column:
            yield "target_column", f"is the same as source_column ({self.source_column})"


class JsonlPairsSource(Config):
    """One JSON object a line, with a source and a target. Several source fields are joined by a newline."""

    kind: Literal["jsonl_pairs"] = "jsonl_pairs"
    path: str | Paths
    source_field: str | Paths = "source"
    target_field: str = "target"
    weight: Weight | None = None


class ChatSource(Config):
    """One JSON object a line, its `messages` a list of `role` and `content`."""

    kind: Literal["chat"] = "chat"
    path: str | Paths
    messages_field: str = "messages"
    weight: Weight | None = None


class PreferenceSource(Config):
    """One JSON object a line: a prompt, the answer that is preferred, and one that is not.

    The prompt is a text, or a conversation that the answers go on with: a list of `role` and `content`, in the prompt's
    own field or in that of the messages.
    """

    kind: Literal["preference"] = "preference"
    path: str | Paths
    prompt_field: str = "prompt"
    messages_field: str = "messages"
    """Looked for where there is no prompt."""
    chosen_field: str = "chosen"
    rejected_field: str = "rejected"
    weight: Weight | None = None


SourceConfig = Annotated[
    TextSource | JsonlSource | ParallelSource | TsvSource | JsonlPairsSource | ChatSource | PreferenceSource,
    Field(discriminator="kind"),
]


class TokensChatFormat(Config):
    """Every turn is a role token, the text, and the end token: `<|user|> text </s>`. No text can forge a role."""

    # Whether the format itself writes what a model expects before a conversation, so that nothing may be put there.
    complete: ClassVar[bool] = False

    kind: Literal["tokens"] = "tokens"


class TextChatFormat(Config):
    """Roles written as plain text, for tokenizers without role tokens. `{content}` stands for the turn's text."""

    complete: ClassVar[bool] = False

    kind: Literal["text"] = "text"
    system: str = "{content}\n\n"
    user: str = "User: {content}\n"
    assistant: str = "Assistant: {content}"
    separator: str = "\n"
    """Stands between an assistant turn (after its end token) and the next turn."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Each turn must say where its content goes."""
        for role in CHAT_ROLES:
            if getattr(self, role).count("{content}") != 1:
                yield role, "must hold {content} exactly once"


SpecialSpelling = Annotated[str, Field(min_length=1, max_length=1_000)]


class TemplateChatFormat(Config):
    """The Jinja template of a model from elsewhere, which writes roles, beginning and end by itself.

    The special tokens that the template spells count as such; those that a turn spells stay text. Only turns of the
    assistant can be learnt.
    """

    complete: ClassVar[bool] = True

    kind: Literal["template"] = "template"
    template: Annotated[str, Field(min_length=1, max_length=100_000)]
    bos_token: SpecialSpelling | None = None
    """How the template gets the token spelled; None: it is not defined there."""
    eos_token: SpecialSpelling | None = None
    pad_token: SpecialSpelling | None = None
    unk_token: SpecialSpelling | None = None
    today: str = "2024-07-26"
    """The date that a template is told, always the same, so that a conversation always gives the same tokens. This
    one is what Llama's own templates fall back to."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """The date must be one."""
        try:
            date.fromisoformat(self.today)
        except ValueError:
            yield "today", f"{self.today!r} is no date like 2024-07-26"


ChatFormat = Annotated[TokensChatFormat | TextChatFormat | TemplateChatFormat, Field(discriminator="kind")]


class Seq2SeqObjective(Objective):
    """Predict the target from the source. Of a conversation, every assistant turn is a target."""

    reads = PAIRS
    architectures = ("encoder_decoder",)

    kind: Literal["seq2seq"] = "seq2seq"
    format: ChatFormat | None = None
    """How the turns before a reply become a source; only for conversations. None: as the base model reads them, or
    by role tokens."""


class ChatObjective(Objective):
    """Predict the turns of the chosen roles. A source and target pair is a question and its answer."""

    reads = PAIRS
    architectures = ("decoder",)

    kind: Literal["chat"] = "chat"
    roles: Annotated[tuple[Literal["system", "user", "assistant"], ...], Field(min_length=1)] = ("assistant",)
    format: ChatFormat | None = None
    """None: as the base model reads conversations, or by role tokens."""
    separate_documents: bool = True
    long_conversations: Literal["split", "drop_oldest", "cut_end"] = "split"
    """Of a conversation that is longer than a row. split: it becomes several, so that every turn is learnt once.
    drop_oldest: its oldest turns are left out. Either way what is left begins with a turn of the user, a system
    message from the beginning is kept before it, and a turn that is too long even so is cut at its end. cut_end: all
    that goes beyond the row is cut off."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """A template does not tell where a turn of another role begins, and a text may not tell where one ends."""
        format = self.format
        if isinstance(format, TemplateChatFormat) and self.roles != ("assistant",):
            yield "roles", "must be [assistant] alone with a template format"
        if isinstance(format, TextChatFormat):
            for role in self.roles:
                if role != "assistant" and not getattr(format, role).rpartition("{content}")[2]:
                    yield f"format.{role}", f"says nothing after {{content}}, so no turn of the {role} learns to end"


class DpoObjective(Objective):
    """Make the chosen answer of a pair likelier than the rejected one, by more than the base model does.

    Source: Rafailov et al. 2023, arXiv 2305.18290; ipo: Azar et al. 2023, arXiv 2310.12036; label smoothing: Mitchell
    2023, https://ericmitchell.ai/cdpo.pdf.
    """

    reads = PREFERENCES
    architectures = ("decoder", "encoder_decoder")

    kind: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """ipo: the mean log-probability of a token is to be 1 / (2 beta) nats more apart than in the base model, and no
    further; better where preferences are certain."""
    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    """How closely the model keeps to the base: less lets it go further."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """sigmoid: the share of the pairs that are thought to be the wrong way round."""
    format: ChatFormat | None = None
    """How the prompt becomes tokens; None: as the base model reads conversations. Where it reads none, by role tokens
    in a decoder, and as a plain source in an encoder-decoder."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """A distance to reach has no labels to smooth."""
        if self.loss == "ipo" and self.label_smoothing:
            yield "label_smoothing", "is of the sigmoid loss alone; leave it out"


PartConfig = Annotated[TextObjective | Seq2SeqObjective | ChatObjective, Field(discriminator="kind")]


class MixtureObjective(Objective):
    """Several objectives: each document is learnt by one of them, drawn by weight among those that can read it.

    In short, `objective: {causal_lm: 0.5, span_corruption: 0.5}` gives kinds and their weights.
    """

    kind: Literal["mixture"] = "mixture"
    parts: Annotated[tuple[PartConfig, ...], Field(min_length=1)]

    @property
    def members(self) -> Sequence[PartConfig]:
        """The parts."""
        return self.parts

    @property
    def control_symbols(self) -> tuple[str, ...]:
        """All that the parts need, each once."""
        return tuple(dict.fromkeys(symbol for part in self.parts for symbol in part.control_symbols))

    @property
    def named(self) -> dict[str, PartConfig]:
        """The parts by name: their kind, and a number where one kind is there several times."""
        kinds = [part.kind for part in self.parts]
        return {
            f"{part.kind}_{kinds[:number].count(part.kind) + 1}" if kinds.count(part.kind) > 1 else part.kind: part
            for number, part in enumerate(self.parts)
        }

    def problems(self) -> Iterator[tuple[str, str]]:
        """Weights are given for all parts or for none."""
        given = [part.weight is not None for part in self.parts]
        if any(given) and not all(given):
            yield "parts", "some parts have a weight and some have none; give all of them one, or none"

    @classmethod
    def written_in_short(cls, node: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The section that `{causal_lm: 0.5, prefix_lm: 0.5}` stands for; None if that is not what it is."""
        if not node or not {tag(part)[1] for part in sections(PartConfig)}.issuperset(node):
            return None
        settings = [value if isinstance(value, Mapping) else {"weight": value} for value in node.values()]
        parts = [{"kind": kind, **part} for kind, part in zip(node, settings, strict=True)]
        return {"kind": "mixture", "parts": parts}


ObjectiveConfig = Annotated[
    TextObjective | Seq2SeqObjective | ChatObjective | DpoObjective | MixtureObjective, Field(discriminator="kind")
]


class SubwordSampling(Config):
    """Subword regularisation: the tokens of a training text are drawn anew in every epoch from all that spell it.

    Texts that are validated on or generated from always have the same tokens.

    Source: Kudo 2018, arXiv 1804.10959, for unigram; Provilkov et al. 2019, arXiv 1910.13267, for bpe.
    """

    alpha: Annotated[float, Field(gt=0.0, le=10.0)] = 0.1
    """unigram: the probability of a segmentation is raised to this power, so less is more random. bpe: the share of
    merges that are left out, below 1; more is more random."""
    nbest_size: Annotated[int, Field(ge=2, le=512)] | None = None
    """unigram: draw among so many likeliest segmentations of a line; None: among all of the text."""
    side: Literal["both", "source", "target"] = "both"
    """Of pairs, the side whose tokens are drawn."""


BleuTokenizer = Literal["13a", "zh", "none", "char", "intl"]


class ValidationConfig(Config):
    """What is held out: sources of their own, or a fraction of the training documents chosen by a keyed hash."""

    sources: tuple[SourceConfig, ...] = ()
    fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    bleu_tokenizer: BleuTokenizer = "13a"
    """How sacreBLEU splits words: 13a for most languages, zh for Chinese, none for text that is tokenised already."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """One or the other."""
        if self.sources and self.fraction:
            yield "fraction", "validation has both sources and a fraction; keep one"


class ReplayConfig(Config):
    """Text that the base model has learnt already, learnt again beside what is new, so that less of it is forgotten."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Of the training tokens."""
    objective: PartConfig | None = None
    """How it is learnt; None: as the rest if that can be, or else texts by causal_lm."""


class ForgettingConfig(Config):
    """Text that the base model knows, measured before the first step and whenever validation runs."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    """Best of what the base model has not been trained on, but is like it."""
    batches: Count = 20
    """At most so many of train.batch_tokens, from the beginning of the sources on."""
    objective: PartConfig | None = None
    """As for replay."""


class DataConfig(Config):
    """The corpus of a run."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    validation: ValidationConfig = ValidationConfig()
    objective: ObjectiveConfig = CausalLmObjective()
    replay: ReplayConfig | None = None
    """Known text, learnt again; only `sources` are validated on."""
    forgetting: ForgettingConfig | None = None
    """Known text, only measured."""
    subword_sampling: SubwordSampling | None = None
    """How the tokens of a training text are drawn; None: a text always has the same."""
    on_bad_record: Literal["raise", "skip"] = "raise"
    """A record that cannot be read stops the run, or is left out and counted."""
    max_bad_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """Skipping more of the records than this is an error all the same."""
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes of each rank that read and tokenise ahead of the training; 0: it does so itself. None: 1 beside a GPU,
    0 on a CPU, whose cores they would take. The batches are the same whatever it is."""

    @property
    def training_sources(self) -> tuple[SourceConfig, ...]:
        """What is trained on: the sources, then those that are replayed."""
        return self.sources if self.replay is None else (*self.sources, *self.replay.sources)

    @property
    def training_objective(self) -> ObjectiveConfig:
        """What is learnt from the training sources."""
        if self.replay is None:
            return self.objective
        own = self.own_objective(self.replay)
        if own is None or isinstance(self.objective, DpoObjective):
            return self.objective
        parts = self.objective.parts if isinstance(self.objective, MixtureObjective) else (self.objective,)
        # No record can be read by one of the rest and by this one, so its weight says nothing.
        return MixtureObjective(parts=tuple(_weighted(part) for part in (*parts, own)))

    def own_objective(self, known: ReplayConfig | ForgettingConfig) -> PartConfig | None:
        """By what known text is learnt or measured, if not as the rest."""
        kinds = {source.kind for source in known.sources}
        return known.objective or (None if kinds <= self.objective.readable else CausalLmObjective())

    def problems(self) -> Iterator[tuple[str, str]]:
        """Weights are given for all sources or for none, and no objective has one by itself."""
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            yield "sources", "some sources have a weight and some have none; give all of them one, or none"
        for key, known in (("replay", self.replay), ("forgetting", self.forgetting)):
            if known is not None:
                yield from self._known_problems(key, known)
        if self.subword_sampling is not None:
            yield from self._sampling_problems(self.subword_sampling.side)
        if self.objective.weight is not None:
            yield "objective.weight", "only the parts of a mixture have one"

    def _known_problems(self, key: str, known: ReplayConfig | ForgettingConfig) -> Iterator[tuple[str, str]]:
        given = [source.weight is not None for source in known.sources]
        if any(given) and not all(given):
            yield f"{key}.sources", "some sources have a weight and some have none; give all of them one, or none"
        read_by = self.own_objective(known) or self.objective
        if isinstance(self.objective if key == "replay" else read_by, DpoObjective):
            yield key, "does not go with dpo, which learns from pairs of answers alone; leave it out"
        for number, source in enumerate(known.sources):
            if source.kind not in read_by.readable:
                yield (
                    f"{key}.sources.{number}.kind",
                    f"a {source.kind} source cannot serve {read_by.kind}; set {key}.objective to what can read it",
                )
        if known.objective is not None and known.objective.reads & self.objective.readable and key == "replay":
            yield (
                f"{key}.objective",
                "reads the same kinds of sources as data.objective; make that a mixture, or leave it out",
            )

    def _sampling_problems(self, side: str) -> Iterator[tuple[str, str]]:
        if any(isinstance(part, ChatObjective | DpoObjective) for part in self.objective.members) or any(
            source.kind == "chat" for source in self.sources
        ):
            yield "subword_sampling", "the tokens of conversations and preferences cannot be drawn; leave it out"
        elif side != "both" and self.objective.readable & TEXTS:
            yield "subword_sampling.side", f"is {side}, but plain text has no sides; leave it out"


def _weighted(part: PartConfig) -> PartConfig:
    return part.model_copy(update={"weight": part.weight or 1.0})
