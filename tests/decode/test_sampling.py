import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from decode_fakes import Rules, TableModel, batch, random_case, slow_greedy

from txtgen.config.decoding import BeamConfig, GreedyConfig, SampleConfig
from txtgen.config.decoding_values import Xtc
from txtgen.decode import search, search_steps
from txtgen.decode.distribution import shape_distribution
from txtgen.decode.sampling import Draw
from txtgen.errors import DivergedError, UsageError

COMMON = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")


def greedy_case(number):
    model, prompts, rules, limits, config = random_case(number)
    return model, prompts, rules, limits, GreedyConfig(**{key: getattr(config, key) for key in COMMON})


def test_greedy_equals_the_slow_search():
    for number in range(60):
        model, prompts, rules, limits, config = greedy_case(number)
        results = search(model, batch(prompts), config, limits=limits, eos_ids=rules.eos_ids, suppress=rules.suppress)
        for prompt, limit, (found,) in zip(prompts, limits, results, strict=True):
            new = list(found.token_ids)
            assert new == slow_greedy(model, prompt, rules, limit)
            assert found.finish_reason == ("eos" if new[-1] in rules.eos_ids else "length")
            forced = sum(model.log_probs(prompt + new[:place])[token] for place, token in enumerate(new))
            assert found.logprob == found.score == pytest.approx(forced, abs=1e-4)


def test_greedy_takes_the_first_of_equals():
    model = TableModel(6, spread=0.0)
    assert search(model, batch([[3]]), GreedyConfig(), limits=[3])[0][0].token_ids == (0, 0, 0)


def test_finished_rows_leave_the_batch():
    model = TableModel(20, 1)
    search(model, batch([[1, 2], [3], [4, 5, 6]]), GreedyConfig(), limits=[3, 1, 5])
    assert model.rows_fed == [3, 2, 2, 1, 1]


def test_samples_share_one_reading_of_the_prompt():
    model = TableModel(20, 1)
    found = search(model, batch([[1], [2, 3]]), SampleConfig(num_return=3), limits=[2, 2])
    assert [len(results) for results in found] == [3, 3]
    assert model.rows_fed == [2, 6]


@pytest.mark.parametrize(
    "config",
    [
        SampleConfig(),
        SampleConfig(temperature=1.7),
        SampleConfig(top_k=4),
        SampleConfig(top_p=0.7, temperature=0.8),
        SampleConfig(typical_p=0.5),
    ],
)
def test_frequencies_are_the_softmax(config):
    """Pearson's chi-square against the distribution that the filters leave; 3000 streams, one draw each."""
    scores = torch.randn(1, 12, generator=torch.Generator().manual_seed(5))
    scores[0, 3] = -math.inf
    expected = shape_distribution(scores, config).softmax(-1)[0].tolist()
    count = 3000
    draw = Draw(config, [(prompt, sample) for prompt in range(100) for sample in range(30)])
    drawn = Counter(draw(scores.expand(count, -1), range(count)).tolist())
    assert {token for token in range(12) if expected[token] == 0}.isdisjoint(drawn)
    possible = [probability * count for probability in expected if probability > 0]
    statistic = sum((drawn[token] - p * count) ** 2 / (p * count) for token, p in enumerate(expected) if p > 0)
    # The 99.99th percentile, by Wilson and Hilferty's approximation.
    freedom = len(possible) - 1
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-53, 3)])
def test_borders_never_fall_on_a_forbidden_token(number, token):
    draw = Draw(SampleConfig(), [(0, 0)])
    draw.random[0].random = lambda: number
    scores = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    assert draw(scores, [0]).tolist() == [token]


def test_successive_draws_of_a_stream_are_independent():
    draw, scores, count = Draw(SampleConfig(), [(0, 0)]), torch.zeros(1, 2), 4000
    bits = [int(draw(scores, [0])) for _ in range(count)]
    pairs = Counter(pairwise(bits))
    assert all(
        abs(pairs[pair] - count / 4) < 4 * math.sqrt(count * 3 / 16) for pair in [(0, 0), (0, 1), (1, 0), (1, 1)]
    )


def test_xtc_acts_with_its_probability():
    """What is drawn is a mixture of the distribution and of what exclusion leaves."""
    scores = torch.randn(1, 12, generator=torch.Generator().manual_seed(5))
    config = SampleConfig(xtc=Xtc(probability=0.3, threshold=0.1))
    sure = shape_distribution(scores, config, torch.zeros(1, dtype=torch.float64)).softmax(-1)[0]
    never = shape_distribution(scores, config).softmax(-1)[0]
    expected, count = (0.3 * sure + 0.7 * never).tolist(), 4000
    draw = Draw(config, [(0, sample) for sample in range(count)])
    drawn = Counter(draw(scores.expand(count, -1), range(count)).tolist())
    for token, share in enumerate(expected):
        assert abs(drawn[token] - share * count) < 4.5 * math.sqrt(count * share * (1 - share) + 1)


@pytest.mark.parametrize("xtc", [None, Xtc(probability=0.5, threshold=0.1)])
def test_samples_do_not_depend_on_the_batch(xtc):
    model = TableModel(30, 3, eos_bonus={1: 1.0})
    config = SampleConfig(seed=7, num_return=3, temperature=1.5, xtc=xtc)
    prompts = [[1, 2], [3], [4, 5, 6], [1, 2]]

    def run(order, config=config, first=0, limit=12):
        chosen = batch([prompts[index] for index in order])
        limits = [limit] * len(order)
        return search(model, chosen, config, limits=limits, eos_ids=(1,), prompt_indices=order, first_sample=first)

    together = run([0, 1, 2, 3])
    assert run([3, 1, 0, 2]) == [together[index] for index in (3, 1, 0, 2)]
    assert [run([index])[0] for index in range(4)] == together
    one = config.model_copy(update={"num_return": 1})
    assert [[run([index], one, first)[0][0] for first in range(3)] for index in range(4)] == together
    assert together[0] != together[3], "the number of the prompt matters, not only its text"
    assert len({found.token_ids for found in together[0]}) > 1
    assert run([0], config.model_copy(update={"seed": 8})) != [together[0]]
    shorter = run([0, 1, 2, 3], limit=5)
    assert [[f.token_ids[:5] for f in found] for found in together] == [
        [f.token_ids for f in found] for found in shorter
    ]


def test_tokens_are_told_as_they_are_decided():
    model, config = TableModel(30, 3, eos_bonus={1: 2.0}), SampleConfig(seed=1, num_return=2)
    told: dict[int, list[int]] = {}
    arguments = {"limits": [8, 5, 3], "eos_ids": (1,)}
    found = search(
        model,
        batch([[1], [2], [3]]),
        config,
        on_token=lambda result, token: told.setdefault(result, []).append(token),
        **arguments,
    )
    assert [tuple(told[result]) for result in range(6)] == [h.token_ids for results in found for h in results]
    steps = search_steps(model, batch([[1], [2], [3]]), config, **arguments)
    assert len(next(steps)) == 6
    assert not torch.is_inference_mode_enabled(), "not even between two steps"


def test_a_stop_string_ends_a_sequence():
    def stop(row, token_ids):
        return sum(token_ids) % 7 == row

    found = search(TableModel(30, 3), batch([[1], [2], [3]]), GreedyConfig(), limits=[30] * 3, stop=stop)
    for row, (hypothesis,) in enumerate(found):
        assert hypothesis.finish_reason == "stop"
        length = len(hypothesis.token_ids)
        ends = [end for end in range(1, length + 1) if stop(row, hypothesis.token_ids[:end])]
        assert ends == [length]


def test_the_end_token_comes_before_stop_and_length():
    model = TableModel(4, never=(0, 1, 3))
    for stop, eos_ids, reason in [(True, (2,), "eos"), (True, (), "stop"), (False, (), "length")]:
        found = search(
            model,
            batch([[2]]),
            GreedyConfig(),
            limits=[1],
            eos_ids=eos_ids,
            stop=lambda row, ids, stop=stop: stop,
        )
        assert found[0][0].finish_reason == reason


@pytest.mark.parametrize(
    ("config", "count"), [(GreedyConfig(), 1), (BeamConfig(num_return=3), 1), (SampleConfig(num_return=3), 3)]
)
def test_no_new_tokens_give_empty_hypotheses(config, count):
    model = TableModel(9)
    found = search(model, batch([[1], [2]]), config, limits=[0, 0])
    assert [[(h.token_ids, h.logprob, h.finish_reason) for h in results] for results in found] == [
        [((), 0.0, "length")] * count
    ] * 2
    assert not model.rows_fed


@pytest.mark.parametrize("config", [GreedyConfig(), SampleConfig()])
def test_refuses_what_cannot_be_drawn_from(config):
    model = TableModel(4)
    forbidding = config.model_copy(update={"no_repeat_ngram_size": 1, "min_new_tokens": 9})
    with pytest.raises(UsageError, match="every token is forbidden"):
        search(model, batch([[1]]), forbidding, limits=[9], eos_ids=(0,))
    model.last[2] = math.nan
    with pytest.raises(DivergedError):
        search(model, batch([[2]]), config, limits=[1])


def test_rules_of_the_slow_search_do_something():
    """The comparisons above would be empty if the filters never mattered."""
    changed = sum(
        slow_greedy(model, prompts[0], rules, 9) != slow_greedy(model, prompts[0], Rules(rules.eos_ids), 9)
        for model, prompts, rules, _, _ in map(random_case, range(40))
    )
    assert changed > 20
