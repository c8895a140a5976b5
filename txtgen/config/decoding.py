"""How text is generated: one class per strategy, told apart by `strategy`."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from txtgen.config.base import Config, Count, NonNegative, Seed, Share
from txtgen.config.shape import expected, field_type
from txtgen.errors import UsageError


def _as_word(value: Any) -> Any:
    """The words true and false for the values, which YAML makes of them."""
    return str(value).lower() if isinstance(value, bool) else value


def _as_tuple(value: Any) -> Any:
    """Lists, and lists in them, as tuples; a single text or whole number as a tuple of itself."""
    if isinstance(value, list | tuple):
        return tuple(_as_tuple(item) if isinstance(item, list) else item for item in value)
    return (value,) if isinstance(value, str | int) else value


EarlyStopping = Annotated[Literal["true", "false", "never"], BeforeValidator(_as_word)]

TokenIds = Annotated[tuple[NonNegative, ...], BeforeValidator(_as_tuple)]

Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)]

Penalty = Annotated[float, Field(ge=0.01, le=100.0)]


class SequenceBias(Config):
    """A bias for tokens in a row: the last of them gets it wherever the others stand before.

    `text` stands for its tokens at the beginning of a text, and for those after a space.
    """

    text: Annotated[str, Field(min_length=1)] | None = None
    token_ids: TokenIds = ()
    bias: Annotated[float, Field(ge=-1e6, le=1e6)]

    def problems(self) -> Iterator[tuple[str, str]]:
        """One of the two is biased."""
        if (self.text is None) == (not self.token_ids):
            yield "token_ids", "either text or token_ids must be given, and not both"


class LengthDecay(Config):
    """Makes the end ever likelier: from `start` generated tokens on, by `factor` to the power of the tokens since."""

    start: NonNegative
    factor: Annotated[float, Field(ge=0.01, le=100.0)]


class StrategyConfig(Config):
    """What every strategy has in common. Filters are applied in the order of Hugging Face `generate`."""

    max_new_tokens: NonNegative | None = None
    """Generated tokens at most. None: up to max_length, or 256 if that is not given either."""
    max_length: Count | None = None
    """Prompt and generated tokens together (encoder-decoder: the start token and generated tokens)."""
    min_new_tokens: NonNegative = 0
    """No end token before so many generated ones."""
    min_length: NonNegative = 0
    """The same, with the prompt counted (encoder-decoder: the start token)."""
    sequence_bias: Annotated[tuple[SequenceBias, ...], BeforeValidator(_as_tuple)] = ()
    """What is added to the scores of some tokens. Of two for the same tokens, the last one counts."""
    encoder_repetition_penalty: Penalty = 1.0
    """Above 1: tokens of the source become likelier; a decoder's source is its prompt."""
    repetition_penalty: Penalty = 1.0
    """Above 1: tokens seen before become less likely. Source: Keskar et al. 2019, arXiv 1909.05858."""
    no_repeat_ngram_size: NonNegative = 0
    """No n-gram of this size occurs twice."""
    encoder_no_repeat_ngram_size: NonNegative = 0
    """No n-gram of this size that the source has is generated."""
    bad_words: Texts = ()
    """Texts that are not generated, written in the tokens that they have at the beginning or after a space."""
    bad_words_ids: Annotated[
        tuple[Annotated[tuple[NonNegative, ...], Field(min_length=1)], ...], BeforeValidator(_as_tuple)
    ] = ()
    """Tokens that do not follow each other like this. A single end token is allowed all the same."""
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
    num_return: Count = 1
    """Results per prompt."""
    seed: Seed = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Lengths that contradict each other."""
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


class GreedyConfig(StrategyConfig):
    """Always the most likely token."""

    strategy: Literal["greedy"] = "greedy"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Greedy search has one result."""
        yield from super().problems()
        if self.num_return > 1:
            yield "num_return", f"greedy search gives one result, not {self.num_return}; use beam or sample"


class BeamConfig(StrategyConfig):
    """Keep the `beam_size` best hypotheses. Exact meaning: that of Hugging Face `generate`."""

    strategy: Literal["beam"] = "beam"
    beam_size: Count = 5
    length_penalty: Annotated[float, Field(ge=-5.0, le=5.0)] = 1.0
    """A finished hypothesis scores log-probability / generated_length ** length_penalty."""
    early_stopping: EarlyStopping = "false"
    """true: stop when beam_size hypotheses are finished; false: when no running one is better at its present
    length; never: when none can become better."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """No more results than beams."""
        yield from super().problems()
        if self.num_return > self.beam_size:
            yield "num_return", f"is {self.num_return}, more than beam_size {self.beam_size}"


class SampleConfig(StrategyConfig):
    """Draw from the distribution, shaped by temperature and by the cuts below, in this order."""

    strategy: Literal["sample"] = "sample"
    temperature: Annotated[float, Field(gt=0.0, le=1e4)] = 1.0
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


DecodingConfig = Annotated[GreedyConfig | BeamConfig | SampleConfig, Field(discriminator="strategy")]

STRATEGIES: dict[str, type[GreedyConfig | BeamConfig | SampleConfig]] = {
    "greedy": GreedyConfig,
    "beam": BeamConfig,
    "sample": SampleConfig,
}


def strategies_with(option: str) -> list[str]:
    """Names of the strategies that know an option."""
    return [name for name, config in STRATEGIES.items() if option in config.model_fields]


def option_names() -> list[str]:
    """Every option of any strategy, in order of declaration."""
    names: dict[str, Any] = {}
    for config in STRATEGIES.values():
        names.update(dict.fromkeys(config.model_fields))
    return list(names)


def resolve_decoding(defaults: DecodingConfig, options: Mapping[str, Any]) -> DecodingConfig:
    """The settings to generate with: what the user asks for, else the defaults of the model, else txtgen's.

    The strategy is that of `options`, or of the defaults. Defaults give way where they would contradict the
    user: those of another strategy are dropped, and so is a length limit if another one is asked for.

    Raises:
        UsageError: an option does not exist, is not known to the strategy, or has a value out of range.
    """
    strategy = options.get("strategy", defaults.strategy)
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise UsageError(f"unknown strategy {strategy!r}", "strategy", f"choose one of {', '.join(STRATEGIES)}")
    for name in options:
        _refuse_foreign_option(name, strategy)
    config = STRATEGIES[strategy]
    try:
        return config.model_validate(_inherited(defaults, strategy, options) | dict(options) | {"strategy": strategy})
    except ValidationError as error:
        raise _usage_error(config, error) from None


def _refuse_foreign_option(name: str, strategy: str) -> None:
    if name in STRATEGIES[strategy].model_fields:
        return
    knowing = strategies_with(name)
    if knowing:
        raise UsageError(
            f"{name} has no meaning for strategy {strategy}",
            name,
            f"use strategy {' or '.join(knowing)}, or leave out {name}",
        )
    near = get_close_matches(name, option_names(), n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else f"the options are {', '.join(option_names())}"
    raise UsageError(f"unknown option {name}", "generation options", fix)


def _inherited(defaults: DecodingConfig, strategy: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that have a meaning for the strategy and do not contradict what is asked for."""
    known = STRATEGIES[strategy].model_fields
    kept = {name: value for name, value in defaults.model_dump().items() if name in known}
    if "max_new_tokens" in asked or "max_length" in asked:
        del kept["max_new_tokens"], kept["max_length"]
    if "min_new_tokens" in asked or "min_length" in asked:
        del kept["min_new_tokens"], kept["min_length"]
    if strategy != defaults.strategy or _below(asked.get("beam_size"), kept["num_return"]):
        del kept["num_return"]
    if _below(asked.get("max_new_tokens"), kept.get("min_new_tokens", 0)):
        del kept["min_new_tokens"]
    if _below(asked.get("max_length"), kept.get("min_length", 0)):
        del kept["min_length"]
    return kept


def _below(value: Any, limit: int) -> bool:
    return isinstance(value, int) and value < limit


def _usage_error(config: type[Config], error: ValidationError) -> UsageError:
    """Everything that is wrong with the options, and what they may be."""
    wrong: dict[str, str] = {}
    allowed: dict[str, str] = {}
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "problems":
            for key, complaint in problem["ctx"]["problems"]:
                key = f"{name}.{key}" if name else key
                wrong[key] = f"{key}: {complaint}"
        else:
            option = str(problem["loc"][0])
            wrong[option] = f"{option} cannot be {repr(problem['input'])[:80]}"
            allowed[option] = f"give {option} {expected(field_type(config.model_fields[option]), problem['input'])}"
    if "temperature" in allowed:
        allowed["temperature"] += " (for the likeliest token every time, use strategy greedy)"
    fix = "; ".join(allowed.values()) or "change one of the two"
    return UsageError("; ".join(wrong.values()), "generation options", fix)
