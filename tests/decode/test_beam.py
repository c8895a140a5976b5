import itertools
import math
import random

import pytest
import torch
from decode_fakes import Rules, TableModel, batch, random_case, slow_beam

from txtgen.config.decoding import BeamConfig, GreedyConfig
from txtgen.decode import search, search_steps
from txtgen.errors import DivergedError, UsageError


def run(model, prompts, rules: Rules, limits, config):
    return search(model, batch(prompts), config, limits=limits, eos_ids=rules.eos_ids, suppress=rules.suppress)


@pytest.mark.parametrize("block", range(20))
def test_equals_the_slow_search(block):
    for number in range(block * 12, block * 12 + 12):
        model, prompts, rules, limits, config = random_case(number)
        results = run(model, prompts, rules, limits, config)
        for prompt, limit, found in zip(prompts, limits, results, strict=True):
            slow = slow_beam(
                model, prompt, rules, limit, config.beam_size, config.length_penalty, config.early_stopping
            )
            expected = slow[: config.num_return]
            assert [list(h.token_ids) for h in found] == [new for _, new in expected], number
            assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("block", range(6))
def test_groups_equal_the_slow_search(block):
    apart = 0
    for number in range(block * 12, block * 12 + 12):
        model, prompts, rules, limits, config = random_case(number)
        choice = random.Random(number)
        groups = choice.choice([2, 2, 3, 4])
        beams = groups * choice.choice([1, 1, 2, 3])
        penalty = choice.choice([0.2, 1.0, 4.0])
        config = config.model_copy(
            update={"beam_size": beams, "num_return": beams, "num_groups": groups, "diversity_penalty": penalty}
        )
        plain = config.model_copy(update={"num_groups": 1, "diversity_penalty": 0.0})
        for prompt, limit, found, one in zip(
            prompts,
            limits,
            run(model, prompts, rules, limits, config),
            run(model, prompts, rules, limits, plain),
            strict=True,
        ):
            expected = slow_beam(
                model,
                prompt,
                rules,
                limit,
                beams,
                config.length_penalty,
                config.early_stopping,
                groups,
                penalty,
            )
            # The same sequence may be found by several groups, at scores that differ by rounding alone.
            assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-4), number
            assert sorted(list(h.token_ids) for h in found) == sorted(new for _, new in expected), number
            apart += len({h.token_ids[0] for h in found}) > len({h.token_ids[0] for h in one})
    assert apart > 3, "groups begin differently"


def test_groups_in_a_batch_as_alone():
    for number in range(15):
        model, prompts, rules, limits, config = random_case(number)
        config = config.model_copy(update={"beam_size": 6, "num_groups": 3, "diversity_penalty": 0.7})
        alone = [run(model, [p], rules, [n], config)[0] for p, n in zip(prompts, limits, strict=True)]
        assert run(model, prompts, rules, limits, config) == alone


@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_told_as_decided_makes_up_the_results(groups):
    for number in range(60):
        model, prompts, rules, limits, config = random_case(number)
        if groups > 1:
            more = {"beam_size": 4, "num_return": 2, "num_groups": 2, "diversity_penalty": 0.3}
            config = config.model_copy(update=more)
        told: dict[int, list[int]] = {}
        found = search(
            model,
            batch(prompts),
            config,
            limits=limits,
            eos_ids=rules.eos_ids,
            suppress=rules.suppress,
            on_token=lambda result, token, told=told: told.setdefault(result, []).append(token),
        )
        assert told == {
            prompt * config.num_return + place: list(hypothesis.token_ids)
            for prompt, hypotheses in enumerate(found)
            for place, hypothesis in enumerate(hypotheses)
        }


def test_a_sure_beginning_is_told_before_the_end():
    """One token is all but certain at each of three places, so that soon every beam begins with these."""
    model = TableModel(12, 0, spread=0.1)
    for place in range(1, 4):
        model.place[place] = -50.0
        model.place[place, place + 5] = 50.0
    steps = search_steps(model, batch([[1]]), BeamConfig(beam_size=3), limits=[9])
    decided = [[token for _, token in next(steps)] for _ in range(6)]
    assert not torch.is_inference_mode_enabled()
    assert not decided[0], "the other beams began otherwise"
    assert [token for step in decided for token in step][:3] == [6, 7, 8]


def test_never_does_not_hope_for_length_that_is_punished():
    for number in range(40):
        model = TableModel(24, number, 3.0, {1: 3.0})
        config = BeamConfig(beam_size=2, num_return=2, early_stopping="never", length_penalty=-0.5)
        found = run(model, [[3]], Rules((1,)), [12], config)[0]
        expected = slow_beam(model, [3], Rules((1,)), 12, 2, -0.5, "never")
        assert [list(h.token_ids) for h in found] == [new for _, new in expected]


def test_reports_plain_logprob_and_reason():
    for number in range(40):
        model, prompts, rules, limits, config = random_case(number)
        for prompt, limit, found in zip(prompts, limits, run(model, prompts, rules, limits, config), strict=True):
            for hypothesis in found:
                new = list(hypothesis.token_ids)
                forced = sum(model.log_probs(prompt + new[:place])[token] for place, token in enumerate(new))
                assert hypothesis.logprob == pytest.approx(forced, abs=1e-4)
                assert hypothesis.finish_reason == ("eos" if new[-1] in rules.eos_ids else "length")
                assert len(new) == limit or hypothesis.finish_reason == "eos"
                if rules == Rules(rules.eos_ids):
                    assert hypothesis.score == pytest.approx(forced / len(new) ** config.length_penalty, abs=1e-4)


def test_in_a_batch_as_alone():
    for number in range(30):
        model, prompts, rules, limits, config = random_case(number)
        alone = [run(model, [p], rules, [n], config)[0] for p, n in zip(prompts, limits, strict=True)]
        assert run(model, prompts, rules, limits, config) == alone


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_searches_exhaustively(seed):
    """Five words that can be said, the first of them the end; the others only make room for beams."""
    words, limit = range(5), 4
    model = TableModel(64, seed, spread=1.0, never=tuple(range(5, 64)))
    config = BeamConfig(beam_size=64, num_return=64, length_penalty=0.0, early_stopping="never")
    found = run(model, [[3, 1]], Rules(eos_ids=(0,)), [limit], config)[0]

    def total(new):
        return sum(model.log_probs([3, 1, *new[:place]])[token] for place, token in enumerate(new))

    complete = [
        list(new)
        for length in range(1, limit + 1)
        for new in itertools.product(words, repeat=length)
        if 0 not in new[:-1] and (new[-1] == 0 or length == limit)
    ]
    best = sorted(complete, key=total, reverse=True)[:64]
    assert [list(hypothesis.token_ids) for hypothesis in found] == best


def test_one_beam_is_greedy_with_a_beam_score():
    for number in range(30):
        model, prompts, rules, limits, config = random_case(number)
        one = config.model_copy(update={"beam_size": 1, "num_return": 1})
        greedy = GreedyConfig(
            **{key: getattr(config, key) for key in ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")}
        )
        for beam, path in zip(
            run(model, prompts, rules, limits, one), run(model, prompts, rules, limits, greedy), strict=True
        ):
            assert beam[0].token_ids == path[0].token_ids
            assert beam[0].logprob == path[0].logprob
            assert beam[0].score == pytest.approx(path[0].logprob / len(path[0].token_ids) ** config.length_penalty)


def test_reads_prompts_once_and_drops_prompts_that_are_done():
    model = TableModel(20, 1)
    results = run(model, [[1, 2], [3], [4, 5, 6]], Rules(), [3, 1, 5], BeamConfig(beam_size=4))
    assert [len(found[0].token_ids) for found in results] == [3, 1, 5]
    assert model.rows_fed == [3, 8, 8, 4, 4]


def test_fewer_finished_than_asked_for_are_not_filled_up():
    # After the first token only the end can follow, so that a single sequence exists.
    model = TableModel(10, 0, never=tuple(range(2, 10)))
    model.last[0], model.last[1] = -math.inf, -math.inf
    model.last[0, 1], model.last[1, 0] = 0.0, 0.0
    found = run(model, [[0]], Rules(eos_ids=(0,)), [5], BeamConfig(beam_size=3, num_return=3))[0]
    assert [hypothesis.token_ids for hypothesis in found] == [(1, 0)]


def test_a_stop_string_ends_a_hypothesis():
    def stop(row, token_ids):
        return len(token_ids) > 1 and sum(token_ids[-2:]) % 5 == 0

    stopped = 0
    for number in range(40):
        model, prompts, rules, limits, config = random_case(number)
        for found in search(model, batch(prompts), config, limits=limits, eos_ids=rules.eos_ids, stop=stop):
            for hypothesis in found:
                new = list(hypothesis.token_ids)
                assert not any(stop(0, new[:end]) for end in range(len(new)))
                if hypothesis.finish_reason != "eos":
                    assert (hypothesis.finish_reason == "stop") == stop(0, new)
                stopped += hypothesis.finish_reason == "stop"
    assert stopped > 3


def test_a_row_is_asked_for_by_its_number():
    rows = set()
    model, prompts = TableModel(20, 1), [[1, 2], [3], [4, 5, 6]]
    search(model, batch(prompts), BeamConfig(beam_size=2), limits=[1, 2, 3], stop=lambda row, ids: rows.add(row))
    assert rows == {0, 1, 2}


def test_refuses_more_beams_than_tokens():
    with pytest.raises(UsageError, match="choose 1 to 5"):
        run(TableModel(5), [[1]], Rules(), [3], BeamConfig(beam_size=6))


def test_refuses_rules_that_forbid_everything():
    config = BeamConfig(beam_size=3, no_repeat_ngram_size=1, min_new_tokens=9)
    with pytest.raises(UsageError, match="every token is forbidden"):
        run(TableModel(4), [[1]], Rules(eos_ids=(0,)), [9], config)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_scores_that_are_not_finite(value):
    model = TableModel(6)
    model.last[2, 3] = value
    with pytest.raises(DivergedError):
        run(model, [[1], [2]], Rules(), [3], BeamConfig(beam_size=2))


def test_generation_does_not_leave_inference_mode_on():
    run(TableModel(6), [[1]], Rules(), [3], BeamConfig(beam_size=2))
    assert not torch.is_inference_mode_enabled()
