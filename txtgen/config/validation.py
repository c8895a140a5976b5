"""Validation that finds all mistakes at once, each with its place.

Fields are checked first, strictly and as JSON: lists become tuples, but text never becomes a number. Then the
rules between keys (`Config.problems`) are checked wherever the keys that they need are sound.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from types import NoneType
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from txtgen.config.base import FIELDS_ONLY, Config
from txtgen.config.mistakes import (
    LARGE_INT,
    KeyPath,
    Mistake,
    Place,
    config_error,
    did_you_mean,
    dotted,
    place_of,
    shown,
)
from txtgen.config.shape import (
    arms,
    chosen,
    expected,
    field_type,
    item_type,
    places_of_key,
    sections,
    tag,
    unwrapped,
)
from txtgen.config.short_forms import in_full
from txtgen.config.yaml import MAX_DEPTH, MAX_VALUES, scalar
from txtgen.errors import ConfigError

Complaints = dict[KeyPath, tuple[str, str]]
"""What is wrong at a path, and a hint."""

MAX_EXPLAINED = 200
"""With more mistakes than these, hints and the rules between keys are left out: they would take long."""

NAMES_ELSEWHERE = {
    "lr": "train.optimizer.learning_rate",
    "max_steps": "train.steps",
    "max_iters": "train.steps",
    "batch_size": "train.batch_tokens",
    "gradient_accumulation_steps": "train.micro_batch_tokens",
    "grad_clip": "train.clip_norm",
    "max_grad_norm": "train.clip_norm",
    "label_smoothing_factor": "train.label_smoothing",
    "lr_scheduler_type": "train.schedule.kind",
    "eval_steps": "train.validate_every",
    "eval_interval": "train.validate_every",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep_last",
    "early_stopping_patience": "train.patience",
    "hidden_size": "model.d_model",
    "n_embd": "model.d_model",
    "n_layer": "model.num_layers",
    "num_hidden_layers": "model.num_layers",
    "encoder_layers": "model.num_encoder_layers",
    "decoder_layers": "model.num_decoder_layers",
    "n_head": "model.num_heads",
    "num_attention_heads": "model.num_heads",
    "num_key_value_heads": "model.num_kv_heads",
    "intermediate_size": "model.d_ff",
    "ffn_dim": "model.d_ff",
    "block_size": "model.max_length",
    "n_positions": "model.max_length",
    "max_position_embeddings": "model.max_length",
    "hidden_act": "model.activation",
}
"""What users of other tools write, and the key that says the same here, or what says it in other units."""


def validated(annotation: Any, tree: Any, places: Mapping[KeyPath, Place], source: str) -> Any:
    """A plain tree as an instance of its type.

    Raises:
        ConfigError: one error that lists every mistake.
    """
    complaints: Complaints = {}
    plain = in_full(annotation, _plain(tree, (), complaints, iter(range(MAX_VALUES)), source))
    broken = set(complaints)
    config = None
    try:
        config = _fields(annotation, plain)
    except ValidationError as error:
        details = list(_causes(error.errors(include_url=False)))
        for detail in details:
            for path, told in _told(detail, annotation, plain, hints=len(details) <= MAX_EXPLAINED):
                broken.add(path[:-1] if detail["type"].startswith("union_tag") else path)
                if path not in complaints or detail["type"] == "extra_forbidden":
                    complaints[path] = told
    mistakes = [Mistake(place_of(path, places, source), path, *told) for path, told in complaints.items()]
    if len(mistakes) <= MAX_EXPLAINED:
        for path, complaint in _problems(annotation, plain, (), broken):
            if path not in complaints:
                mistakes.append(Mistake(place_of(path, places, source), path, complaint))
    if mistakes:
        raise config_error(mistakes, source)
    return config


def _fields(annotation: Any, plain: Any) -> Any:
    """A plain tree as an instance of its type, rules between keys unchecked."""
    return TypeAdapter(annotation).validate_json(json.dumps(plain), context=FIELDS_ONLY)


def _plain(node: Any, path: KeyPath, complaints: Complaints, budget: Iterator[int], source: str) -> Any:
    """A copy of a tree that is safe to write as JSON; what is not is complained of and replaced by None."""
    if len(path) > MAX_DEPTH:
        raise ConfigError(f"values are nested deeper than {MAX_DEPTH} levels", source, "flatten them")
    if next(budget, None) is None:
        raise ConfigError(f"the configuration holds more than {MAX_VALUES:,} values", source, "shorten it")
    match node:
        case None | bool():
            return node
        case str() if "\0" in node or not _is_unicode(node):
            complaints[path] = (f"expected text without NUL or half characters, got {shown(node)}", "")
        case int() if abs(node) >= LARGE_INT:
            complaints[path] = (f"expected a number of ordinary size, got {shown(node)}", "")
        case float() if not math.isfinite(node):
            complaints[path] = (f"expected a finite number, got {shown(node)}", "")
        case str() | int() | float():
            return node
        case list() | tuple():
            return [_plain(item, (*path, str(i)), complaints, budget, source) for i, item in enumerate(node)]
        case dict():
            copy = {}
            for key, value in node.items():
                if isinstance(key, str) and _is_unicode(key):
                    copy[key] = _plain(value, (*path, key), complaints, budget, source)
                else:
                    complaints[path] = (f"expected keys that are text, got {shown(key)}", "")
            return copy
        case _:
            complaints[path] = (f"expected text, a number, a list or a section, got {shown(node)}", "")
    return None


def _is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _causes(errors: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """The errors less those of lists that are too short only because their items are at fault, which are told."""
    for error in errors:
        if error["type"] == "too_short":
            loc = error["loc"]
            if any(other["loc"][: len(loc)] == loc for other in errors if len(other["loc"]) > len(loc)):
                continue
        yield error


def _told(error: ErrorDetails, annotation: Any, tree: Any, hints: bool) -> Iterator[tuple[KeyPath, tuple[str, str]]]:
    """An error of pydantic as (path, (complaint, hint)), worded from the type that is expected there."""
    path, here, section = _located(error["loc"], annotation)
    value = _node_at(tree, path)
    hint = ""
    match error["type"]:
        case "extra_forbidden":
            complaint = "unknown key"
            hint = _hint_for_unknown(path, section, annotation) if hints else ""
        case "missing":
            complaint, hint = f"expected {expected(here)}, got nothing", "the key is required"
        case "union_tag_invalid" | "union_tag_not_found":
            name, kinds = tag(sections(here)[0])[0], [tag(option)[1] for option in sections(here)]
            got = shown(value[name]) if name in value else "nothing"
            complaint = f"expected one of {', '.join(kinds)}, got {got}"
            hint = did_you_mean(value.get(name), kinds) if hints else ""
            path = (*path, name)
        case _:
            complaint = f"expected {expected(here, value)}, got {shown(value)}"
            hint = _hint_for_value(here, value) if hints else ""
    yield path, (complaint, hint)


def _located(loc: tuple[int | str, ...], annotation: Any) -> tuple[KeyPath, Any, type[Config] | None]:
    """Path and type of an error, and the section around it. `loc` names union members too; paths do not."""
    path: KeyPath = ()
    section = None
    for part in loc:
        options = sections(annotation)
        if len(options) > 1:
            annotation = next(option for option in options if tag(option)[1] == part)
            continue
        item = item_type(annotation)
        if options:
            section = options[0]
            field = section.model_fields.get(str(part))
            annotation = field_type(field) if field else None
        elif len([arm for arm in arms(annotation) if arm is not NoneType]) > 1:
            break  # one complaint speaks for all members of a union of plain types
        else:
            annotation = item
        path = (*path, str(part))
    return path, annotation, section


def _node_at(tree: Any, path: KeyPath) -> Any:
    """The value at a path; None if there is none."""
    for key in path:
        if isinstance(tree, list):
            tree = tree[int(key)] if int(key) < len(tree) else None
        elif isinstance(tree, dict):
            tree = tree.get(key)
        else:
            break  # it stands for a list of itself
    return tree


def _hint_for_unknown(path: KeyPath, section: type[Config] | None, annotation: Any) -> str:
    """The kind that knows the key, else where it belongs, else the nearest known key, else all of them."""
    belongs = dict(places_of_key(path[-1], annotation))
    general = tuple("N" if key.isdigit() else key for key in path)
    if belongs.get(general):
        return f"it needs {belongs[general]}"
    if 1 <= len(belongs) <= 3:
        return "it belongs at " + " or ".join(dotted(place) for place in belongs)
    here = tuple(NAMES_ELSEWHERE.get(path[-1], "").split("."))
    if any(place == here for place, _ in places_of_key(here[-1], annotation)):
        return f"here it is {dotted(here)}"
    known = list(section.model_fields) if section else []
    return did_you_mean(path[-1], known) or f"known keys: {', '.join(known)}"


def _hint_for_value(annotation: Any, value: Any) -> str:
    """How to write what was probably meant."""
    types = {unwrapped(arm)[0] for arm in arms(annotation)}
    if isinstance(value, str):
        digits = re.sub(r"^0+(?=[0-9])", "", value.replace("_", ""))
        number = scalar(digits)
        if type(number) in types & {int, float} or (type(number) is int and float in types):
            return f"write it as {digits}"
        kinds = [tag(option) for option in sections(annotation)]
        for name, kind in kinds:
            if value == kind:
                return f"write {{{name}: {kind}}}"
        choices = [choice for arm in types for choice in get_args(arm) if isinstance(choice, str)]
        return did_you_mean(value, choices)
    if int in types and isinstance(value, float) and value.is_integer() and abs(value) < LARGE_INT:
        return f"write it as {int(value)}"
    return ""


def _problems(annotation: Any, node: Any, path: KeyPath, broken: Collection[KeyPath]) -> Iterator[tuple[KeyPath, str]]:
    """What the rules between keys say of all sections whose fields are sound enough to ask."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _problems(item_type(annotation), item, (*path, str(index)), broken)
    section = chosen(annotation, node)
    if section is None or not isinstance(node, dict) or path in broken:
        return
    inside = sorted((key[len(path) :] for key in broken if key[: len(path)] == path), key=len)
    try:
        config = _fields(section, _without(node, inside))
    except ValidationError:  # something that is required is broken: ask the sections inside
        for key, value in node.items():
            if field := section.model_fields.get(key):
                yield from _problems(field_type(field), value, (*path, key), broken)
        return
    for key in inside:
        _forget(config, key)
    yield from _asked(config, path, sound=not inside)


def _without(node: Any, broken: Collection[KeyPath]) -> Any:
    """A tree less some of the entries of its mappings."""
    if isinstance(node, list):
        return [_without(item, _below(str(index), broken)) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    return {key: _without(value, _below(key, broken)) for key, value in node.items() if (key,) not in broken}


def _below(key: str, paths: Collection[KeyPath]) -> list[KeyPath]:
    """What is left of the paths that lead through a key."""
    return [path[1:] for path in paths if len(path) > 1 and path[0] == key]


def _forget(config: Any, path: KeyPath) -> None:
    """Take a default that stands in for a broken value away, so that no rule is judged by it."""
    for key in path[:-1]:
        config = config[int(key)] if isinstance(config, tuple) else vars(config).get(key)
        if not isinstance(config, (Config, tuple)):
            return
    if isinstance(config, Config):
        vars(config).pop(path[-1], None)


def _asked(config: Config, path: KeyPath, sound: bool) -> Iterator[tuple[KeyPath, str]]:
    """The problems of a section and of those inside it. One that is not sound lacks its broken values."""
    for name, value in config:
        parts = {name: value} if isinstance(value, Config) else {}
        if isinstance(value, tuple):
            parts = {f"{name}.{index}": item for index, item in enumerate(value) if isinstance(item, Config)}
        for key, part in parts.items():
            yield from _asked(part, (*path, *key.split(".")), sound)
    try:
        for key, complaint in config.problems():
            yield (*path, *key.split(".")) if key else path, complaint
    except AttributeError:  # the rule needs a value that is broken; the broken value has been told of
        if sound:
            raise
