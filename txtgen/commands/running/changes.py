"""What a resumed run may be told anew: which config keys may change, at a price, or never."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from txtgen.config.loader import config_from_tree
from txtgen.config.runs import RunConfig
from txtgen.errors import ConfigError, TxtgenError

Kind = Literal["harmless", "risky", "impossible"]

KINDS: dict[str, Kind] = {
    # Where things are, what is shown, and how long it goes on, where that leaves the learning rate as it is.
    "name": "harmless",
    "runs_path": "harmless",
    "device": "harmless",
    "base": "harmless",
    "samples.*": "harmless",
    "generation.*": "harmless",
    "train.steps": "harmless",
    "train.minutes": "harmless",
    "train.micro_batch_tokens": "harmless",
    "train.activation_checkpointing": "harmless",
    "train.compile": "harmless",
    "train.sharding": "harmless",
    "train.rank_timeout_seconds": "harmless",
    "train.log_every": "harmless",
    "train.tensorboard": "harmless",
    "train.validate_every": "harmless",
    "train.validation_batches": "harmless",
    "train.validation_translations": "harmless",
    "train.save_every": "harmless",
    "train.keep_last": "harmless",
    "train.*non_finite": "harmless",
    "train.keep_every": "harmless",
    "train.save_in_background": "harmless",
    "train.patience": "harmless",
    # Files may move: their fingerprints tell whether they are the same.
    "data.sources.*path": "harmless",
    "data.replay.sources.*path": "harmless",
    "data.on_bad_record": "harmless",
    "data.max_bad_fraction": "harmless",
    "data.workers": "harmless",
    # How weights are learnt from now on.
    "train.optimizer.kind": "impossible",
    "train.optimizer.*": "risky",
    "train.schedule.*": "risky",
    "train.ema_decay": "risky",
    "train.clip_norm": "risky",
    "train.label_smoothing": "risky",
    "data.subword_sampling*": "risky",
    "train.dtype": "risky",
    "model.*dropout": "risky",
    "dropout": "risky",
    "freeze*": "risky",
    "adapter.dropout": "risky",
    "adapter*": "impossible",
    # What is measured, and so which checkpoint is the best.
    "data.validation.fraction": "impossible",
    "data.validation.*": "risky",
    "data.forgetting*": "risky",
    "train.validation_metric": "risky",
    # What the weights are, and which text has been learnt already.
    "seed": "impossible",
    "train.batch_tokens": "impossible",
    "train.sequence_length": "impossible",
    "model.*": "impossible",
    "tokenizer*": "impossible",
    "source_tokenizer*": "impossible",
    "data.objective.*": "impossible",
    "data.sources*": "impossible",
    "data.replay*": "impossible",
}
"""By patterns of dotted keys, the first that fits; a key that none fits must not change."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The differences between two configs of a run, by kind: dotted key -> (old, new)."""

    harmless: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    risky: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    impossible: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def kind_of(key: str) -> Kind | None:
    """What a change of this dotted key is; None: no pattern fits it."""
    return next((kind for pattern, kind in KINDS.items() if fnmatchcase(key, pattern)), None)


def compare(before: dict[str, Any], now: RunConfig) -> Changes:
    """What differs between the saved config of a run and the one to go on with.

    Keys that the run's version of txtgen did not know yet count as their defaults.
    """
    saved = {key: value for key, value in before.items() if key != "command"}
    with suppress(TxtgenError):  # of a version with other rules: then what it says is compared as it stands
        saved = config_from_tree(type(now), saved).plain()
    old, new = dict(flatten(saved)), dict(flatten(now.plain()))
    found = Changes()
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            getattr(found, kind_of(key) or "impossible")[key] = (old.get(key), new.get(key))
    return found


def require_same_run(changes: Changes, where: str, accept: bool) -> None:
    """Refuse changes that make it another run, and risky ones unless they are accepted.

    Raises:
        ConfigError: naming each change as old -> new.
    """
    if changes.impossible:
        raise ConfigError(
            f"a resumed run cannot change {told(changes.impossible)}",
            where,
            "undo that, or start a new run (finetune goes on from the weights of this one with another config)",
        )
    if changes.risky and not accept:
        raise ConfigError(
            f"this changes what the run learns from here on: {told(changes.risky)}",
            where,
            "undo that (--resume without a config keeps what the run has), or say that you mean it by --accept-changes",
        )


def told(changes: dict[str, tuple[Any, Any]]) -> str:
    """Each change as key: old -> new."""
    return ", ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their plain values."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list | tuple) and tree and isinstance(tree[0], dict):
        for number, value in enumerate(tree):
            yield from flatten(value, f"{prefix}.{number}")
    else:
        yield prefix, list(tree) if isinstance(tree, tuple) else tree
