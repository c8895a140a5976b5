"""Configurations that the tests of this folder share, and what the loader says of them."""

from typing import Any

import pytest

from txtgen.config.loader import config_from_text
from txtgen.config.runs import PretrainConfig
from txtgen.errors import ConfigError

RUN = """\
model:
  kind: decoder
  d_model: 64
data:
  sources:
    - kind: text
      path: corpus.txt
"""

MANY = """\
modle: {}
model:
  kind: decoder
  d_modle: 64
  d_model: 10
  num_heads: 4
  num_kv_heads: 3
  dropout: 1.0
  max_length: 0
  position: {kind: t5_relative, num_buckets: 6}
train:
  steps: 5
  schedule: {kind: constant, warmup_steps: 6}
  batch_tokens: -1
  optimizer: {kind: adamw, learning_rate: 0, beta2: 1}
data:
  sources:
    - {kind: text, path: 5, weight: 0}
    - {kind: txt, path: a}
    - {kind: parallel, source_path: a}
  validation: {fraction: 0.1, sources: [{kind: text, path: a}]}
"""

# fmt: off
AWKWARD = [
    "no", "yes", "on", "true", "~", "", "null", "Null", ".nan", "-.inf", "1e-4", "1e5", ".5", "010", "0o17", "0x1F",
    "1_000", "0b1", "12:30:45", "2001-01-01", "<<", "=", "- a", "a: b", "#", "a #b", "*x", "&x", "!t", "%", "@", "`",
    "---", "...", "--- a", "? a", "'", '"', "\\", "it's", "{a}", "[", "a,b", "|", ">", "a\nb", "a\n\nb\n", "  lead",
    "trail ", "\t", "\r\n", "\x85", "\u2028", "\ufeff", "\x1b", "\x7f", "😀", "a" * 300, "x y " * 90,
]
# fmt: on
"""Texts that YAML could take for something else, or lose a part of."""


def complaint(text: str | bytes, *overrides: str, kind: Any = PretrainConfig) -> str:
    """What the loader says of a configuration that is wrong."""
    with pytest.raises(ConfigError) as caught:
        config_from_text(kind, text, "run.yaml", overrides)
    return str(caught.value)


def run(*overrides: str) -> PretrainConfig:
    """A small run after overrides."""
    return config_from_text(PretrainConfig, RUN, "run.yaml", overrides)
