"""What the user asks for, the defaults of the model, and those of txtgen become one configuration."""

import pytest

from txtgen.config.decoding import (
    STRATEGIES,
    BeamConfig,
    BeamSampleConfig,
    ContrastiveConfig,
    GreedyConfig,
    SampleConfig,
)
from txtgen.config.decoding_options import option_names, resolve_decoding
from txtgen.config.decoding_values import DryPenalty, Xtc
from txtgen.errors import UsageError


def test_options_come_before_defaults():
    defaults = SampleConfig(temperature=0.7, top_k=9, seed=3, stop=("x",))
    assert resolve_decoding(defaults, {}) == defaults
    expected = SampleConfig(temperature=0.2, top_k=9, seed=3, stop=("x",))
    assert resolve_decoding(defaults, {"temperature": 0.2}) == expected


def test_defaults_of_another_strategy_are_dropped():
    defaults = SampleConfig(temperature=0.7, num_return=4, repetition_penalty=1.2, max_new_tokens=9)
    assert resolve_decoding(defaults, {"strategy": "greedy"}) == GreedyConfig(repetition_penalty=1.2, max_new_tokens=9)
    beam = resolve_decoding(defaults, {"strategy": "beam", "beam_size": 3})
    assert beam == BeamConfig(beam_size=3, repetition_penalty=1.2, max_new_tokens=9)
    drawn = resolve_decoding(SampleConfig(top_k=7), {"strategy": "beam_sample"})
    assert drawn == BeamSampleConfig(top_k=7)
    assert resolve_decoding(SampleConfig(top_k=7), {"strategy": "contrastive"}) == ContrastiveConfig()


@pytest.mark.parametrize(
    ("defaults", "options", "expected"),
    [
        (GreedyConfig(max_new_tokens=9), {"max_length": 5}, GreedyConfig(max_length=5)),
        (GreedyConfig(max_length=5), {"max_new_tokens": 9}, GreedyConfig(max_new_tokens=9)),
        (BeamConfig(num_return=5), {"beam_size": 2}, BeamConfig(beam_size=2)),
        (GreedyConfig(min_new_tokens=8), {"max_new_tokens": 2}, GreedyConfig(max_new_tokens=2)),
        (GreedyConfig(min_length=8), {"max_length": 2}, GreedyConfig(max_length=2)),
        (BeamConfig(beam_size=4, num_groups=2, diversity_penalty=1.0), {"beam_size": 5}, BeamConfig(beam_size=5)),
        (BeamConfig(beam_size=4, num_groups=2, diversity_penalty=1.0), {"num_groups": 1}, BeamConfig(beam_size=4)),
        (
            BeamConfig(beam_size=4, num_groups=2, diversity_penalty=1.0),
            {"num_groups": 4},
            BeamConfig(beam_size=4, num_groups=4, diversity_penalty=1.0),
        ),
        (GreedyConfig(min_length=8), {"min_new_tokens": 2}, GreedyConfig(min_new_tokens=2)),
        (GreedyConfig(presence_penalty=1.0, penalty_window=5), {"presence_penalty": 0.0}, GreedyConfig()),
        (
            SampleConfig(top_k=5, top_p=0.5, seed=3),
            {"samplers": ["temperature", "top_p"]},
            SampleConfig(top_p=0.5, seed=3, samplers=("temperature", "top_p")),
        ),
    ],
)
def test_defaults_give_way_to_what_they_contradict(defaults, options, expected):
    assert resolve_decoding(defaults, options) == expected


def test_python_spellings():
    options = {"strategy": "beam", "early_stopping": True, "stop": "x"}
    assert resolve_decoding(GreedyConfig(), options) == BeamConfig(early_stopping="true", stop=("x",))
    assert resolve_decoding(GreedyConfig(), {"stop": ["a", "b"]}).stop == ("a", "b")
    assert resolve_decoding(GreedyConfig(), {"strategy": "sample", "temperature": 1}).temperature == 1.0
    options = {"bad_words": "x", "bad_words_ids": [[1, 2], (3,)], "forced_eos_token_id": 2, "suppress_tokens": [4, 5]}
    expected = GreedyConfig(
        bad_words=("x",), bad_words_ids=((1, 2), (3,)), forced_eos_token_id=(2,), suppress_tokens=(4, 5)
    )
    assert resolve_decoding(GreedyConfig(), options) == expected
    assert resolve_decoding(GreedyConfig(), expected.model_dump()) == expected
    options = {"sequence_bias": [{"text": "x", "bias": 1}, {"token_ids": [1, 2], "bias": -2.5}]}
    first, second = resolve_decoding(GreedyConfig(), options).sequence_bias
    dry = resolve_decoding(GreedyConfig(), {"dry": {"multiplier": 1, "breakers": "."}}).dry
    assert dry == DryPenalty(multiplier=1.0, breakers=(".",))
    options = {"strategy": "sample", "xtc": {}, "samplers": "xtc"}
    assert resolve_decoding(GreedyConfig(), options) == SampleConfig(xtc=Xtc(), samplers=("xtc",))
    assert (first.text, first.bias, second.token_ids, second.bias) == ("x", 1.0, (1, 2), -2.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.5}, ["temperature", "greedy", "sample"]),
        ({"strategy": "beam", "top_p": 0.5}, ["top_p", "beam", "sample"]),
        ({"strategy": "sample", "beam_size": 2}, ["beam_size", "sample", "use strategy beam"]),
        ({"tempertaure": 0.5}, ["tempertaure", "did you mean temperature"]),
        ({"gibberish_xyz": 1}, ["gibberish_xyz", "typical_p"]),
        ({"strategy": "bema"}, ["'bema'", "greedy, beam, sample, beam_sample"]),
        ({"strategy": ["beam"]}, ["greedy, beam, sample, beam_sample"]),
        ({"strategy": "beam", "beam_size": 0}, ["beam_size", "0", "at least 1"]),
        ({"strategy": "beam", "beam_size": -1}, ["beam_size", "-1", "at least 1"]),
        ({"strategy": "beam", "beam_size": 2, "num_return": 3}, ["num_return", "3", "beam_size 2"]),
        ({"strategy": "beam", "beam_size": 4, "num_groups": 3, "diversity_penalty": 1}, ["num_groups", "beam_size 4"]),
        ({"strategy": "beam", "beam_size": 4, "num_groups": 2}, ["num_groups", "diversity_penalty is 0"]),
        ({"strategy": "beam", "diversity_penalty": 1.0}, ["diversity_penalty", "num_groups is 1"]),
        ({"strategy": "contrastive", "top_k": 0}, ["top_k", "at least 1"]),
        ({"strategy": "contrastive", "penalty_alpha": 1.5}, ["penalty_alpha", "at most 1"]),
        ({"strategy": "contrastive", "num_return": 2}, ["num_return", "one result"]),
        ({"strategy": "contrastive", "temperature": 0.5}, ["temperature", "use strategy sample or beam_sample"]),
        ({"strategy": "beam_sample", "beam_size": 1}, ["beam_size", "use strategy sample"]),
        ({"strategy": "beam_sample", "temperature": 0}, ["temperature", "above 0"]),
        ({"strategy": "beam_sample", "beam_size": 2, "num_return": 3}, ["num_return", "beam_size 2"]),
        ({"strategy": "beam_sample", "top_p": 0.5, "samplers": ["top_k"]}, ["top_p", "leaves it out"]),
        ({"strategy": "beam", "diversity_penalty": -1.0}, ["diversity_penalty", "at least 0"]),
        ({"num_groups": 2}, ["num_groups", "use strategy beam"]),
        ({"strategy": "beam", "early_stopping": "maybe"}, ["early_stopping", "true, false, never"]),
        ({"strategy": "beam", "length_penalty": float("nan")}, ["length_penalty", "nan"]),
        ({"strategy": "beam", "length_penalty": 1e9}, ["length_penalty", "at most 5"]),
        ({"max_new_tokens": -1}, ["max_new_tokens", "-1", "at least 0"]),
        ({"max_new_tokens": 2.5}, ["max_new_tokens", "2.5", "a whole number"]),
        ({"max_new_tokens": True}, ["max_new_tokens", "a whole number", "got true"]),
        ({"max_length": 0}, ["max_length", "0", "at least 1"]),
        ({"max_length": 5, "max_new_tokens": 5}, ["max_length", "max_new_tokens"]),
        ({"min_new_tokens": 6, "max_new_tokens": 5}, ["min_new_tokens", "6", "max_new_tokens 5"]),
        ({"num_return": 2}, ["num_return", "greedy"]),
        ({"repetition_penalty": 0}, ["repetition_penalty", "at least 0.01"]),
        ({"stop": ""}, ["stop", "text that is not empty, got ''"]),
        ({"stop": ["a", 5]}, ["stop", "5"]),
        ({"min_length": 6, "max_length": 5}, ["min_length", "6", "max_length 5"]),
        ({"min_length": 6, "min_new_tokens": 5}, ["min_length", "min_new_tokens (5)"]),
        ({"bad_words": ["a", ""]}, ["bad_words", "not empty"]),
        ({"bad_words_ids": [5]}, ["bad_words_ids.0", "a list", "got 5"]),
        ({"bad_words_ids": [[]]}, ["bad_words_ids", "not empty"]),
        ({"bad_words_ids": [[-1]]}, ["bad_words_ids", "at least 0"]),
        ({"sequence_bias": [{"bias": 1.0}]}, ["sequence_bias.0.token_ids", "text"]),
        ({"sequence_bias": [{"text": "a", "token_ids": [1], "bias": 1.0}]}, ["sequence_bias.0.token_ids"]),
        ({"sequence_bias": [{"text": "a", "bias": float("inf")}]}, ["sequence_bias", "inf"]),
        ({"sequence_bias": [{"text": "", "bias": 1.0}]}, ["sequence_bias"]),
        ({"sequence_bias": {"a": 1.0}}, ["sequence_bias", "a list"]),
        ({"encoder_repetition_penalty": 0}, ["encoder_repetition_penalty", "at least 0.01"]),
        ({"forced_bos_token_id": -1}, ["forced_bos_token_id", "at least 0"]),
        ({"forced_eos_token_id": "x"}, ["forced_eos_token_id", "a whole number"]),
        ({"suppress_tokens": [1.5]}, ["suppress_tokens", "1.5"]),
        ({"exponential_decay_length_penalty": [1, 1.2]}, ["exponential_decay_length_penalty", "a section"]),
        ({"exponential_decay_length_penalty": {"start": 1, "factor": 0.0}}, ["exponential_decay_length_penalty"]),
        ({"renormalize_logits": 1}, ["renormalize_logits", "true or false"]),
        ({"top_h": 0.5}, ["top_h", "greedy", "sample"]),
        ({"strategy": "sample", "top_h": 0.0}, ["top_h", "above 0"]),
        ({"strategy": "sample", "epsilon_cutoff": 1.0}, ["epsilon_cutoff", "below 1"]),
        ({"strategy": "sample", "eta_cutoff": -0.1}, ["eta_cutoff", "at least 0"]),
        ({"presence_penalty": float("nan")}, ["presence_penalty", "nan"]),
        ({"frequency_penalty": 101}, ["frequency_penalty", "at most 100"]),
        ({"penalty_window": 5}, ["penalty_window: is 5", "presence_penalty and frequency_penalty"]),
        ({"dry": {}}, ["dry.multiplier", "got nothing"]),
        ({"dry": {"multiplier": 0}}, ["dry.multiplier", "above 0"]),
        ({"dry": {"multiplier": 1, "base": 0.5}}, ["dry.base", "at least 1"]),
        ({"dry": {"multiplier": 1, "alowed_length": 3}}, ["dry.alowed_length", "did you mean allowed_length"]),
        ({"dry": 0.8}, ["dry", "a section"]),
        ({"top_n_sigma": 1.0}, ["top_n_sigma", "greedy", "sample"]),
        ({"strategy": "sample", "top_n_sigma": 0}, ["top_n_sigma", "above 0"]),
        ({"strategy": "sample", "xtc": {"threshold": 0.6}}, ["xtc.threshold", "at most 0.5"]),
        ({"samplers": ["top_k"]}, ["samplers", "greedy", "sample"]),
        ({"strategy": "sample", "samplers": ["top_k", "hottest"]}, ["hottest", "temperature", "min_p"]),
        ({"strategy": "sample", "samplers": ["top_k", "top_p", "top_k"]}, ["samplers", "top_k more than once"]),
        (
            {"strategy": "sample", "top_k": 5, "temperature": 0.8, "samplers": ["temperature", "top_p"]},
            ["top_k: is set, but samplers (temperature, top_p) leaves it out"],
        ),
        ({"strategy": "sample", "xtc": {}, "samplers": []}, ["xtc", "samplers (none)"]),
        ({"stop_on_loop": {"times": 1}}, ["stop_on_loop.times", "at least 2"]),
        ({"stop_on_loop": True}, ["stop_on_loop", "a section or null"]),
        ({"stop": "\udc80"}, ["stop"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 2**64}, ["seed", "a number of 65 bits"]),
        ({"strategy": "sample", "top_p": 0}, ["top_p", "above 0", "at most 1"]),
        ({"strategy": "sample", "top_p": 1.1}, ["top_p", "1.1", "at most 1"]),
        ({"strategy": "sample", "top_p": float("nan")}, ["top_p", "nan"]),
        ({"strategy": "sample", "top_k": -1}, ["top_k", "at least 0"]),
        ({"strategy": "sample", "min_p": 1.0}, ["min_p", "below 1"]),
        ({"strategy": "sample", "typical_p": -0.1}, ["typical_p", "above 0"]),
        ({"strategy": "sample", "temperature": 0}, ["temperature", "above 0", "strategy greedy"]),
        ({"strategy": "sample", "temperature": float("inf")}, ["temperature", "inf"]),
        ({"strategy": "sample", "temperature": "hot"}, ["temperature", "'hot'", "a number"]),
        (
            {"strategy": "sample", "top_p": 2, "top_k": -3},
            ["2 mistakes", "top_p: expected", "top_k: expected"],
        ),
    ],
)
def test_refuses_in_plain_words(options, words):
    with pytest.raises(UsageError) as caught:
        resolve_decoding(GreedyConfig(), options)
    message = str(caught.value)
    assert not [word for word in words if word not in message], message
    assert "pydantic" not in message
    assert caught.value.where
    assert caught.value.fix


def test_every_option_can_be_described():
    for name in option_names():
        for strategy, config in STRATEGIES.items():
            if name in config.model_fields and name != "strategy":
                with pytest.raises(UsageError, match=name):
                    resolve_decoding(GreedyConfig(), {"strategy": strategy, name: object()})
