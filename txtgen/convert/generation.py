"""Settings of generation: from a generation_config.json, and to one."""

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from txtgen.config.decoding import (
    STRATEGIES,
    BeamSettings,
    ContrastiveConfig,
    DecodingConfig,
    SampleSettings,
)
from txtgen.convert.fields import Fields

logger = logging.getLogger(__name__)

OTHER_NAMES = {"num_beams": "beam_size", "num_beam_groups": "num_groups", "num_return_sequences": "num_return"}
"""Hugging Face's names of settings that are called otherwise here; all others have the same name."""

THEIR_NAMES = {ours: theirs for theirs, ours in OTHER_NAMES.items()}

NOT_TAKEN = (
    "guidance_scale", "force_words_ids", "constraints", "dola_layers", "prompt_lookup_num_tokens",
    "watermarking_config", "stop_strings", "max_time",
)  # fmt: skip
"""Settings that change the text, which txtgen does not take over."""

NOT_WRITTEN = (
    "seed", "stop", "stop_on_loop", "bad_words", "prefix", "include", "regex", "json_schema", "mbr",
    "speculation", "presence_penalty", "frequency_penalty", "penalty_window", "dry", "top_n_sigma", "xtc", "samplers",
)  # fmt: skip
"""Settings that a generation_config.json has no place for."""

THEIR_TOP_K = 50
"""What Hugging Face chooses from where a file does not say it: written out, so that nothing is hidden."""


def read_generation(fields: Fields, vocab_size: int) -> DecodingConfig:
    """The settings of a generation_config.json, or of an old config.json that holds them.

    What txtgen does not have, and values that it does not take, are left out and logged: transformers, too, loads
    such a file, and complains of most of these values only when it generates.
    """
    found = {OTHER_NAMES.get(key, key): value for key, value in fields.values.items() if value is not None}
    sampled, beams = found.get("do_sample", False), found.get("beam_size", 1)
    alone = "contrastive" if found.get("penalty_alpha") not in (None, 0, 0.0) else "greedy"
    strategy = {(False, False): alone, (True, False): "beam", (False, True): "sample", (True, True): "beam_sample"}[
        type(beams) is int and beams > 1, sampled is True
    ]
    for longer, shorter in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if found.get(shorter) is not None:
            found.pop(longer, None)
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        if isinstance(tokens := found.get(key), list):
            # A number that is no token, such as -1 for none at all, suppresses nothing there.
            found[key] = [token for token in tokens if type(token) is not int or 0 <= token < vocab_size]
    if isinstance(decay := found.get("exponential_decay_length_penalty"), list) and len(decay) == 2:
        found["exponential_decay_length_penalty"] = {"start": decay[0], "factor": decay[1]}
    if isinstance(bias := found.get("sequence_bias"), list):
        found["sequence_bias"] = [
            {"token_ids": pair[0], "bias": pair[1]} for pair in bias if isinstance(pair, list) and len(pair) == 2
        ]
    left = [name for name in NOT_TAKEN if found.get(name) not in (None, 1, 0, 1.0, 0.0, [], {})]
    if type(sampled) is not bool:
        left.append(f"do_sample {sampled!r:.80} with num_beams {beams!r:.80}")
    if type(beams) is not int or beams < 1:
        left.append(f"num_beams {beams!r:.80}")
    config = _valid(strategy, found, left)
    if left:
        logger.warning("%s: not taken over: %s", fields.where, "; ".join(left))
    return config


def _valid(strategy: str, found: Mapping[str, Any], left: list[str]) -> DecodingConfig:
    """The settings that a strategy has, without the values that cannot be, which `left` tells."""
    kind = STRATEGIES[strategy]
    known = {name: value for name, value in found.items() if name in kind.model_fields and name != "strategy"}
    unsaid: dict[str, Any] = {"top_k": THEIR_TOP_K} if issubclass(kind, SampleSettings | ContrastiveConfig) else {}
    while True:
        try:
            return kind.model_validate({**unsaid, **known, "strategy": strategy})
        except ValidationError as error:
            problems = error.errors(include_url=False)
        wrong = {str(problem["loc"][0]): problem["msg"] for problem in problems if problem["loc"]}
        for problem in problems:
            if not problem["loc"]:
                wrong |= dict(problem["ctx"]["problems"])
        for key, complaint in wrong.items():
            left.append(f"{THEIR_NAMES.get(key, key)} {known.pop(key)!r:.80} ({complaint})")


def write_generation(config: DecodingConfig) -> dict[str, Any]:
    """The settings as a generation_config.json holds them; what it has no place for is left out and logged."""
    default = type(config)()
    changed = {key: value for key, value in config.plain().items() if value != default.plain()[key]}
    changed.pop("strategy", None)
    if left := [key for key in NOT_WRITTEN if changed.pop(key, None) is not None]:
        logger.warning("generation_config.json has no place for %s", ", ".join(left))
    found = {THEIR_NAMES.get(key, key): value for key, value in changed.items()}
    if "exponential_decay_length_penalty" in found:
        decay = found["exponential_decay_length_penalty"]
        found["exponential_decay_length_penalty"] = [decay["start"], decay["factor"]]
    if "sequence_bias" in found:
        found["sequence_bias"] = [
            [bias["token_ids"], bias["bias"]] for bias in found["sequence_bias"] if bias["token_ids"]
        ]
    found["do_sample"] = isinstance(config, SampleSettings)
    if isinstance(config, SampleSettings | ContrastiveConfig):
        # Left out, it would mean 50.
        found["top_k"] = config.top_k
    if isinstance(config, BeamSettings):
        stopping = {"true": True, "false": False, "never": "never"}[config.early_stopping]
        found |= {"num_beams": config.beam_size, "early_stopping": stopping}
    return found
