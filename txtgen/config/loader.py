"""Configurations from files, texts, trees and flags, and back to YAML."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from txtgen.config.base import Config
from txtgen.config.mistakes import KeyPath, Place, dotted, printable, shown
from txtgen.config.runs import FinetuneConfig, PretrainConfig
from txtgen.config.validation import validated
from txtgen.config.yaml import MAX_DEPTH, dump_yaml, read_value, read_yaml, read_yaml_file
from txtgen.errors import ConfigError, UsageError

C = TypeVar("C", bound=Config)


def load_config(kind: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """The configuration in a YAML file, after overrides such as ``train.steps=10``, the last one winning.

    Raises:
        ConfigError: the file or an override holds mistakes; all of them are told.
        UsageError: an override has no ``=``.
    """
    document = read_yaml_file(path)
    return config_from_tree(kind, document.tree, overrides, source=str(path), places=document.places)


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig | FinetuneConfig:
    """The configuration of a run: one that describes a model is for pretraining, any other for finetuning.

    Raises:
        ConfigError, UsageError: as for `load_config`.
    """
    document = read_yaml_file(path)
    creates = "model" in document.tree or any(text.startswith(("model.", "model=")) for text in overrides)
    kind: type[PretrainConfig] | type[FinetuneConfig] = PretrainConfig if creates else FinetuneConfig
    return config_from_tree(kind, document.tree, overrides, source=str(path), places=document.places)


def config_from_text(kind: type[C], text: bytes | str, source: str, overrides: Sequence[str] = ()) -> C:
    """As `load_config`, from YAML at hand, such as a file inside the package. `source` names it in errors."""
    document = read_yaml(text, source)
    return config_from_tree(kind, document.tree, overrides, source=source, places=document.places)


@overload
def config_from_tree(
    kind: type[C],
    tree: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str = ...,
    places: Mapping[KeyPath, Place] | None = ...,
) -> C: ...


@overload
def config_from_tree(
    kind: Any,
    tree: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str = ...,
    places: Mapping[KeyPath, Place] | None = ...,
) -> Any: ...


def config_from_tree(
    kind: Any,
    tree: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str = "the configuration",
    places: Mapping[KeyPath, Place] | None = None,
) -> Any:
    """A configuration from plain dicts, lists and scalars, which need not be trusted.

    Args:
        kind: a configuration class, or a union of them such as ModelConfig.
        tree: the keys and values. A section with no kind of its own amends the default of its place.
        overrides: texts ``a.b=value``, as for `load_config`.
        source: what the tree is called in errors.
        places: where its values were written.

    Raises:
        ConfigError: all mistakes of the tree and the overrides.
        UsageError: an override has no ``=``.
    """
    amended: Any = tree
    known = dict(places or {})
    for override in overrides:
        amended = _overridden(amended, override, known)
    return validated(kind, amended, known, source)


def _overridden(tree: Any, override: str, places: dict[KeyPath, Place]) -> Any:
    """The tree with one value replaced, and its place noted as the flag."""
    flag = f"--set {printable(override)}"
    dotted_path, equals, text = override.partition("=")
    if not equals:
        raise UsageError("an override needs a key, = and a value", flag, "write --set a.b=value")
    path = tuple(key.strip() for key in dotted_path.split("."))
    if not all(path):
        raise ConfigError("a part of the key is empty", flag, "write --set a.b=value")
    if len(path) > MAX_DEPTH:
        raise ConfigError(f"the key is nested deeper than {MAX_DEPTH} levels", flag, "write --set a.b=value")
    tree = _with_value(tree, path, 0, read_value(text, flag), flag)
    for written in [written for written in places if written[: len(path)] == path]:
        del places[written]
    for length in range(1, len(path) + 1):
        places.setdefault(path[:length], Place(flag))
    return tree


def _with_value(node: Any, path: KeyPath, depth: int, value: Any, flag: str) -> Any:
    """A copy of a tree in which the value at path[depth:] is another. Missing sections are made."""
    if depth == len(path):
        return value
    key, above = path[depth], dotted(path[:depth])
    if node is None:
        node = [] if key == "0" else {}
    if isinstance(node, dict):
        return {**node, key: _with_value(node.get(key), path, depth + 1, value, flag)}
    if not isinstance(node, list):
        raise ConfigError(
            f"{above} is {shown(node)}, not a section, and has no {printable(key)}", flag, "check the key"
        )
    index = int(key) if key.isascii() and key.isdigit() and len(key) < 8 else len(node) + 1
    if index > len(node):
        raise ConfigError(f"{above} is {shown(node)} and has no {printable(key)}", flag, "items are counted from 0")
    old = node[index] if index < len(node) else None
    return [*node[:index], _with_value(old, path, depth + 1, value, flag), *node[index + 1 :]]


def dump_config(config: Config) -> str:
    """A configuration as YAML, every value written out; it reads back to an equal one."""
    return dump_yaml(config.plain())
