"""Validation: all mistakes at once, each in plain words and with its place, whatever the tree."""

import json
import math
import time
from typing import Annotated, Any

import pytest
from config_texts import MANY, RUN, complaint, run
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from txtgen.config.base import Config
from txtgen.config.checkpoint import CheckpointConfig, inherited
from txtgen.config.decoding import SampleConfig
from txtgen.config.loader import config_from_text, config_from_tree
from txtgen.config.runs import PretrainConfig, SamplesConfig
from txtgen.config.sources import TextSource
from txtgen.config.train import TrainConfig
from txtgen.config.validation import NAMES_ELSEWHERE
from txtgen.config.yaml import read_yaml
from txtgen.errors import ConfigError

# fmt: off
NOT_COUNTS = {
    '"8"': "'8'", "true": "true", "1.5": "1.5", "null": "null", "[8, 9]": "[8, 9]", "{a: 1}": "a section",
    ".nan": ".nan", "-.inf": "-.inf", "1e999": ".inf", "010": "'010'", "no": "'no'", "1e3": "1000.0", "0": "0",
    "-3": "-3", "99999999999": "99999999999", "1" + "0" * 30: "a number of 100 bits", "9" * 5000: ".inf",
}
# fmt: on


@pytest.mark.parametrize(("value", "got"), NOT_COUNTS.items())
def test_wrong_type_for_a_whole_number(value: str, got: str) -> None:
    told = complaint(RUN + f"seed: 1\ntrain:\n  log_every: {value}\n")
    assert "run.yaml:10:3" in told
    assert told.startswith("train.log_every: expected a ")
    assert f"got {got}" in told


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("{causal_lm: 1, prefixlm: 1}", "data.objective.parts.1.kind: expected one of causal_lm, prefix_lm, "),
        ("{causal_lm: 1, prefixlm: 1}", "did you mean prefix_lm?"),
        ("{causal_lm: {rate: 1}, prefix_lm: 1}", "data.objective.parts.0.rate: unknown key"),
        ("{causallm: 1}", "data.objective.causallm: unknown key"),
    ],
)
def test_a_mixture_in_short_is_judged_part_by_part(objective: str, words: str) -> None:
    assert words in complaint(RUN.replace("data:\n", f"data:\n  objective: {objective}\n", 1))


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
        ("train: {schedule: {kind: 3}}", "expected one of cosine, trapezoid, inverse_sqrt, constant, got 3"),
        ("train: {schedule: {kind: [cosine]}}", "train.schedule.kind"),
        (
            "train: {steps: 100, schedule: {kind: trapezoid, warmup_steps: 60}}",
            "train.schedule.warmup_steps: is 60, but the cooldown begins at step 50",
        ),
        ("train: {learning_rate: 1}", "it belongs at train.optimizer.learning_rate"),
        ("train: {dtype: float16}", "expected one of auto, float32, bfloat16, got 'float16'"),
        ("d_model: 8", "it belongs at model.d_model"),
        ("generation: {strategy: greedy, temperature: 1}", "it needs strategy: sample"),
        (
            "samples: {decoding: {strategy: sample, speculation: {kind: draft}}}",
            "samples.decoding.speculation: draft needs a second model",
        ),
        (
            "generation: {strategy: greedy, speculation: {kind: draft}}",
            "generation.speculation: draft needs a second model",
        ),
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
    good = config_from_text(PretrainConfig, RUN.replace("corpus.txt", "[a, b]"), "f")
    assert good.data.sources == (TextSource(path=("a", "b")),)


class Lists(Config):
    sizes: Annotated[tuple[int, ...], Field(min_length=2)] = (1, 2)
    ends: tuple[int, int] = (0, 0)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"sizes": [1]}, "sizes: expected a list of at least 2, each item a whole number, got [1]"),
        ({"sizes": []}, "sizes: expected a list of at least 2, each item a whole number, got an empty list"),
        ({"sizes": ["a", 1]}, "sizes.0: expected a whole number, got 'a'"),
        ({"ends": [1]}, "ends.1: expected a whole number, got nothing"),
        ({"ends": [1, 2, 3]}, "ends: expected a list"),
    ],
)
def test_a_list_of_another_length_is_one_mistake(tree, told) -> None:
    with pytest.raises(ConfigError) as raised:
        config_from_tree(Lists, tree)
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)


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
    told = complaint(RUN + "train: {steps: -1, schedule: {kind: constant, warmup_steps: 5000}}\n", "model.d_model=7")
    assert "train.steps" in told
    assert "model.d_model: 7 is not divisible" in told
    assert "warmup" not in told
    assert TrainConfig().schedule.warmup_steps is None, "no default was harmed"
    told = complaint(RUN + "train: {schedule: {kind: cosine, warmup_steps: -1}, steps: 5}")
    assert "\n" not in told
    told = complaint(RUN + "train: {schedule: {kind: linear, warmup_steps: .nan}, micro_batch_tokens: 9999}")
    assert [line.split(": ")[1] for line in told.splitlines()[1:]] == [
        "train.schedule.kind",
        "train.schedule.warmup_steps",
    ], "the first rule of the section needs the schedule, so its other rules stay silent"
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
    assert "run.yaml:1:1: model: expected a section with kind: one of decoder, encoder_decoder, got nothing" in told
    assert "data.sources.0.kind: expected one of text" in complaint(RUN.replace("kind: text", "weight: 1"))


def test_a_section_without_kind_amends_its_default() -> None:
    assert run("train.schedule.warmup_steps=5").train.schedule == TrainConfig().schedule.model_copy(
        update={"warmup_steps": 5}
    )
    kept = SamplesConfig().decoding
    assert run("samples.decoding.seed=3").samples.decoding == kept.model_copy(update={"seed": 3})
    assert run("samples.decoding.strategy=sample").samples.decoding == SampleConfig(), "naming the kind starts anew"


def test_thousands_of_mistakes_are_counted_and_cut() -> None:
    """Hints are dear, and nobody reads a thousand lines."""
    for entry in ("k{0}: 1", "k{0}: .nan"):
        began = time.process_time()
        told = complaint(RUN + "\n".join(entry.format(number) for number in range(5_000)))
        assert time.process_time() - began < 10
        assert told.startswith("5000 mistakes in run.yaml:\n  run.yaml:8:1: k0: unknown key\n")
        assert told.endswith("\n  and 4950 more")


def test_all_complaints_about_one_key_are_told() -> None:
    told = complaint(RUN + "tokenizer:\n  control_symbols: [plain, '<a>', '<a>', two words]\n")
    assert told.count("run.yaml:9:3: tokenizer.control_symbols") >= 2


def test_no_half_characters() -> None:
    assert "samples.prompts.0" in complaint(RUN + 'samples: {prompts: ["\\ud83d"]}')
    assert "samples.prompts.0" in complaint(RUN + 'samples: {prompts: ["a\\0b"]}')


def test_trees_that_are_hostile() -> None:
    deep: dict[str, Any] = {}
    cyclic: dict[str, Any] = {"run": deep}
    deep["run"] = cyclic
    shared: list[Any] = [1] * 10
    for _ in range(10):
        shared = [shared] * 10
    hostile: list[Any] = [
        cyclic,
        {"run": {"a": shared}},
        {"run": {"a": object()}},
        {"run": {1: 2}},
        {"run": {"a": math.nan}},
        {"run": {"a": 10**5000}},
        {"run": {"\ud800": 1}},
        {"run": b"x"},
        [],
        None,
        3,
    ]
    for bad in hostile:
        with pytest.raises(ConfigError) as caught:
            config_from_tree(CheckpointConfig, bad, source="checkpoint")
        assert len(str(caught.value)) < 1000


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["text", "beam", 5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "path", "a.b", ""]), inner),
    max_leaves=4,
)


@settings(max_examples=30, deadline=None)
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


def test_a_base_model_whose_defaults_need_a_draft_is_refused_in_time() -> None:
    tree = {"model": {"kind": "decoder"}, "generation": {"strategy": "sample", "speculation": {"kind": "draft"}}}
    base, config = config_from_tree(CheckpointConfig, tree), run()
    with pytest.raises(ConfigError, match=r"ask for a draft model.*generation\.speculation"):
        inherited(config, base)
    own = config.model_copy(update={"generation": SampleConfig()})
    assert inherited(own, base).generation == SampleConfig()


@pytest.mark.parametrize(("theirs", "ours"), NAMES_ELSEWHERE.items())
def test_names_of_other_tools_lead_to_keys_of_ours(theirs: str, ours: str) -> None:
    assert f"{theirs}: unknown key" in (told := complaint(RUN + f"{theirs}: 1"))
    assert f"here it is {ours}" in told
