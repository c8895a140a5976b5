"""Settings of generation: from a generation_config.json, and to one."""

import logging
from typing import Any

from pydantic import ValidationError

from txtgen.config.decoding import (
    STRATEGIES,
    BeamConfig,
    DecodingConfig,
    GreedyConfig,
    SampleConfig,
)
from txtgen.convert.fields import Fields
from txtgen.errors import CheckpointError

logger = logging.getLogger(__name__)

OTHER_NAMES = {"num_beams": "beam_size", "num_return_sequences": "num_return"}
"""Hugging Face's names of settings that are called otherwise here; all others have the same name."""

NOT_TAKEN = (
    "num_beam_groups", "diversity_penalty", "penalty_alpha", "guidance_scale", "force_words_ids", "constraints",
    "dola_layers", "prompt_lookup_num_tokens", "watermarking_config", "stop_strings", "max_time",
)  # fmt: skip
"""Settings that change the text, which txtgen does not take over."""

THEIR_TOP_K = 50
"""What Hugging Face samples from where a file does not say it: written out, so that nothing is hidden."""


def read_generation(fields: Fields) -> DecodingConfig:
    """The settings of a generation_config.json, or of an old config.json that holds them.

    Raises:
        CheckpointError: one of them has a value that it cannot have.
    """
    found = {OTHER_NAMES.get(key, key): value for key, value in fields.values.items() if value is not None}
    sampled = fields.flag("do_sample", False)
    beams = fields.count("num_beams", 1)
    strategy = "beam" if beams > 1 else "sample" if sampled else "greedy"
    if strategy == "sample":
        found.setdefault("top_k", THEIR_TOP_K)
    for longer, shorter in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if found.get(shorter) is not None:
            found.pop(longer, None)
    if isinstance(found.get("early_stopping"), bool):
        found["early_stopping"] = str(found["early_stopping"]).lower()
    if isinstance(decay := found.get("exponential_decay_length_penalty"), list) and len(decay) == 2:
        found["exponential_decay_length_penalty"] = {"start": decay[0], "factor": decay[1]}
    if isinstance(bias := found.get("sequence_bias"), list):
        found["sequence_bias"] = [
            {"token_ids": pair[0], "bias": pair[1]} for pair in bias if isinstance(pair, list) and len(pair) == 2
        ]
    left = [name for name in NOT_TAKEN if found.get(name) not in (None, 1, 0, 1.0, 0.0, [], {})]
    if left or (sampled and strategy == "beam"):
        told = ", ".join([*left, *(["do_sample with beams"] if sampled and strategy == "beam" else [])])
        logger.warning("%s: not taken over: %s", fields.where, told)
    kind = STRATEGIES[strategy]
    known = {name: value for name, value in found.items() if name in kind.model_fields}
    try:
        config: DecodingConfig = kind.model_validate(known | {"strategy": strategy})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise CheckpointError(
            f"settings of generation that cannot be used: {wrong}", fields.where, "correct or remove them in the file"
        ) from error
    return config


def write_generation(config: DecodingConfig) -> dict[str, Any]:
    """The settings as a generation_config.json holds them; without texts, which that file has no place for."""
    default = type(config)()
    changed = {key: value for key, value in config.plain().items() if value != default.plain()[key]}
    for key in ("strategy", "seed", "stop", "bad_words"):
        changed.pop(key, None)
    names = {ours: theirs for theirs, ours in OTHER_NAMES.items()}
    found = {names.get(key, key): value for key, value in changed.items()}
    if "exponential_decay_length_penalty" in found:
        decay = found["exponential_decay_length_penalty"]
        found["exponential_decay_length_penalty"] = [decay["start"], decay["factor"]]
    if "sequence_bias" in found:
        found["sequence_bias"] = [
            [bias["token_ids"], bias["bias"]] for bias in found["sequence_bias"] if bias["token_ids"]
        ]
    match config:
        case GreedyConfig():
            return found | {"do_sample": False}
        case BeamConfig():
            words = {"true": True, "false": False, "never": "never"}
            stopping = words[config.early_stopping]
            return found | {"do_sample": False, "num_beams": config.beam_size, "early_stopping": stopping}
        case SampleConfig():
            # Left out, it would mean 50.
            return found | {"do_sample": True, "top_k": config.top_k}
