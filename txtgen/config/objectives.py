"""What is learnt from plain text, and the tokens that each objective needs for what no text says."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from txtgen.config.base import Config, Share

Architecture = Literal["decoder", "encoder_decoder"]

TEXTS = frozenset({"text", "jsonl"})
"""The kinds of sources that hold plain text."""

PAIRS = frozenset({"parallel", "tsv", "jsonl_pairs", "chat"})
"""The kinds of sources that hold pairs or conversations."""

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
