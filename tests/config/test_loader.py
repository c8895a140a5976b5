"""The loader: files, trees and overrides, the way back to YAML, and `txtgen config`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from config_texts import AWKWARD, RUN, complaint, run
from hypothesis import given, settings
from hypothesis import strategies as st

from txtgen.commands import config as config_command
from txtgen.config.chat_formats import TemplateChatFormat, TextChatFormat
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.data import DataConfig
from txtgen.config.decoding import BeamConfig, DecodingConfig, SampleConfig
from txtgen.config.finetuning import FreezeConfig
from txtgen.config.loader import config_from_text, config_from_tree, dump_config, load_run_config
from txtgen.config.model import AlibiPosition, DecoderConfig, ModelConfig, RotaryPosition
from txtgen.config.objectives import ChatObjective
from txtgen.config.runs import FinetuneConfig, PretrainConfig, SamplesConfig
from txtgen.config.sources import JsonlSource, TextSource
from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
from txtgen.config.yaml import read_yaml
from txtgen.errors import ConfigError, UsageError


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
        ("train.lr=1", "here it is train.optimizer.learning_rate"),
        ("hidden_size=1", "here it is model.d_model"),
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


def test_trees_from_elsewhere() -> None:
    tree = {"model": {"kind": "decoder"}, "generation": {"strategy": "greedy", "stop": ("a", "b")}}
    assert config_from_tree(CheckpointConfig, tree).generation.stop == ("a", "b")
    model = config_from_tree(ModelConfig, {"kind": "decoder", "position": {"kind": "rotary"}})
    assert model == DecoderConfig(position=RotaryPosition())
    assert isinstance(config_from_tree(DecodingConfig, {"strategy": "beam", "early_stopping": True}), BeamConfig)
    with pytest.raises(ConfigError, match=r"strategy: expected one of greedy, beam, .*, got nothing"):
        config_from_tree(DecodingConfig, {"beam_size": 3}, source="checkpoint")


TEXT = st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
FULL = TEXT.filter(bool)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False) | st.just(1e-05)
SHARES = st.floats(0, 1, exclude_max=True)
SOURCES = st.builds(TextSource, path=TEXT | st.lists(TEXT, min_size=1, max_size=2).map(tuple), weight=POSITIVE)
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
CHAT |= st.builds(TemplateChatFormat, template=FULL, bos_token=st.none() | FULL, eos_token=st.none() | FULL)
CONFIGS = st.builds(
    FinetuneConfig,
    base=st.none() | TEXT,
    freeze=st.builds(FreezeConfig, patterns=st.lists(FULL, max_size=3).map(tuple), embeddings=st.booleans()),
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


@settings(max_examples=20, deadline=None)
@given(CONFIGS)
def test_dump_reads_back_equal(config: FinetuneConfig) -> None:
    text = dump_config(config)
    assert config_from_text(FinetuneConfig, text, "dump") == config
    assert config_from_text(FinetuneConfig, text.encode(), "dump") == config
    assert yaml.safe_load(text) == config.plain(), "readers of YAML 1.1 take it for the same"
    assert dump_config(config_from_text(FinetuneConfig, text, "dump")) == text


def test_show_gives_what_was_resolved(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    shown = config_command.show(path, ["train.steps=500"])
    assert config_from_text(PretrainConfig, shown, "shown") == run("train.steps=500")
    path.write_text("data: {sources: [{kind: text, path: a}]}")
    config = load_run_config(path, ["freeze=['*']"])
    assert isinstance(config, FinetuneConfig)
    assert config.freeze == FreezeConfig(patterns=("*",))
    assert isinstance(load_run_config(path, ["model={kind: decoder}"]), PretrainConfig)
    assert isinstance(load_run_config(path, ["model.kind=decoder"]), PretrainConfig)


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
