"""The configuration classes themselves: what they refuse, and that their advice is good."""

import re
import time
from typing import Any

import pytest
from pydantic import ValidationError

from txtgen.config.base import Config
from txtgen.config.chat_formats import TextChatFormat, TokensChatFormat
from txtgen.config.checkpoint import chat_format
from txtgen.config.data import DataConfig, ValidationConfig
from txtgen.config.decoding import BeamConfig, GreedyConfig, SampleConfig
from txtgen.config.model import (
    DecoderConfig,
    EncoderDecoderConfig,
    RotaryPosition,
    SinusoidalPosition,
    T5RelativePosition,
)
from txtgen.config.objectives import CausalLmObjective, ChatObjective, Seq2SeqObjective
from txtgen.config.runs import FinetuneConfig, PretrainConfig
from txtgen.config.shape import all_sections
from txtgen.config.sources import ChatSource, ParallelSource, TextSource, TsvSource
from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig

TEXTS = DataConfig(sources=(TextSource(path="a"),))
PAIRS = DataConfig(sources=(ParallelSource(source_path="a", target_path="b"),), objective=Seq2SeqObjective())
CHATS = DataConfig(sources=(ChatSource(path="a"),), objective=ChatObjective())


def problems(make: Any, **values: Any) -> dict[str, str]:
    """The complaints about a combination of values, by key."""
    with pytest.raises(ValidationError) as caught:
        make(**values)
    (error,) = caught.value.errors()
    assert error["type"] == "problems"
    return dict(error["ctx"]["problems"])


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (DecoderConfig, {"d_model": 0}),
        (DecoderConfig, {"d_model": -8}),
        (DecoderConfig, {"d_model": "8"}),
        (DecoderConfig, {"d_model": True}),
        (DecoderConfig, {"d_model": 8.0}),
        (DecoderConfig, {"num_layers": 0}),
        (DecoderConfig, {"max_length": 0}),
        (DecoderConfig, {"dropout": 1.0}),
        (DecoderConfig, {"dropout": float("nan")}),
        (DecoderConfig, {"norm_eps": 0.0}),
        (DecoderConfig, {"d_modle": 8}),
        (TrainConfig, {"steps": -1}),
        (TrainConfig, {"minutes": float("inf")}),
        (TrainConfig, {"keep_last": 0}),
        (AdamWConfig, {"learning_rate": 0.0}),
        (AdamWConfig, {"beta1": 1.0}),
        (AdamWConfig, {"beta2": 1.0}),
        (SampleConfig, {"temperature": 0.0}),
        (SampleConfig, {"top_p": 0.0}),
        (SampleConfig, {"stop": ("",)}),
        (DataConfig, {"sources": ()}),
        (TextSource, {"path": ()}),
        (TextSource, {"path": "a", "weight": 0.0}),
        (TsvSource, {"path": "a", "source_column": -1}),
        *((FinetuneConfig, {"data": TEXTS, "name": name}) for name in ("", ".", "..", "a/b", "a\\b", "a\0", "a" * 101)),
    ],
)
def test_refused_values(make: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**values)
    assert "problems" not in [error["type"] for error in caught.value.errors()]


@pytest.mark.parametrize(
    ("make", "values", "keys"),
    [
        (DecoderConfig, {"d_model": 10, "num_heads": 4, "num_kv_heads": 3}, ["d_model", "num_kv_heads"]),
        (DecoderConfig, {"head_dim": 3, "position": RotaryPosition()}, ["position"]),
        (DecoderConfig, {"d_model": 9, "num_heads": 3, "position": SinusoidalPosition()}, ["position"]),
        (EncoderDecoderConfig, {"vocab_size": 10, "source_vocab_size": 20}, ["share_embeddings"]),
        (T5RelativePosition, {"num_buckets": 6, "max_distance": 8}, ["num_buckets"]),
        (T5RelativePosition, {"num_buckets": 32, "max_distance": 16}, ["max_distance"]),
        (TsvSource, {"path": "a", "source_column": 1}, ["target_column"]),
        (TextChatFormat, {"user": "no place", "assistant": "{content}{content}"}, ["user", "assistant"]),
        (ValidationConfig, {"sources": (TextSource(path="a"),), "fraction": 0.1}, ["fraction"]),
        (DataConfig, {"sources": (TextSource(path="a", weight=1.0), TextSource(path="b"))}, ["sources"]),
        (SentencePieceConfig, {"vocab_size": 100}, ["vocab_size"]),
        (TrainConfig, {"steps": 5, "schedule": ConstantSchedule(warmup_steps=6)}, ["schedule.warmup_steps"]),
        (GreedyConfig, {"num_return": 2}, ["num_return"]),
        (BeamConfig, {"num_return": 6}, ["num_return"]),
        (SampleConfig, {"max_new_tokens": 3, "min_new_tokens": 4}, ["min_new_tokens"]),
        (PretrainConfig, {"model": DecoderConfig(), "data": PAIRS}, ["data.objective.kind"]),
        (PretrainConfig, {"model": EncoderDecoderConfig(), "data": CHATS}, ["data.objective.kind"]),
        (
            PretrainConfig,
            {"model": DecoderConfig(), "data": TEXTS, "train": TrainConfig(batch_tokens=1000)},
            ["train.batch_tokens"],
        ),
        (
            PretrainConfig,
            {"model": DecoderConfig(), "data": TEXTS, "source_tokenizer": SentencePieceConfig()},
            ["source_tokenizer"],
        ),
    ],
)
def test_refused_combinations(make: Any, values: dict[str, Any], keys: list[str]) -> None:
    assert list(problems(make, **values)) == keys


def test_advice_is_good() -> None:
    """The value that a complaint proposes is accepted."""
    for d_model, heads in ((10, 4), (1, 7), (100, 12), (5, 2)):
        told = problems(DecoderConfig, d_model=d_model, num_heads=heads, head_dim=None)["d_model"]
        (near,) = re.findall(r"try (\d+)", told)
        assert DecoderConfig(d_model=int(near), num_heads=heads, position=T5RelativePosition()).head_width >= 1
    told = problems(DecoderConfig, d_model=120, num_heads=12, num_kv_heads=5)["num_kv_heads"]
    assert "[1, 2, 3, 4, 6, 12]" in told
    batch = TrainConfig(batch_tokens=1000)
    told = problems(PretrainConfig, model=DecoderConfig(max_length=300), data=TEXTS, train=batch)["train.batch_tokens"]
    (near,) = re.findall(r"try (\d+)", told)
    PretrainConfig(model=DecoderConfig(max_length=300), data=TEXTS, train=TrainConfig(batch_tokens=int(near)))


def test_absurd_sizes_are_judged_at_once() -> None:
    began = time.process_time()
    told = problems(DecoderConfig, d_model=2**31 - 1, num_heads=2**31 - 1, num_kv_heads=2)
    assert "try one of [1, 2147483647]" in told["num_kv_heads"]
    assert time.process_time() - began < 2


def test_frozen_and_strict() -> None:
    config = TrainConfig()
    with pytest.raises(ValidationError):
        config.steps = 3  # type: ignore[misc]
    assert hash(config) == hash(TrainConfig())


def test_every_default_is_valid_and_plain() -> None:
    """Defaults are not validated when a class is made, so each is here; what is plain loads again."""
    for kind in (PretrainConfig, FinetuneConfig):
        for section in all_sections(kind):
            required = [name for name, field in section.model_fields.items() if field.is_required()]
            if not required:
                made = section()
                assert section.model_validate_json(made.model_dump_json()) == made
                assert list(made.problems()) == []


def test_names_follow_the_rules() -> None:
    """Every key is plain lower case, and every section says what it is."""
    for section in {*all_sections(PretrainConfig), *all_sections(FinetuneConfig)}:
        assert section.__doc__ not in (None, Config.__doc__)
        for name in section.model_fields:
            assert re.fullmatch(r"[a-z][a-z0-9_]*", name)


def test_complaints_may_hold_braces() -> None:
    with pytest.raises(ValidationError, match=r"must hold \{content\} exactly once"):
        TextChatFormat(user="x")


@pytest.mark.parametrize(("value", "word"), [(True, "true"), (False, "false"), ("never", "never")])
def test_early_stopping_takes_yaml_truth(value: Any, word: str) -> None:
    config = BeamConfig(early_stopping=value)
    assert config.early_stopping == word
    assert BeamConfig.model_validate_json(config.model_dump_json()) == config


def test_chat_format() -> None:
    written = TextChatFormat()
    assert chat_format(DataConfig(sources=CHATS.sources, objective=ChatObjective(format=written))) == written
    assert chat_format(PAIRS) is None
    seq2seq = DataConfig(sources=CHATS.sources, objective=Seq2SeqObjective())
    assert chat_format(seq2seq) == TokensChatFormat()
    assert chat_format(TEXTS) is None
    assert TEXTS.objective == CausalLmObjective()
