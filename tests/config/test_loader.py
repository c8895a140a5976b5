"""The loader: YAML that means what it says, mistakes told all at once with their places, and a way back."""

import json
import math
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from txtgen.commands import config as config_command
from txtgen.config.commands import CheckpointConfig, FinetuneConfig, PretrainConfig, SamplesConfig
from txtgen.config.data import ChatObjective, DataConfig, JsonlSource, TextChatFormat, TextSource
from txtgen.config.decoding import BeamConfig, DecodingConfig, SampleConfig
from txtgen.config.loader import (
    config_from_text,
    config_from_tree,
    dump_config,
    load_config,
    load_run_config,
    schema,
)
from txtgen.config.model import AlibiPosition, DecoderConfig, ModelConfig, RotaryPosition
from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
from txtgen.config.yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, dump_yaml, read_yaml, scalar
from txtgen.errors import ConfigError, UsageError

RUN = """\
model:
  kind: decoder
  d_model: 64
data:
  sources:
    - kind: text
      path: corpus.txt
"""


def complaint(text: str | bytes, *overrides: str, kind: Any = PretrainConfig) -> str:
    """What the loader says of a configuration that is wrong."""
    with pytest.raises(ConfigError) as caught:
        config_from_text(kind, text, "run.yaml", overrides)
    return str(caught.value)


def run(*overrides: str) -> PretrainConfig:
    return config_from_text(PretrainConfig, RUN, "run.yaml", overrides)


# Scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("-.5e1", -5.0), ("1.", 1.0), ("01.5", 1.5),
        ("0", 0), ("-0", 0), ("+12", 12), ("0x1F", 31), ("0o17", 15),
        ("true", True), ("True", True), ("TRUE", True), ("false", False),
        ("null", None), ("~", None), ("", None), ("NULL", None),
    ],
)  # fmt: skip
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    ["no", "yes", "on", "off", "No", "y", "tRUE", "nUll", "010", "-010", "00", "12:30:45", "2001-01-01", "1_000",
     "0b11", "0o8", "0xg", ".", "-", "+", "e5", "1e", "1e+", "1.2.3", "inf", "nan", "Infinity", ".infinity", "=", "<<",
     "١", "1\n"],
)  # fmt: skip
def test_scalars_that_are_text(text: str) -> None:
    assert scalar(text) == text


def test_scalars_that_are_not_finite() -> None:
    assert scalar(".inf") == scalar("+.INF") == scalar("1e999") == math.inf
    assert scalar("-.inf") == -math.inf
    assert math.isnan(float(scalar(".nan")))  # type: ignore[arg-type]
    assert scalar("9" * 100_000) == math.inf, "and fast: no conversion of a hundred thousand digits"


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_numbers_as_python_and_json_write_them(number: float | int) -> None:
    assert scalar(repr(number)) == number == scalar(json.dumps(number))


def test_keys_and_quotes() -> None:
    tree = read_yaml("no: 1\non: 2\n'3': {\"x\": '4'}\n? y\n: [null, ]\n", "f").tree
    assert tree == {"no": 1, "on": 2, "3": {"x": "4"}, "y": [None]}


def test_pairs_of_surrogate_escapes_are_one_character() -> None:
    assert read_yaml('a: "\\ud83d\\ude00"', "f").tree == {"a": "😀"}


# Files that are not what they should be (every one names line and column where there is one)


@pytest.mark.parametrize(
    ("data", "place", "words"),
    [
        ("", "f:1:1", "keys and values"),
        ("# only a comment\n", "f:1:1", "keys and values"),
        ("- a\n- b\n", "f:1:1", "keys and values"),
        ("just text", "f:1:1", "keys and values"),
        ("a: 1\n---\nb: 2\n", "f:2:1", "second document"),
        ("a: 1\n...\nfoo", "f:3:1", "after the end"),
        ("a: 1\nb: 2\na: 3\n", "f:3:1", "first in line 1"),
        ("a: {b: 1, b: 2}", "f:1:11", "a.b: the key is given twice"),
        ("a:\n\tb: 1\n", "f:2:1", "tab"),
        ("a: b: c", "f:1:5", "colon"),
        ("a: [1, 2", "f:1:9", "brackets"),
        ("a: 'x", "f:1:6", "never closed"),
        ("a: 1\n - b: 2\n", "f:2:5", "colon"),
        ('a: "\\U00110000"', "f:1:", "escape"),
        ("a: @x", "f:1:4", "quotes"),
        ("a: *.txt", "f:1:5", "quotes"),
        ("a: \x07", "f:1:4", "U+0007"),
        ("ä: 1\n\0", "f:2:1", "U+0000"),
        ("ä: 1\nb: ".encode() + b"\xff\xfe", "f:2:4", "byte 0xff at offset 9"),
        ("a: ä".encode("latin-1"), "f:1:4", "UTF-8"),
        ("a: 1".encode("utf-16"), "f", "UTF-16"),
        (b"PK\x03\x04rest", "f", "checkpoint"),
        (b"\x80\x02}q\x00.", "f", "checkpoint"),
        ("1: a", "f:1:1", "key must be text, got 1"),
        ("true: a", "f:1:1", "key must be text"),
        ("null: a", "f:1:1", "key must be text"),
        ("? [1]\n: 2", "f:1:3", "key must be text"),
        ("a: !!python/object/apply:os.system ['x']", "f:1:4", "tags"),
        ("a: !!str 1", "f:1:4", "tags"),
        ("a: &x 1", "f:1:4", "anchors"),
        ("a: b\nc: *d", "f:2:4", "aliases"),
    ],
)
def test_bad_yaml(data: str | bytes, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(data, "f")
    assert caught.value.where.startswith(place)
    assert words in str(caught.value)
    assert "found" not in str(caught.value), "the parser's own words must not come through"


def test_mistakes_of_reading_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml("a: 1\na: 2\nb: !!int 3\n4: 5\n", "f")
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 mistakes in f:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == ["f:2:1", "f:3:4", "f:4:1"]


def test_byte_order_mark_and_line_ends() -> None:
    assert read_yaml("\ufeffa: 1\r\nb: 2\r\n".encode(), "f").tree == {"a": 1, "b": 2}


def test_no_half_characters() -> None:
    assert "samples.prompts.0" in complaint(RUN + 'samples: {prompts: ["\\ud83d"]}')
    assert "samples.prompts.0" in complaint(RUN + 'samples: {prompts: ["a\\0b"]}')


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (BOMB, "anchors and aliases"),
        ("[" * 5000, f"deeper than {MAX_DEPTH}"),
        ("a: " + "[" * 5000, f"deeper than {MAX_DEPTH}"),
        ("{a: " * 5000, f"deeper than {MAX_DEPTH}"),
        ("- " * 5000, f"deeper than {MAX_DEPTH}"),
        ("a: [" + "1," * (MAX_VALUES + 10) + "]", "values"),
        ("a: 1\n" * 2_000_000, f"larger than {MAX_BYTES:,}"),
    ],
    ids=["aliases", "brackets", "list", "braces", "dashes", "wide", "large"],
)
def test_bombs_fail_fast_in_little_memory(data: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(data)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ConfigError, match=words):
        load_config(PretrainConfig, path)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10
    assert peak < 30_000_000


def test_depth_is_bounded_where_it_should_be() -> None:
    read_yaml("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "f")
    with pytest.raises(ConfigError, match="deeper"):
        read_yaml("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "f")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a: 1")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04" + bytes(2_000_000))
    for name in ("missing.yaml", ".", "file/below.yaml", "loop", "model.pth", "x" * 300, "a\0b"):
        with pytest.raises(ConfigError) as caught:
            load_config(PretrainConfig, tmp_path / name)
        assert caught.value.exit_code == 3
        assert caught.value.where == str(tmp_path / name)
        assert caught.value.fix


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text(RUN)
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load_config(PretrainConfig, path)


# Mistakes in the values


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ('"8"', "'8'"), ("true", "true"), ("1.5", "1.5"), ("null", "null"), ("[8, 9]", "[8, 9]"), (".nan", ".nan"),
        ("-.inf", "-.inf"), ("1e999", ".inf"), ("010", "'010'"), ("{a: 1}", "a section"), ("0", "0"), ("-3", "-3"),
        ("99999999999", "99999999999"), ("1" + "0" * 30, "a number of 100 bits"), ("9" * 5000, ".inf"),
        ("1e3", "1000.0"), ("no", "'no'"),
    ],
)  # fmt: skip
def test_wrong_type_for_a_whole_number(value: str, got: str) -> None:
    told = complaint(RUN + f"seed: 1\ntrain:\n  log_every: {value}\n")
    assert "run.yaml:10:3" in told
    assert told.startswith("train.log_every: expected a ")
    assert f"got {got}" in told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed: '8'", "write it as 8"),
        ("seed: 010", "write it as 10"),
        ("seed: 8_192", "write it as 8192"),
        ("seed: 1e3", "write it as 1000"),
        ("device: cudo", "did you mean cuda?"),
        ("device: 3", "expected one of auto, cpu, cuda, mps, got 3"),
        ("name: a/b", "expected a folder name"),
        ("name: ..", "expected a folder name"),
        ("tokenizer: null", "expected a section, got null"),
        ("tokenizer: {byte_fallback: yes}", "expected true or false, got 'yes'"),
        ("samples: {prompts: hello}", "expected a list, each item text, got 'hello'"),
        ("train: {clip_norm: '1'}", "expected a number (above 0) or null, got '1'"),
        ("train: {schedule: cosine}", "write {kind: cosine}"),
        ("train: {schedule: {kind: cosin}}", "did you mean cosine?"),
        ("train: {schedule: {kind: 3}}", "expected one of cosine, inverse_sqrt, constant, got 3"),
        ("train: {schedule: {kind: [cosine]}}", "train.schedule.kind"),
        ("train: {learning_rate: 1}", "it belongs at train.optimizer.learning_rate"),
        ("d_model: 8", "it belongs at model.d_model"),
        ("generation: {strategy: greedy, temperature: 1}", "it needs strategy: sample"),
        ("trian: {}", "did you mean train?"),
        ("zzz: 1", "known keys: name, runs_path, seed"),
        ("'a\\x1b[2Jb': 1", r"a\x1b[2Jb: unknown key"),
    ],
)
def test_complaints_help(line: str, words: str) -> None:
    line = line.replace("'a\\x1b[2Jb'", '"a\\x1b[2Jb"')
    told = complaint(RUN + line)
    assert words in told
    assert "\n" not in told, "one mistake is told once"
    assert "pydantic" not in told
    assert "\x1b" not in told


def test_numbers_as_people_write_them() -> None:
    config = run("train.optimizer.learning_rate=3e-4", "train.clip_norm=1", "train.minutes=.5")
    assert config.train.optimizer.learning_rate == 3e-4
    assert config.train.clip_norm == 1.0
    assert isinstance(config.train.clip_norm, float)
    assert config.train.minutes == 0.5


def test_one_complaint_for_a_union_of_plain_types() -> None:
    bad = RUN.replace("corpus.txt", "[3, 4]")
    told = complaint(bad)
    assert told.count("data.sources.0.path") == 1
    assert "expected text or a list that is not empty, each item text, got [3, 4]" in told
    assert config_from_text(PretrainConfig, RUN.replace("corpus.txt", "[a, b]"), "f").data.sources[
        0
    ].path == ("a", "b")


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


def test_all_mistakes_at_once_in_the_order_of_their_lines() -> None:
    lines = complaint(MANY).splitlines()
    assert lines[0] == f"{len(lines) - 1} mistakes in run.yaml:"
    assert [line.split(": ", 2)[:2] for line in lines[1:]] == [
        ["  run.yaml:1:1", "modle"],
        ["  run.yaml:4:3", "model.d_modle"],
        ["  run.yaml:5:3", "model.d_model"],
        ["  run.yaml:7:3", "model.num_kv_heads"],
        ["  run.yaml:8:3", "model.dropout"],
        ["  run.yaml:9:3", "model.max_length"],
        ["  run.yaml:10:33", "model.position.num_buckets"],
        ["  run.yaml:13:30", "train.schedule.warmup_steps"],
        ["  run.yaml:14:3", "train.batch_tokens"],
        ["  run.yaml:15:28", "train.optimizer.learning_rate"],
        ["  run.yaml:15:46", "train.optimizer.beta2"],
        ["  run.yaml:18:20", "data.sources.0.path"],
        ["  run.yaml:18:29", "data.sources.0.weight"],
        ["  run.yaml:19:8", "data.sources.1.kind"],
        ["  run.yaml:20:7", "data.sources.2.target_path"],
        ["  run.yaml:21:16", "data.validation.fraction"],
    ]


def test_rules_are_not_judged_by_values_that_are_broken() -> None:
    """steps is broken, so nothing is known of the warm-up; d_model is sound, so its rule speaks."""
    told = complaint(
        RUN + "train: {steps: -1, schedule: {kind: constant, warmup_steps: 5000}}\n", "model.d_model=7"
    )
    assert "train.steps" in told
    assert "model.d_model: 7 is not divisible" in told
    assert "warmup" not in told
    assert TrainConfig().schedule.warmup_steps == 100, "no default was harmed"
    told = complaint(RUN + "train: {schedule: {kind: cosine, warmup_steps: -1}, steps: 5}")
    assert "\n" not in told
    assert vars(TrainConfig().schedule).keys() == {"kind", "warmup_steps", "final_ratio"}


def test_rules_across_sections_have_places() -> None:
    told = complaint(RUN + "  objective: {kind: seq2seq}\ntrain: {batch_tokens: 1000}\n")
    assert "run.yaml:8:15: data.objective.kind: seq2seq needs an encoder_decoder" in told
    assert "run.yaml:6:7: data.sources.0.kind: a text source" in told
    told = complaint(RUN + "train: {batch_tokens: 1000}\n")
    assert told.startswith("train.batch_tokens: 1000 is not a multiple")
    assert "run.yaml:8:9" in told


def test_required_sections() -> None:
    told = complaint("seed: 1")
    assert "run.yaml:1:1: data: expected a section, got nothing; the key is required" in told
    assert (
        "run.yaml:1:1: model: expected a section with kind: one of decoder, encoder_decoder, got nothing"
        in told
    )
    assert "data.sources.0.kind: expected one of text" in complaint(RUN.replace("kind: text", "weight: 1"))


def test_a_section_without_kind_amends_its_default() -> None:
    assert run("train.schedule.warmup_steps=5").train.schedule == TrainConfig().schedule.model_copy(
        update={"warmup_steps": 5}
    )
    kept = SamplesConfig().decoding
    assert run("samples.decoding.seed=3").samples.decoding == kept.model_copy(update={"seed": 3})
    assert run("samples.decoding.strategy=sample").samples.decoding == SampleConfig(), (
        "naming the kind starts anew"
    )


# Overrides


def test_overrides() -> None:
    config = run(
        "train.steps=5",
        "train.steps=20_0",
        "train.steps=200",
        "train.optimizer={beta1: .5, eps: 1e-6}",
        "model.position.kind=alibi",
        "data.sources.0.path=**/*.txt",
        "data.sources.1={kind: jsonl, path: [a, b]}",
        "samples.prompts=['a: b', \"\\n\", no]",
        "generation.stop.0=# = x: y",
        "train.clip_norm=null",
        "name = my run ",
        "data.validation.sources.0.kind=text",
        "data.validation.sources.0.path='010'",
    )
    assert config.train.steps == 200
    assert (config.train.optimizer.beta1, config.train.optimizer.eps) == (0.5, 1e-6)
    assert config.model.position == AlibiPosition()
    assert config.data.sources == (TextSource(path="**/*.txt"), JsonlSource(path=("a", "b")))
    assert config.samples.prompts == ("a: b", "\n", "no")
    assert config.generation.stop == ("# = x: y",)
    assert config.train.clip_norm is None
    assert config.name == "my run"
    assert config.data.validation.sources == (TextSource(path="010"),)


def test_overrides_leave_their_tree_alone() -> None:
    tree = read_yaml(RUN, "f").tree
    before = json.dumps(tree)
    config_from_tree(PretrainConfig, tree, ["model.d_model=128", "data.sources.0.path=x", "train.steps=500"])
    assert json.dumps(tree) == before


def test_changing_a_kind_keeps_the_other_keys() -> None:
    tree = RUN + "train: {schedule: {kind: cosine, final_ratio: 0.5, warmup_steps: 7}}"
    told = complaint(tree, "train.schedule.kind=constant")
    assert "train.schedule.final_ratio: unknown key" in told
    assert "it needs kind: cosine" in told
    config = config_from_text(
        PretrainConfig, tree.replace("final_ratio: 0.5, ", ""), "f", ["train.schedule.kind=constant"]
    )
    assert config.train.schedule == ConstantSchedule(warmup_steps=7)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("modle.d_model=3", "modle: unknown key"),
        ("model.d_modle=3", "did you mean d_model?"),
        ("model.d_model=x", "expected a whole number"),
        ("model.d_model.x=3", "model.d_model is 64, not a section"),
        ("data.sources.2.path=x", "data.sources is a list of 1 and has no 2"),
        ("data.sources.-1.path=x", "has no -1"),
        ("data.sources.path=x", "has no path"),
        ("data.sources.99999999999999999999.path=x", "has no 9999"),
        ("data.sources.0.weight=-1", "expected a number (above 0)"),
        ("train={steps: -1}", "train.steps: expected a whole number"),
        ("train.steps=[1", "brackets"),
        ("train.steps='1", "never closed"),
        ("train.steps=[!!int 1]", "tags"),
        ("train.steps=" + "[" * 5000, "deeper"),
        (".".join(["a"] * 33) + "=1", "deeper"),
        ("seed=" + "9" * 10_000, "finite"),
        (".".join(["a"] * 50_000) + "=1", "deeper"),
        ("=3", "a part of the key is empty"),
        ("train..steps=3", "a part of the key is empty"),
        ("samples.prompts=\x1b[2J", "samples.prompts"),
    ],
)
def test_bad_overrides_name_the_flag(override: str, words: str) -> None:
    told = complaint(RUN, override)
    assert f"--set {override[:8]}" in told
    assert words in told
    assert "run.yaml:" not in told
    assert "\x1b" not in told


def test_override_without_equals_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"--set train\.steps") as caught:
        run("train.steps")
    assert caught.value.exit_code == 2


# Trees that are not from YAML, and need not be trusted


def test_trees_from_elsewhere() -> None:
    tree = {"model": {"kind": "decoder"}, "generation": {"strategy": "greedy", "stop": ("a", "b")}}
    assert config_from_tree(CheckpointConfig, tree).generation.stop == ("a", "b")
    model = config_from_tree(ModelConfig, {"kind": "decoder", "position": {"kind": "rotary"}})
    assert model == DecoderConfig(position=RotaryPosition())
    assert isinstance(
        config_from_tree(DecodingConfig, {"strategy": "beam", "early_stopping": True}), BeamConfig
    )
    with pytest.raises(ConfigError, match="strategy: expected one of greedy, beam, sample, got nothing"):
        config_from_tree(DecodingConfig, {"beam_size": 3}, source="checkpoint")


def test_trees_that_are_hostile() -> None:
    deep: dict[str, Any] = {}
    cyclic: dict[str, Any] = {"run": deep}
    deep["run"] = cyclic
    shared: list[Any] = [1] * 10
    for _ in range(10):
        shared = [shared] * 10
    for bad in (cyclic, {"run": {"a": shared}}, {"run": {"a": object()}}, {"run": {1: 2}}, {"run": {"a": math.nan}},
                {"run": {"a": 10**5000}}, {"run": {"\ud800": 1}}, {"run": b"x"}, [], None, 3):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            config_from_tree(CheckpointConfig, bad, source="checkpoint")  # type: ignore[arg-type]
        assert len(str(caught.value)) < 1000


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["text", "beam", 5]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "path", "a.b", ""]), inner)
    ),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_is_wrong_is_a_config_error(data: st.DataObject) -> None:
    """Any value anywhere in a sound tree either loads or gives an error in plain words."""
    tree = json.loads(json.dumps(read_yaml(MANY, "f").tree))
    for _ in range(data.draw(st.integers(1, 3))):
        node = tree
        while node and data.draw(st.booleans()):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            deeper = [key for key in keys if isinstance(node[key], (dict, list))]
            if not deeper:
                break
            node = node[data.draw(st.sampled_from(deeper))]
        if isinstance(node, dict):
            node[data.draw(st.sampled_from([*node, "kind", "extra"]))] = data.draw(PLAIN)
        else:
            node.append(data.draw(PLAIN))
    with pytest.raises(ConfigError) as caught:
        config_from_tree(PretrainConfig, tree)
    assert "pydantic" not in str(caught.value)
    assert "Input should" not in str(caught.value)


# The way back


AWKWARD = ["no", "yes", "on", "1e-4", "010", "~", "", "null", "Null", ".nan", "-.inf", "true", "<<", "=", "- a", "a: b",
           "#", "a #b", "*x", "&x", "!t", "%", "@", "`", "12:30:45", "2001-01-01", "0o17", "0x1F", "1_000", "0b1", ".5",
           "1e5", "\u2028", "😀", "a\nb", "a\n\nb\n", "  lead", "trail ", "\t", "\r\n", "\x85", "\ufeff", "\x1b", "---",
           "...", "--- a", "? a", "'", '"', "\\", "it's", "{a}", "[", "a,b", "|", ">", "\x7f", "a" * 300, "x y " * 90]  # fmt: skip
TEXT = st.sampled_from(AWKWARD) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8
)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
FULL = TEXT.filter(bool)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False) | st.just(1e-05)
SHARES = st.floats(0, 1, exclude_max=True)
SOURCES = st.builds(
    TextSource, path=TEXT | st.lists(TEXT, min_size=1, max_size=2).map(tuple), weight=POSITIVE
)
SAMPLING = st.builds(
    SampleConfig,
    temperature=st.floats(1e-9, 1e4),
    stop=st.lists(FULL, max_size=2).map(tuple),
    seed=st.integers(0, 2**63 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
)
CHAT = st.builds(
    TextChatFormat,
    user=TEXT.filter(lambda text: "{content}" not in text).map(lambda text: text + "{content}" + text),
    separator=TEXT,
)
CONFIGS = st.builds(
    FinetuneConfig,
    base=st.none() | TEXT,
    freeze=TEXTS,
    dropout=st.none() | SHARES,
    seed=st.integers(0, 2**63 - 1),
    runs_path=TEXT,
    data=st.builds(
        DataConfig,
        sources=st.lists(SOURCES, min_size=1, max_size=2).map(tuple),
        objective=st.builds(ChatObjective, format=CHAT),
    ),
    train=st.builds(
        TrainConfig,
        minutes=st.none() | POSITIVE,
        optimizer=st.builds(AdamWConfig, beta1=SHARES, eps=POSITIVE, weight_decay=POSITIVE),
    ),
    samples=st.builds(SamplesConfig, prompts=TEXTS, decoding=SAMPLING),
)


@settings(max_examples=60, deadline=None)
@given(CONFIGS)
def test_dump_reads_back_equal(config: FinetuneConfig) -> None:
    text = dump_config(config)
    assert config_from_text(FinetuneConfig, text, "dump") == config
    assert config_from_text(FinetuneConfig, text.encode(), "dump") == config
    assert yaml.safe_load(text) == config.plain(), "readers of YAML 1.1 take it for the same"
    assert dump_config(config_from_text(FinetuneConfig, text, "dump")) == text


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_as_key_and_value(text: str) -> None:
    tree = {"a": {text: text}, "b": [text, {"c": text}]}
    assert read_yaml(dump_yaml(tree), "f").tree == tree


def test_dump_is_pleasant_to_read() -> None:
    text = dump_yaml(
        {"a": 1e-05, "b": "text 字 😀", "c": [], "d": ["x"] * 2, "e": None, "f": "long text " * 30}
    )
    assert "b: text 字 😀\n" in text
    assert "c: []\n" in text
    assert "&" not in text
    assert len(text.splitlines()) == 8, "long text is not folded"
    shared = ["x"]
    assert "*" not in dump_yaml({"a": shared, "b": shared})


# Commands and schema


def test_show_gives_what_was_resolved(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    shown = config_command.show(path, ["train.steps=500"])
    assert config_from_text(PretrainConfig, shown, "shown") == run("train.steps=500")
    path.write_text("data: {sources: [{kind: text, path: a}]}")
    config = load_run_config(path, ["freeze=['*']"])
    assert isinstance(config, FinetuneConfig)
    assert config.freeze == ("*",)
    assert isinstance(load_run_config(path, ["model={kind: decoder}"]), PretrainConfig)
    assert isinstance(load_run_config(path, ["model.kind=decoder"]), PretrainConfig)


def test_schema_describes_every_key() -> None:
    found = schema(PretrainConfig)
    assert found["properties"]["source_tokenizer"]["description"].startswith("Of the source")
    assert found["properties"]["name"]["description"].startswith("Of the run's folder"), "inherited"
    decoder = found["$defs"]["DecoderConfig"]["properties"]
    assert decoder["d_ff"]["description"] == "Width of the feed-forward hidden layers; None: 4 * d_model."
    assert decoder["d_model"]["minimum"] == 1
    assert set(decoder) == set(DecoderConfig.model_fields)
    assert json.loads(config_command.schema("finetune"))["title"] == "FinetuneConfig"
    assert {"oneOf", "discriminator"} <= set(schema(ModelConfig))
    with pytest.raises(UsageError, match="pretrain, finetune"):
        config_command.schema("nothing")  # type: ignore[arg-type]


def test_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    code = (
        "import sys, pathlib, txtgen.config; assert 'pydantic' not in sys.modules\n"
        "from txtgen.commands.config import schema, show\n"
        "import txtgen.config.loader; show(pathlib.Path(sys.argv[1])); schema()\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
