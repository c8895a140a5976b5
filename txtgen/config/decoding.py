"""How text is generated: one class per strategy, told apart by `strategy`."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from txtgen.config.base import Config, Count, NonNegative, Seed
from txtgen.errors import UsageError


def _as_word(value: Any) -> Any:
    """The words true and false for the values, which YAML makes of them."""
    return str(value).lower() if isinstance(value, bool) else value


EarlyStopping = Annotated[Literal["true", "false", "never"], BeforeValidator(_as_word)]


class StrategyConfig(Config):
    """What every strategy has in common."""

    max_new_tokens: NonNegative | None = None
    """Generated tokens at most. None: up to max_length, or 256 if that is not given either."""
    max_length: Count | None = None
    """Prompt and generated tokens together (encoder-decoder: the start token and generated tokens)."""
    min_new_tokens: NonNegative = 0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    """Above 1: tokens seen before become less likely. Source: Keskar et al. 2019, arXiv 1909.05858."""
    no_repeat_ngram_size: NonNegative = 0
    """No n-gram of this size occurs twice."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
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
    """Draw from the distribution, shaped by temperature, top-k, top-p, min-p and typical-p, in this order."""

    strategy: Literal["sample"] = "sample"
    temperature: Annotated[float, Field(gt=0.0, le=1e4)] = 1.0
    top_k: NonNegative = 0
    """Only the k most likely tokens; 0: all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The smallest set of tokens that has this much probability. Source: Holtzman et al. 2019."""
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Only tokens with at least this share of the likeliest one's probability. Source: Nguyen et al. 2024."""
    typical_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Only tokens of about expected surprise. Source: Meister et al. 2022."""


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
    asked = dict(options)
    if isinstance(stop := asked.get("stop"), (str, list)):
        asked["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    try:
        return config.model_validate(_inherited(defaults, strategy, asked) | asked | {"strategy": strategy})
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
    if strategy != defaults.strategy or _below(asked.get("beam_size"), kept["num_return"]):
        del kept["num_return"]
    if _below(asked.get("max_new_tokens"), kept["min_new_tokens"]):
        del kept["min_new_tokens"]
    return kept


def _below(value: Any, limit: int) -> bool:
    return isinstance(value, int) and value < limit


def _usage_error(config: type[Config], error: ValidationError) -> UsageError:
    """Everything that is wrong with the options, and what they may be."""
    properties = config.model_json_schema()["properties"]
    wrong: dict[str, str] = {}
    allowed: dict[str, str] = {}
    for problem in error.errors():
        if problem["type"] == "problems":
            wrong |= {key: f"{key}: {complaint}" for key, complaint in problem["ctx"]["problems"]}
        else:
            name = str(problem["loc"][0])
            wrong[name] = f"{name} cannot be {repr(problem['input'])[:80]}"
            allowed[name] = f"give {name} {_in_words(properties[name])}"
    if "temperature" in allowed:
        allowed["temperature"] += " (for the likeliest token every time, use strategy greedy)"
    fix = "; ".join(allowed.values()) or "change one of the two"
    return UsageError("; ".join(wrong.values()), "generation options", fix)


def _in_words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(_in_words(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    nouns = {
        "integer": "a whole number",
        "number": "a number",
        "array": "texts of valid Unicode, none of them empty",
        "null": "None",
    }
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    words = [f"{word} {schema[key]:,}".removesuffix(".0") for key, word in bounds.items() if key in schema]
    return ", ".join([nouns[schema["type"]], *words])
