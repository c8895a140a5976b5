"""`txtgen config show | schema`: what a configuration resolves to, and what one may hold."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from txtgen.config.loader import dump_config, load_run_config
from txtgen.config.runs import FinetuneConfig, PretrainConfig
from txtgen.config.schema import schema as schema_of
from txtgen.errors import UsageError

RunKind = Literal["pretrain", "finetune"]


def show(path: Path, overrides: Sequence[str] = ()) -> str:
    """The resolved configuration of a run as YAML, defaults written out.

    Raises:
        ConfigError: the file or an override holds mistakes.
        UsageError: an override has no ``=``.
    """
    return dump_config(load_run_config(path, overrides))


def schema(kind: RunKind = "pretrain") -> str:
    """The JSON Schema of a run's configuration, as JSON.

    Raises:
        UsageError: there is no such kind of run.
    """
    match kind:
        case "pretrain":
            found = schema_of(PretrainConfig)
        case "finetune":
            found = schema_of(FinetuneConfig)
        case _:
            raise UsageError(f"there is no schema named {kind!r}", "", f"name one of {', '.join(get_args(RunKind))}")
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
