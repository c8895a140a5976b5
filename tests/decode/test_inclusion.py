"""Beams that must say some runs of tokens, against a slow search on plain lists and against all sequences."""

import itertools
import math
import random

import pytest
import torch
from decode_fakes import TableModel, batch, random_case

from txtgen.config.decoding import BeamConfig, BeamSampleConfig
from txtgen.decode import search


class Runs:
    """Runs of tokens that must occur, looked for in the whole sequence every time."""

    def __init__(self, runs, limits, eos_ids, vocabulary):
        self.runs, self.limits, self.eos_ids, self.vocabulary = runs, limits, eos_ids, vocabulary

    def missing(self, token_ids):
        return [run for run in self.runs if not occurs(run, token_ids)]

    def begun(self, run, token_ids):
        return max(size for size in range(len(run)) if tuple(token_ids[len(token_ids) - size :]) == run[:size])

    def remaining(self, row, token_ids):
        missing = self.missing(token_ids)
        return sum(map(len, missing)) - max([self.begun(run, token_ids) for run in missing], default=0)

    def helpful(self, row, token_ids):
        return [run[place] for run in self.missing(token_ids) for place in (0, self.begun(run, token_ids))]

    def allowed(self, row, token_ids):
        room = self.limits[row] - len(token_ids) - 1
        return torch.tensor(
            [
                self.remaining(row, (*token_ids, token)) <= room
                and not (token in self.eos_ids and self.missing(token_ids))
                for token in range(self.vocabulary)
            ]
        )


def occurs(run, token_ids):
    return any(tuple(token_ids[start : start + len(run)]) == run for start in range(len(token_ids) - len(run) + 1))


def slow_allocation(model, prompt, rules, row, inclusion, config, eos_ids):
    """Finished (score, new tokens), best first."""
    size, limit = config.beam_size, inclusion.limits[row]
    running, finished = [(0.0, [])], []
    while True:
        offers = []
        for number, (total, new) in enumerate(running):
            scores = rules.filtered(model.log_probs(prompt + new), prompt, new)
            allowed = inclusion.allowed(row, tuple(new)).tolist()
            scores = [total + score if can else -math.inf for score, can in zip(scores, allowed, strict=True)]
            offers += [(score, number, token) for token, score in enumerate(scores)]
        offers = sorted((offer for offer in offers if offer[0] > -math.inf), key=lambda offer: -offer[0])
        best = offers[: max(2, 1 + len(eos_ids)) * size]
        for number, (_, new) in enumerate(running):
            own = [offer for offer in offers if offer[1] == number]
            helpful = set(inclusion.helpful(row, new))
            best += [offer for offer in own if (offer is own[0] or offer[2] in helpful) and offer not in best]
        best.sort(key=lambda offer: -offer[0])
        banks: dict[int, list] = {}
        for score, number, token in best:
            new = [*running[number][1], token]
            banks.setdefault(inclusion.remaining(row, new), []).append((score, new))
        taken = []
        for turn in range(len(best)):
            taken += [banks[bank][turn] for bank in sorted(banks) if turn < len(banks[bank])]
        following = []
        for rank, (total, new) in enumerate(taken):
            if new[-1] in eos_ids or len(new) >= limit:
                if rank < size:
                    finished.append((total / len(new) ** config.length_penalty, new))
            elif len(following) < size:
                following.append((total, new))
        finished = sorted(finished, key=lambda result: -result[0])[:size]
        running = following
        if not running:
            return finished
        if len(finished) == size:
            length = len(running[0][1])
            if config.early_stopping == "never" and config.length_penalty > 0:
                length = limit
            hope = max(total for total, _ in running) / length**config.length_penalty
            if config.early_stopping == "true" or hope <= finished[-1][0]:
                return finished


def cases(numbers):
    """Random cases, with runs that just fit, or fit easily."""
    for number in numbers:
        model, prompts, rules, limits, config = random_case(number)
        choice = random.Random(number)
        words = [token for token in range(model.vocabulary) if token not in rules.eos_ids + rules.suppress]
        runs = [tuple(choice.sample(words, choice.choice([1, 1, 2, 3]))) for _ in range(choice.choice([1, 1, 2]))]
        room = sum(map(len, runs))
        limits = [room + choice.choice([0, 1, 4, 7]) for _ in prompts]
        # Runs must not be forbidden by what was said before.
        rules = type(rules)(rules.eos_ids, rules.repetition_penalty, 0, 0, rules.suppress)
        config = config.model_copy(update={"no_repeat_ngram_size": 0, "min_new_tokens": 0})
        yield number, model, prompts, rules, limits, config, Runs(runs, limits, rules.eos_ids, model.vocabulary)


def run(model, prompts, rules, limits, config, inclusion):
    return search(
        model,
        batch(prompts),
        config,
        limits=limits,
        eos_ids=rules.eos_ids,
        suppress=rules.suppress,
        inclusion=inclusion,
    )


@pytest.mark.parametrize("block", range(6))
def test_equals_the_slow_search(block):
    for number, model, prompts, rules, limits, config, inclusion in cases(range(block * 8, block * 8 + 8)):
        results = run(model, prompts, rules, limits, config, inclusion)
        for row, (prompt, found) in enumerate(zip(prompts, results, strict=True)):
            expected = slow_allocation(model, prompt, rules, row, inclusion, config, rules.eos_ids)
            assert [list(h.token_ids) for h in found] == [new for _, new in expected[: config.num_return]], number
            scores = [score for score, _ in expected[: config.num_return]]
            assert [h.score for h in found] == pytest.approx(scores, abs=1e-4)
            assert found
            assert not [h for h in found if inclusion.missing(h.token_ids)]


@pytest.mark.parametrize("kind", ["groups", "drawn"])
def test_other_searches_include_it_as_well(kind):
    for _, model, prompts, rules, limits, config, inclusion in cases(range(30)):
        if kind == "groups":
            more = {"beam_size": 6, "num_return": 3, "num_groups": 2, "diversity_penalty": 0.5}
            config = config.model_copy(update=more)
        else:
            config = BeamSampleConfig(**config.plain() | {"strategy": "beam_sample"})
        results = run(model, prompts, rules, limits, config, inclusion)
        assert all(results)
        assert not [h for found in results for h in found if inclusion.missing(h.token_ids)]
        rows = [Runs(inclusion.runs, [limit], rules.eos_ids, model.vocabulary) for limit in limits]
        if kind == "groups":
            alone = [
                run(model, [prompt], rules, [limit], config, one)[0]
                for prompt, limit, one in zip(prompts, limits, rows, strict=True)
            ]
            assert alone == results


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_of_all(seed):
    """Four words, the first of them the end; the others only make room for beams."""
    limit, runs = 4, [(2, 3)] if seed % 2 else [(1,), (2,)]
    model = TableModel(80, seed, spread=1.0, never=tuple(range(4, 80)))
    config = BeamConfig(beam_size=80, length_penalty=0.0, early_stopping="never")
    inclusion = Runs(runs, [limit], (0,), 80)
    found = search(model, batch([[3, 1]]), config, limits=[limit], eos_ids=(0,), inclusion=inclusion)[0]

    def total(new):
        return sum(model.log_probs([3, 1, *new[:place]])[token] for place, token in enumerate(new))

    complete = [
        new
        for length in range(1, limit + 1)
        for new in itertools.product(range(4), repeat=length)
        if 0 not in new[:-1] and (new[-1] == 0 or length == limit) and all(occurs(run, new) for run in runs)
    ]
    assert found[0].token_ids == max(complete, key=total)
