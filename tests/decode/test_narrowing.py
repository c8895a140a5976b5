"""Search among the tokens of lists, beside search over all tokens of which those outside the list are impossible."""

import math
import random
from dataclasses import replace

import pytest
import torch
from decode_fakes import TableModel, batch, random_case

from txtgen.config.decoding import BeamConfig, BeamSampleConfig, GreedyConfig, SampleConfig
from txtgen.config.decoding_values import DraftModel, DryPenalty, PromptLookup, SequenceBias, Xtc
from txtgen.decode import narrow_search_steps, run_steps, search
from txtgen.errors import UsageError


class Hidden(TableModel):
    """Its hidden vectors are the logits of all tokens."""

    def prefill_hidden(self, prompt, capacity):
        last, state = self.prefill(prompt, capacity)
        hidden = torch.zeros(*prompt.input_ids.shape, self.vocabulary)
        hidden[torch.arange(len(prompt)), prompt.lengths - 1] = last
        return hidden, state

    extend_hidden = TableModel.extend

    def head(self, hidden):
        return hidden

    def narrow_head(self, token_ids):
        return lambda hidden: hidden[..., token_ids]


class Masked(TableModel):
    """Tokens outside a list are impossible."""

    def logits(self, tokens):
        scores = super().logits(tokens)
        return scores.masked_fill(self.outside, -math.inf)


def masked(model, tokens):
    one = Masked(model.vocabulary, model.seed, model.spread, model.eos_bonus)
    one.outside = ~torch.isin(torch.arange(model.vocabulary), torch.tensor(sorted(tokens)))
    return one


def configs(beam, choice, vocabulary):
    """A search of each kind with the filters of a random case, and more of them."""
    shared = {name: getattr(beam, name) for name in ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")}
    few = [choice.randrange(vocabulary) for _ in range(6)]
    shared |= choice.choice([
        {},
        {"sequence_bias": tuple(SequenceBias(token_ids=run, bias=3.0) for run in ((few[0], few[1]), (few[2],)))},
        {"bad_words_ids": ((few[0],), (few[1], few[2]))},
        {"forced_eos_token_id": (few[3],), "begin_suppress_tokens": (few[4],), "suppress_tokens": (few[5],)},
        {"dry": DryPenalty(multiplier=2.0, allowed_length=1, breakers=(), breaker_ids=((few[0],), (few[1], few[2])))},
        {"presence_penalty": 0.7, "frequency_penalty": 0.3},
    ])  # fmt: skip
    sizes = {"beam_size": beam.beam_size, "num_return": beam.num_return, "length_penalty": beam.length_penalty}
    yield GreedyConfig(**shared)
    yield GreedyConfig(**shared, speculation=PromptLookup(max_ngram=1))
    yield BeamConfig(**shared, **sizes, early_stopping=beam.early_stopping)
    yield BeamConfig(**shared, beam_size=4, num_groups=2, diversity_penalty=0.8, renormalize_logits=True)
    yield BeamSampleConfig(**shared, **sizes, seed=3)
    yield SampleConfig(**shared, num_return=2, top_p=0.9, temperature=0.8, seed=choice.randrange(99))
    yield SampleConfig(**shared, xtc=Xtc(threshold=0.1), top_k=5, seed=1)


def named(config):
    """The tokens that settings name, which every list has."""
    tokens = {token for item in config.sequence_bias for token in item.token_ids}
    tokens |= {token for run in config.bad_words_ids for token in run}
    tokens |= {*config.forced_eos_token_id, *config.begin_suppress_tokens, *config.suppress_tokens}
    return tokens | {token for run in (config.dry.breaker_ids if config.dry else ()) for token in run}


@pytest.mark.parametrize("number", range(40))
def test_results_are_those_of_impossible_tokens_whatever_else_is_in_the_batch(number):
    model, prompts, rules, limits, beam = random_case(number)
    model = Hidden(model.vocabulary, model.seed, model.spread, model.eos_bonus)
    choice = random.Random(number)
    lists = [choice.sample(range(model.vocabulary), choice.randint(11, 14)) for _ in prompts]
    for config in configs(beam, choice, model.vocabulary):
        options = {"eos_ids": rules.eos_ids, "suppress": rules.suppress}
        decided = []
        found = run_steps(
            narrow_search_steps(model, batch(prompts), config, lists, model.vocabulary, limits=limits, **options),
            lambda result, token, decided=decided: decided.append((result, token)),
        )
        always = {*rules.eos_ids, *named(config), *(token for prompt in prompts for token in prompt)}
        # Padding counts as named, as it stands in the tensor of the prompts.
        always.add(0) if len({*map(len, prompts)}) > 1 else None
        for row, prompt in enumerate(prompts):
            slow = masked(model, always.union(lists[row]))
            expected = search(slow, batch([prompt]), config, limits=[limits[row]], prompt_indices=[row], **options)[0]
            assert [each.token_ids for each in found[row]] == [each.token_ids for each in expected]
            for mine, its in zip(found[row], expected, strict=True):
                assert mine.score == pytest.approx(its.score, abs=1e-5)
                assert mine.logprob == pytest.approx(its.logprob, abs=1e-5)
                assert mine.finish_reason == its.finish_reason
        told = {result: tuple(token for other, token in decided if other == result) for result, _ in decided}
        wanted = [each.token_ids for results in found for each in results]
        assert sorted(told.values()) == sorted(wanted) or isinstance(config, BeamConfig | BeamSampleConfig)


def test_a_draft_model_proposes_within_the_list_and_changes_nothing():
    model, draft = Hidden(30, 1), Hidden(30, 2)
    lists, limits = [[3, 4, 9, 21], [5, 6, 7, 8, 22]], [9, 7]
    plain = run_steps(narrow_search_steps(model, batch([[1], [2]]), GreedyConfig(), lists, 30, limits=limits))
    config = GreedyConfig(speculation=DraftModel())
    quick = run_steps(narrow_search_steps(model, batch([[1], [2]]), config, lists, 30, limits=limits, draft=draft))
    assert [replace(results[0], proposed=0, accepted=0) for results in quick] == [results[0] for results in plain]
    assert sum(results[0].proposed for results in quick)


def test_constraints_and_stops_see_tokens():
    asked, seen = [], []

    class OnlyOdd:
        def allowed(self, row, token_ids):
            asked.append((row, token_ids))
            return torch.arange(30) % 2 == 1

    def stop(row, token_ids):
        seen.append(tuple(token_ids))
        return len(token_ids) == 4

    lists = [[3, 4, 9, 21], [8, 17]]
    found = run_steps(
        narrow_search_steps(
            Hidden(30, 4),
            batch([[1], [2]]),
            GreedyConfig(),
            lists,
            30,
            limits=[9, 9],
            constraints=[OnlyOdd()],
            stop=stop,
        )
    )
    assert {token for results in found for token in results[0].token_ids} <= {1, 3, 9, 21, 17}
    assert [results[0].finish_reason for results in found] == ["stop", "stop"]
    assert seen
    assert {token for tokens in seen for token in tokens} <= {1, 3, 9, 21, 17}
    assert {tokens for _, tokens in asked if tokens} <= {*seen}


def test_only_the_tokens_of_the_lists_are_scored():
    counted = []

    class Counting(Hidden):
        def narrow_head(self, token_ids):
            counted.append(token_ids.tolist())
            return super().narrow_head(token_ids)

    run_steps(narrow_search_steps(Counting(30), batch([[1], [2]]), GreedyConfig(), [[9, 4], [4, 5]], 30, limits=[2, 2]))
    assert counted == [[1, 2, 4, 5, 9]]


@pytest.mark.parametrize(
    "settings",
    [
        {"suppress_tokens": (30,)},
        {"bad_words_ids": ((3, 99),)},
        {"forced_bos_token_id": 30},
        {"sequence_bias": (SequenceBias(token_ids=(31,), bias=1.0),)},
    ],
)
def test_tokens_that_the_model_does_not_have_are_told_as_without_lists(settings):
    config, prompts = GreedyConfig(**settings), batch([[1]])
    with pytest.raises(UsageError) as expected:
        search(Hidden(30), prompts, config, limits=[2])
    with pytest.raises(UsageError) as caught:
        run_steps(narrow_search_steps(Hidden(30), prompts, config, [[3]], 30, limits=[2]))
    assert str(caught.value) == str(expected.value)
