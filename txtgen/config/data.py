"""The corpus of a run: its sources, what is learnt from them, and what is held out, replayed and measured."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from txtgen.config.base import Config, Count
from txtgen.config.objectives import (
    TEXTS,
    CausalLmObjective,
    ChatObjective,
    DpoObjective,
    MixtureObjective,
    ObjectiveConfig,
    PartConfig,
)
from txtgen.config.sources import SourceConfig


class SubwordSampling(Config):
    """Subword regularisation: the tokens of a training text are drawn anew in every epoch from all that spell it.

    They depend on the seed and the place of the text alone, so that every process draws the same. Texts that are
    validated on or generated from always have the same tokens.

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
    def groups(self) -> dict[str, tuple[SourceConfig, ...]]:
        """All sources, by the dotted key of the list that they stand in."""
        known = {"replay": self.replay, "forgetting": self.forgetting}
        return {
            "data.sources": self.sources,
            "data.validation.sources": self.validation.sources,
            **{f"data.{name}.sources": config.sources for name, config in known.items() if config is not None},
        }

    @property
    def held_out_kinds(self) -> frozenset[str]:
        """The kinds of sources of what is held out; none: nothing is."""
        held = self.validation.sources or (self.sources if self.validation.fraction else ())
        return frozenset(source.kind for source in held)

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
