from collections import Counter
from functools import cache
from itertools import permutations
from random import Random

import pytest
import torch
from decode_fakes import TableModel, batch, random_case, slow_beam

from txtgen.config.decoding import BeamSampleConfig
from txtgen.config.decoding_values import Xtc
from txtgen.decode import search
from txtgen.decode.beam_sampling import gumbel_noise
from txtgen.decode.distribution import shape_distribution


def config_of(config, **settings):
    """The same settings of beams, for drawing them."""
    return BeamSampleConfig(**config.plain() | {"strategy": "beam_sample"} | settings)


def run(model, prompts, rules, limits, config, indices=None):
    return search(
        model,
        batch(prompts),
        config,
        limits=limits,
        eos_ids=rules.eos_ids,
        suppress=rules.suppress,
        prompt_indices=indices,
    )


CUTS = [{}, {"temperature": 2.5}, {"top_k": 4, "temperature": 0.7}, {"top_p": 0.8}, {"min_p": 0.1, "seed": 5}]


@pytest.mark.parametrize("block", range(6))
def test_equals_the_slow_search_with_the_same_noise(block):
    for number in range(block * 12, block * 12 + 12):
        model, prompts, rules, limits, config = random_case(number)
        config = config_of(config, **CUTS[number % len(CUTS)])

        def shape(scores, config=config):
            log_probs = shape_distribution(torch.tensor([scores]), config)[0].log_softmax(-1)
            return log_probs.masked_fill(log_probs.isnan(), -torch.inf).tolist()

        results = run(model, prompts, rules, limits, config)
        for index, (prompt, limit, found) in enumerate(zip(prompts, limits, results, strict=True)):
            random = Random(f"{config.seed}/{index}")
            expected = slow_beam(
                model,
                prompt,
                rules,
                limit,
                config.beam_size,
                config.length_penalty,
                config.early_stopping,
                shape=shape,
                noise=lambda count, random=random: gumbel_noise(random, count).tolist(),
            )[: config.num_return]
            assert [list(h.token_ids) for h in found] == [new for _, new in expected], number
            assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


def drawn_sets(probabilities, count):
    """The probability of each set of so many that are drawn one after another, none of them twice."""
    sets: Counter = Counter()
    for order in permutations([item for item, p in probabilities.items() if p], count):
        probability, left = 1.0, sum(probabilities.values())
        for item in order:
            probability *= probabilities[item] / left
            left -= probabilities[item]
        sets[frozenset(order)] += probability
    return sets


def test_results_come_as_often_as_they_should():
    """Two beams, two tokens: the second is drawn from the joint distribution of what the first step left."""
    model = TableModel(6, 3, spread=1.0)
    config = BeamSampleConfig(beam_size=2, num_return=2, temperature=1.3, length_penalty=0.0)

    @cache
    def after(new):
        logits = model.logits([1, *new])
        return (logits / config.temperature).softmax(-1).tolist()

    def best(sums):
        return sorted(sums, key=lambda item: -sums[item])[:2]

    expected: Counter = Counter()
    first = {(token,): p for token, p in enumerate(after(()))}
    for firsts, chance in drawn_sets(first, 4).items():
        beams = best({item: first[item] for item in firsts})
        second = {(*beam, token): first[beam] * p for beam in beams for token, p in enumerate(after(beam))}
        for seconds, more in drawn_sets(second, 4).items():
            expected[tuple(best({item: second[item] for item in seconds}))] += chance * more
    assert sum(expected.values()) == pytest.approx(1.0)

    total, found = 3000, Counter()
    for start in range(0, total, 500):
        indices = range(start, start + 500)
        results = search(model, batch([[1]] * 500), config, limits=[2] * 500, prompt_indices=indices)
        found.update(tuple(hypothesis.token_ids for hypothesis in two) for two in results)
    likely = [item for item, chance in expected.items() if chance * total >= 5]
    counts = [found[item] for item in likely] + [total - sum(found[item] for item in likely)]
    means = [expected[item] * total for item in likely]
    means.append(total - sum(means))
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, means, strict=True))
    freedom = len(means) - 1
    assert len(likely) > 15
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5, (statistic, freedom)


@pytest.mark.parametrize("settings", [{}, {"xtc": Xtc(probability=0.5, threshold=0.05)}, {"num_groups": 2}])
def test_draws_do_not_depend_on_the_batch(settings):
    for number in range(12):
        model, prompts, rules, limits, config = random_case(number)
        if "num_groups" in settings:
            settings = settings | {"beam_size": 4, "num_return": 3, "diversity_penalty": 0.5}
        config = config_of(config, seed=number, **settings)
        together = run(model, prompts, rules, limits, config)
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            assert run(model, [prompt], rules, [limit], config, [index]) == [together[index]]


def test_another_seed_or_place_draws_otherwise():
    model, config = TableModel(30, 3, spread=0.5), BeamSampleConfig(beam_size=3)
    runs = [
        search(model, batch([[1]]), config.model_copy(update={"seed": seed}), limits=[9], prompt_indices=[index])
        for seed, index in [(0, 0), (1, 0), (0, 1)]
    ]
    assert len({found[0][0].token_ids for found in runs}) == 3
    assert search(model, batch([[1]]), config, limits=[9]) == runs[0]


def test_noise_has_the_gumbel_distribution():
    noise = gumbel_noise(Random(1), 200_000)
    assert noise.isfinite().all()
    for limit in (-1.0, 0.0, 1.0, 3.0):
        share = (noise < limit).double().mean().item()
        assert share == pytest.approx(float(torch.exp(-torch.exp(torch.tensor(-limit)))), abs=0.005)
