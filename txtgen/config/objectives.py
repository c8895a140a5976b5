"""What is learnt from texts, pairs, conversations and preferences, and the tokens that no text says."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from txtgen.config.base import Config, Share
from txtgen.config.chat_formats import ChatFormat, TemplateChatFormat, TextChatFormat

Architecture = Literal["decoder", "encoder_decoder"]

TEXTS = frozenset({"text", "jsonl"})
"""The kinds of sources that hold plain text."""

PAIRS = frozenset({"parallel", "tsv", "jsonl_pairs", "chat"})
"""The kinds of sources that hold pairs or conversations."""

TRANSLATIONS = PAIRS - {"chat"}
"""Those of them with one source and one target, which can be translated and compared."""

PREFERENCES = frozenset({"preference"})
"""The kinds of sources that hold prompts with a better and a worse answer."""

SENTINEL = "<extra_id_{}>"
"""The token that stands for the n-th hidden span of a text, counted from 0, as T5 spells it."""

MASK = "<mask>"
"""The token that stands for a hidden span whatever its number, as BART spells it."""

FILL_IN_MIDDLE = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
"""The tokens before the three parts of a text whose middle is written last."""


class Objective(Config):
    """One thing to learn, alone or as a part of a mixture.

    reads: the kinds of sources that it learns from. architectures: the kinds of models that can learn it.
    """

    reads: ClassVar[frozenset[str]]
    architectures: ClassVar[tuple[Architecture, ...]]

    kind: str
    weight: Annotated[float, Field(gt=0.0)] | None = None
    """Share of the documents, relative to the other parts of a mixture; None: an equal one. Only in a mixture."""

    @property
    def members(self) -> Sequence["Objective"]:
        """The parts of a mixture; of any other objective, itself."""
        return (self,)

    @property
    def readable(self) -> frozenset[str]:
        """The kinds of sources that it, or any part of it, learns from."""
        return frozenset[str]().union(*(part.reads for part in self.members))

    @property
    def control_symbols(self) -> tuple[str, ...]:
        """The tokens, inserted by id only, that the tokenizer must have for it."""
        return ()


class CausalLmObjective(Objective):
    """Predict every next token of a document. Documents are packed into rows without padding."""

    reads = TEXTS
    architectures = ("decoder",)

    kind: Literal["causal_lm"] = "causal_lm"
    separate_documents: bool = False
    """Hide documents that share a row from one another, and count positions from each document's start."""


class PrefixLmObjective(Objective):
    """Predict the rest of a text from its beginning, which is cut off at random and read in both directions.

    Source: Raffel et al. 2019, arXiv 1910.10683, section 3.2.1.
    """

    reads = TEXTS
    architectures = ("decoder", "encoder_decoder")

    kind: Literal["prefix_lm"] = "prefix_lm"


class SpanCorruptionObjective(Objective):
    """Hide random spans of a text and predict them, each named by a token of its own.

    A decoder reads the text with its gaps in both directions and writes the spans in the same row, as in UL2.

    Source: Raffel et al. 2019, arXiv 1910.10683, section 3.1.4; in one row: Tay et al. 2022, arXiv 2205.05131.
    """

    reads = TEXTS
    architectures = ("decoder", "encoder_decoder")

    kind: Literal["span_corruption"] = "span_corruption"
    noise_density: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of the tokens that are hidden."""
    mean_span_length: Annotated[float, Field(ge=1.0, le=1_000.0)] = 3.0
    """Hidden tokens in a row, on average."""
    num_sentinels: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Tokens for hidden spans: `<extra_id_0>` and so on. A text cannot have more spans."""

    @property
    def control_symbols(self) -> tuple[str, ...]:
        """A token for every span."""
        return tuple(SENTINEL.format(number) for number in range(self.num_sentinels))


class DenoisingObjective(Objective):
    """Spoil a text and predict it as a whole.

    Spans of Poisson lengths, some of them empty, become one `<mask>` each; sentences change places; tokens are lost.

    Source: Lewis et al. 2019, arXiv 1910.13461, section 2.2, with the settings of its section 4.
    """

    reads = TEXTS
    architectures = ("encoder_decoder",)

    kind: Literal["denoising"] = "denoising"
    mask_ratio: Share = 0.3
    """Share of the tokens that masks hide."""
    mean_span_length: Annotated[float, Field(ge=1.0, le=100.0)] = 3.0
    """Tokens that a mask hides, on average."""
    permute_sentences: bool = True
    """Put the sentences into a random order."""
    delete_ratio: Share = 0.0
    """Share of the tokens that are left out without a trace."""

    @property
    def control_symbols(self) -> tuple[str, ...]:
        """The mask, if anything is masked."""
        return (MASK,) if self.mask_ratio else ()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Something must be spoilt, and something left."""
        if not (self.mask_ratio or self.delete_ratio or self.permute_sentences):
            yield "mask_ratio", "nothing is masked, deleted or permuted, so there is nothing to learn"
        if self.mask_ratio + self.delete_ratio >= 1:
            yield "delete_ratio", f"with mask_ratio {self.mask_ratio} nothing of a text is left"


class FillInMiddleObjective(Objective):
    """As causal_lm, but of some documents the middle is moved to the end, to be written from what is on either side.

    Source: Bavarian et al. 2022, arXiv 2207.14255.
    """

    reads = TEXTS
    architectures = ("decoder",)

    kind: Literal["fill_in_middle"] = "fill_in_middle"
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the documents that are rearranged."""
    spm_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of these in which the suffix stands before the prefix."""
    separate_documents: bool = False
    """As for causal_lm."""

    @property
    def control_symbols(self) -> tuple[str, ...]:
        """A token before each part."""
        return FILL_IN_MIDDLE


TextObjective = (
    CausalLmObjective | PrefixLmObjective | SpanCorruptionObjective | DenoisingObjective | FillInMiddleObjective
)
"""What learns from plain text."""


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

    field_of_kinds = "parts"

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


ObjectiveConfig = Annotated[
    TextObjective | Seq2SeqObjective | ChatObjective | DpoObjective | MixtureObjective, Field(discriminator="kind")
]
