"""How text is generated: one class per strategy, told apart by `strategy`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from txtgen.config.base import Config, Count, Expected, NonNegative, Seed, Share
from txtgen.config.decoding_values import (
    SAMPLER_ORDER,
    DraftModel,
    DryPenalty,
    EarlyStopping,
    JsonText,
    LengthDecay,
    LoopStop,
    MinimumBayesRisk,
    Samplers,
    SequenceBiases,
    Speculation,
    Texts,
    TokenIds,
    TokenRuns,
    Xtc,
)

Penalty = Annotated[float, Field(ge=0.01, le=100.0)]

CountPenalty = Annotated[float, Field(ge=-100.0, le=100.0)]

NewTokens = Annotated[int, Field(ge=0, le=2**30)]
"""More than any model is read for; with a prompt before them, still a position that fits in 32 bits."""


class StrategyConfig(Config):
    """What every strategy has in common. Filters are applied in the order of Hugging Face `generate`."""

    max_new_tokens: NewTokens | None = None
    """Generated tokens at most. None: up to max_length, or 256 if that is not given either."""
    max_length: Count | None = None
    """Prompt and generated tokens together (encoder-decoder: the start token and generated tokens)."""
    min_new_tokens: NonNegative = 0
    """No end token before so many generated ones."""
    min_length: NonNegative = 0
    """The same, with the prompt counted (encoder-decoder: the start token)."""
    sequence_bias: SequenceBiases = ()
    """What is added to the scores of some tokens. Of two for the same tokens, the last one counts."""
    encoder_repetition_penalty: Penalty = 1.0
    """Above 1: tokens of the source become likelier; a decoder's source is its prompt."""
    repetition_penalty: Penalty = 1.0
    """Above 1: tokens seen before become less likely. Source: Keskar et al. 2019, arXiv 1909.05858."""
    presence_penalty: CountPenalty = 0.0
    """Taken off the score of every token that was generated; the prompt does not count."""
    frequency_penalty: CountPenalty = 0.0
    """Taken off the score of a token for each time that it was generated; the prompt does not count."""
    penalty_window: NonNegative = 0
    """Of the generated tokens, only so many of the last count for these two; 0: all."""
    dry: DryPenalty | None = None
    no_repeat_ngram_size: NonNegative = 0
    """No n-gram of this size occurs twice."""
    encoder_no_repeat_ngram_size: NonNegative = 0
    """No n-gram of this size that the source has is generated."""
    bad_words: Texts = ()
    """Texts that no result has in it, whatever tokens spell them, within longer words too."""
    bad_words_ids: TokenRuns = ()
    """Tokens that do not follow each other like this. A single end token is allowed all the same."""
    prefix: Annotated[str, Field(min_length=1)] | None = None
    """Every result begins with this text."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """Every result that ends by itself matches this regular expression as a whole."""
    json_schema: JsonText | None = None
    """Every result that ends by itself is JSON of this schema."""
    forced_bos_token_id: NonNegative | None = None
    """The token after the first one, such as the target language; only where a single token is given before."""
    forced_eos_token_id: TokenIds = ()
    """The last token, or several to choose from, of a text that reaches its greatest length."""
    exponential_decay_length_penalty: LengthDecay | None = None
    suppress_tokens: TokenIds = ()
    """Tokens that are never generated."""
    begin_suppress_tokens: TokenIds = ()
    """Tokens that are not generated first."""
    renormalize_logits: bool = False
    """Log-probabilities sum to one again after all filters; it only matters to beam search."""
    stop: Texts = ()
    """Generation ends before any of these strings."""
    stop_on_loop: LoopStop | None = None
    num_return: Count = 1
    """Results per prompt."""
    seed: Seed = 0

    def is_set(self, name: str) -> bool:
        """Whether a setting has another value than its default, at which it does nothing."""
        field = type(self).model_fields.get(name)
        return field is not None and bool(getattr(self, name) != field.default)

    @property
    def is_constrained(self) -> bool:
        """Whether it says anything of the text itself, which only those who have the tokenizer can see to."""
        return bool(self.bad_words or self.demands)

    @property
    def needs_draft(self) -> bool:
        """Whether it asks for another model, which whoever loads this one must name beside it."""
        return False

    @property
    def demands(self) -> list[str]:
        """The settings that say what the text must be."""
        return [name for name in ("prefix", "include", "regex", "json_schema") if self.is_set(name)]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings that contradict each other."""
        if len(self.demands) > 1 and not {*self.demands} <= {"prefix", "include"}:
            yield self.demands[-1], f"{' and '.join(self.demands)} are given, each of which says what the text must be"
        if self.penalty_window and not (self.presence_penalty or self.frequency_penalty):
            yield (
                "penalty_window",
                f"is {self.penalty_window}, but presence_penalty and frequency_penalty are both 0",
            )
        if self.max_new_tokens is not None and self.max_length is not None:
            yield (
                "max_length",
                f"max_new_tokens ({self.max_new_tokens}) and max_length ({self.max_length}) are both given",
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            yield (
                "min_new_tokens",
                f"is {self.min_new_tokens}, more than max_new_tokens {self.max_new_tokens}",
            )
        if self.max_length is not None and self.min_length > self.max_length:
            yield "min_length", f"is {self.min_length}, more than max_length {self.max_length}"
        if self.min_new_tokens and self.min_length:
            yield (
                "min_length",
                f"min_new_tokens ({self.min_new_tokens}) and min_length ({self.min_length}) are both given",
            )


class SequentialConfig(StrategyConfig):
    """What strategies have in common that decide one token of a text after the other."""

    speculation: Speculation | None = None
    """Tokens are proposed, and the model reads several in one call. It decides on each as it would without.

    Source: Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318.
    """

    @property
    def needs_draft(self) -> bool:
        """Whether another model proposes."""
        return isinstance(self.speculation, DraftModel)


class GreedyConfig(SequentialConfig):
    """Always the most likely token."""

    strategy: Literal["greedy"] = "greedy"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Greedy search has one result."""
        yield from super().problems()
        if self.num_return > 1:
            yield "num_return", f"greedy search gives one result, not {self.num_return}; use beam or sample"


class BeamSettings(StrategyConfig):
    """What strategies have in common that keep several hypotheses."""

    beam_size: Count = 5
    length_penalty: Annotated[float, Field(ge=-5.0, le=5.0)] = 1.0
    """A finished hypothesis scores log-probability / generated_length ** length_penalty."""
    early_stopping: EarlyStopping = "false"
    """true: stop when beam_size hypotheses are finished; false: when no running one is better at its present
    length; never: when none can become better."""
    num_groups: Count = 1
    """Groups that the beams are divided into. Source: Vijayakumar et al. 2016, arXiv 1610.02424."""
    diversity_penalty: Annotated[float, Field(ge=0.0, le=1e4)] = 0.0
    """Taken off a token's score for every time that an earlier group chose it at the same step."""

    include: Texts = ()
    """Texts that every result has in it. Source: Post & Vilar 2018, arXiv 1804.06609."""

    @property
    def group_size(self) -> int:
        """Beams of a group."""
        return self.beam_size // self.num_groups

    def problems(self) -> Iterator[tuple[str, str]]:
        """No more results than beams, and groups that differ."""
        yield from super().problems()
        if self.num_return > self.beam_size:
            yield "num_return", f"is {self.num_return}, more than beam_size {self.beam_size}"
        if self.beam_size % self.num_groups:
            yield "num_groups", f"is {self.num_groups}, which does not divide beam_size {self.beam_size}"
        if self.num_groups > 1 and not self.diversity_penalty:
            yield "num_groups", f"is {self.num_groups}, but groups are all the same where diversity_penalty is 0"
        if self.include and self.group_size < 2:
            yield "include", "is given, but there are no beams to choose between: give a larger beam_size"
        if self.include and self.stop_on_loop is not None:
            yield "stop_on_loop", "is given, and so is include, which a loop might keep from being said"
        if self.diversity_penalty and self.num_groups == 1:
            yield "diversity_penalty", f"is {self.diversity_penalty:g}, but num_groups is 1: no group comes before"


class SampleSettings(StrategyConfig):
    """The distribution to draw from, shaped by temperature and by the cuts below, in the order of `samplers`."""

    temperature: Annotated[
        float,
        Field(gt=0.0, le=1e4),
        Expected("a number above 0, at most 10,000 (for the likeliest token every time, use strategy greedy)"),
    ] = 1.0
    top_n_sigma: Annotated[float, Field(gt=0.0, le=1e4)] | None = None
    """Only tokens whose score is at most so many standard deviations below the best. Source: Tang et al. 2024."""
    top_h: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Of the 100 likeliest tokens, those that make up this share of their entropy. Source: Potraghloo et al. 2025."""
    top_k: NonNegative = 0
    """Only the k most likely tokens; 0: all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The smallest set of tokens that has this much probability. Source: Holtzman et al. 2019."""
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Only tokens with at least this share of the likeliest one's probability. Source: Nguyen et al. 2024."""
    typical_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Only tokens of about expected surprise. Source: Meister et al. 2022."""
    epsilon_cutoff: Share = 0.0
    """Only tokens of at least this probability. Source: Hewitt et al. 2022."""
    eta_cutoff: Share = 0.0
    """As epsilon_cutoff, but lower where many tokens are likely. Source: Hewitt et al. 2022."""
    xtc: Xtc | None = None
    samplers: Samplers = SAMPLER_ORDER
    """The order of the above; each sees what the one before left. What is set must stand there."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Each sampler once, and none that is set left out."""
        yield from super().problems()
        if twice := [name for name in SAMPLER_ORDER if self.samplers.count(name) > 1]:
            yield "samplers", f"names {', '.join(twice)} more than once"
        for name in SAMPLER_ORDER:
            if self.is_set(name) and name not in self.samplers:
                yield name, f"is set, but samplers ({', '.join(self.samplers) or 'none'}) leaves it out"


class BeamConfig(BeamSettings):
    """Keep the `beam_size` best hypotheses. Exact meaning: that of Hugging Face `generate`."""

    strategy: Literal["beam"] = "beam"


class SampleConfig(SampleSettings, SequentialConfig):
    """Draw one token after another."""

    strategy: Literal["sample"] = "sample"
    mbr: MinimumBayesRisk | None = None

    @property
    def num_samples(self) -> int:
        """How many are drawn per prompt."""
        return self.num_return if self.mbr is None else self.mbr.candidates

    def problems(self) -> Iterator[tuple[str, str]]:
        """No more results than samples."""
        yield from super().problems()
        if self.num_return > self.num_samples:
            yield "num_return", f"is {self.num_return}, more than mbr.candidates {self.num_samples}"


class BeamSampleConfig(BeamSettings, SampleSettings):
    """Draw the continuations of beams, without replacement, and keep the `beam_size` best of those drawn."""

    strategy: Literal["beam_sample"] = "beam_sample"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Beams to choose between."""
        yield from super().problems()
        if self.beam_size == 1:
            yield "beam_size", "is 1, which leaves nothing to choose between; use strategy sample"


class ContrastiveConfig(StrategyConfig):
    """Of the likeliest tokens, the one that is likely and yet unlike all before it.

    A token's value is (1 - penalty_alpha) * its probability - penalty_alpha * the greatest cosine between its hidden
    state and those of all tokens before it. Source: Su et al. 2022, arXiv 2202.06417.
    """

    strategy: Literal["contrastive"] = "contrastive"
    top_k: Count = 4
    """The tokens to choose between."""
    penalty_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    """How much it counts that a token is unlike those before it; 0: greedy search."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contrastive search has one result."""
        yield from super().problems()
        if self.num_return > 1:
            yield "num_return", f"contrastive search gives one result, not {self.num_return}; use beam or sample"


AnyStrategy = GreedyConfig | BeamConfig | SampleConfig | BeamSampleConfig | ContrastiveConfig

DecodingConfig = Annotated[AnyStrategy, Field(discriminator="strategy")]

STRATEGIES: dict[str, type[AnyStrategy]] = {
    "greedy": GreedyConfig,
    "beam": BeamConfig,
    "sample": SampleConfig,
    "beam_sample": BeamSampleConfig,
    "contrastive": ContrastiveConfig,
}
