"""Settings of generation from what a user asks for and what a model brings along."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from txtgen.config.base import Config
from txtgen.config.decoding import STRATEGIES, DecodingConfig
from txtgen.config.decoding_values import SAMPLER_ORDER
from txtgen.config.loader import config_from_tree
from txtgen.errors import ConfigError, UsageError


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
    tree = {**_inherited(defaults, strategy, options), **options, "strategy": strategy}
    try:
        return config_from_tree(STRATEGIES[strategy], tree, source="generation options")
    except ConfigError as error:
        fix = error.fix or "give what is expected, or leave the option out"
        raise UsageError(error.what, error.where or "generation options", fix) from None


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
    kept = {name: value for name, value in defaults.model_dump().items() if _is_shared(name, type(defaults), strategy)}
    if "max_new_tokens" in asked or "max_length" in asked:
        del kept["max_new_tokens"], kept["max_length"]
    if "min_new_tokens" in asked or "min_length" in asked:
        del kept["min_new_tokens"], kept["min_length"]
    if strategy != defaults.strategy or _below(asked.get("beam_size"), kept["num_return"]):
        del kept["num_return"]
    if "beam_size" in asked or asked.get("num_groups") == 1 or asked.get("diversity_penalty") == 0:
        kept = {name: value for name, value in kept.items() if name not in ("num_groups", "diversity_penalty")}
    if _below(asked.get("max_new_tokens"), kept.get("min_new_tokens", 0)):
        del kept["min_new_tokens"]
    if _below(asked.get("max_length"), kept.get("min_length", 0)):
        del kept["min_length"]
    if not any({**kept, **asked}[name] for name in ("presence_penalty", "frequency_penalty")):
        del kept["penalty_window"]
    if isinstance(order := asked.get("samplers"), str | list | tuple):
        kept = {name: value for name, value in kept.items() if name in order or name not in SAMPLER_ORDER}
    return kept


def _is_shared(name: str, theirs: type[Config], strategy: str) -> bool:
    """Whether an option means the same to the strategy: top_k, for one, does not everywhere."""
    first, second = theirs.model_fields[name], STRATEGIES[strategy].model_fields.get(name)
    return second is not None and (first.annotation, first.metadata) == (second.annotation, second.metadata)


def _below(value: Any, limit: int) -> bool:
    return isinstance(value, int) and value < limit
