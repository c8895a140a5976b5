import math

import pytest
import torch
from decode_fakes import Rules, batch
from hypothesis import given
from hypothesis import strategies as st

from txtgen.config.decoding import SampleConfig, StrategyConfig
from txtgen.config.decoding_values import SAMPLER_ORDER, Xtc
from txtgen.decode import distribution, filters
from txtgen.decode.chain import FILTERS, Place, make_filters
from txtgen.decode.distribution import SAMPLERS, shape_distribution
from txtgen.decode.filters import NO_TOKEN, align_right
from txtgen.decode.stopping import Stopping


@pytest.fixture
def scores():
    """Some forbidden, some equal, of both signs."""
    scores = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 3
    scores[::3, 5:9] = -math.inf
    scores[::4, 10:13] = 1.5
    return scores


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(score - max(row)) for score in row]
    return [weight / sum(weights) for weight in weights]


def kept(filtered: torch.Tensor) -> list[set[int]]:
    return [{token for token, score in enumerate(row) if score > -math.inf} for row in filtered.tolist()]


def test_align_right():
    prompts = batch([[4, 5, 6], [7], [8, 9]])
    expected = [[4, 5, 6], [NO_TOKEN, NO_TOKEN, 7], [NO_TOKEN, 8, 9]]
    assert align_right(prompts.input_ids, prompts.lengths).tolist() == expected


def test_common_filters_equal_plain_code():
    """Rows of unequal length: padding is never taken for a token."""
    random = torch.Generator().manual_seed(1)
    for number in range(80):
        rows = [
            torch.randint(0, 8, (int(torch.randint(1, 12, (), generator=random)),), generator=random).tolist()
            for _ in range(4)
        ]
        scores = torch.randn(4, 8, generator=random) * 3
        rules = Rules(
            eos_ids=(2, 6),
            repetition_penalty=(1.0, 1.7, 0.6)[number % 3],
            no_repeat_ngram_size=number % 5,
            min_new_tokens=number % 4,
            suppress=((), (1,), (1, 6))[number % 3],
        )
        config = SampleConfig(
            repetition_penalty=rules.repetition_penalty,
            no_repeat_ngram_size=rules.no_repeat_ngram_size,
            min_new_tokens=rules.min_new_tokens,
        )
        prompts = batch(rows, pad=3)
        sequences = align_right(prompts.input_ids, prompts.lengths)
        given = scores.clone()
        before = batch([row[:-1] or row for row in rows], pad=3)
        stopping = Stopping(frozenset(rules.eos_ids), (9,) * 4)
        chosen = make_filters(config, before, stopping, rules.suppress, (), vocabulary=8)
        result = chosen(scores, Place(sequences, [1] * 4, range(4)))
        expected = [
            rules.filtered(row, tokens[:-1], tokens[-1:]) for row, tokens in zip(scores.tolist(), rows, strict=True)
        ]
        torch.testing.assert_close(result, torch.tensor(expected))
        assert torch.equal(scores, given), "filters leave their input alone"


def test_without_settings_nothing_changes(scores):
    sequences = torch.zeros(40, 3, dtype=torch.int64)
    chosen = make_filters(SampleConfig(), batch([[1]]), Stopping(frozenset((2,)), (9,)), (), (), vocabulary=30)
    assert chosen(scores, Place(sequences, [0] * 40, [0] * 40)) is scores
    assert shape_distribution(scores, SampleConfig()) is scores


def test_top_k_keeps_ties(scores):
    for k in (1, 2, 5, 30, 500):
        for row, tokens in zip(scores.tolist(), kept(distribution.keep_top_k(scores, k)), strict=True):
            worst = sorted(row, reverse=True)[min(k, 30) - 1]
            assert tokens == {token for token, score in enumerate(row) if score >= worst and score > -math.inf}


def test_top_p_keeps_the_fewest_tokens(scores):
    scores = torch.randn(40, 30, generator=torch.Generator().manual_seed(2)) * 2
    for top_p in (1e-300, 0.1, 0.5, 0.9, 0.999):
        for row, tokens in zip(scores.tolist(), kept(distribution.keep_top_p(scores, top_p)), strict=True):
            probabilities, expected, total = softmax(row), set(), 0.0
            for token in sorted(range(30), key=lambda token: -row[token]):
                if total >= top_p:
                    break
                expected.add(token)
                total += probabilities[token]
            assert tokens == expected


def test_top_p_takes_no_more_than_its_share():
    """Exactly half of the probability is one of two equal tokens."""
    assert [len(tokens) for tokens in kept(distribution.keep_top_p(torch.zeros(1, 2), 0.5))] == [1]


def test_min_p_compares_with_the_likeliest(scores):
    for min_p in (0.01, 0.3, 0.999):
        for row, tokens in zip(scores.tolist(), kept(distribution.keep_min_p(scores, min_p)), strict=True):
            probabilities = softmax(row)
            least = min_p * max(probabilities)
            assert tokens == {token for token in range(30) if probabilities[token] >= least and probabilities[token]}


def test_typical_p_keeps_what_is_nearest_to_the_entropy():
    scores = torch.randn(40, 30, generator=torch.Generator().manual_seed(3)) * 2
    scores[::2, 3:6] = -math.inf
    for mass in (1e-9, 0.2, 0.7, 0.95):
        for row, tokens in zip(scores.tolist(), kept(distribution.keep_typical(scores, mass)), strict=True):
            probabilities = softmax(row)
            possible = [token for token in range(30) if probabilities[token] > 0]
            entropy = -sum(probabilities[token] * math.log(probabilities[token]) for token in possible)
            expected, total = set(), 0.0
            for token in sorted(possible, key=lambda token: abs(-math.log(probabilities[token]) - entropy)):
                expected.add(token)
                total += probabilities[token]
                if total >= mass:
                    break
            assert tokens == expected


def test_temperature_scales_the_distribution(scores):
    for temperature in (0.3, 2.0):
        expected = (scores / temperature).softmax(-1)
        torch.testing.assert_close(distribution.apply_temperature(scores, temperature).softmax(-1), expected)


@pytest.mark.parametrize("temperature", [1e-9, 5e-324])
def test_tiny_temperatures_take_the_best(temperature):
    scores = torch.tensor([[1.0, 3.0, -math.inf], [80.0, -5.0, 79.9]])
    assert distribution.apply_temperature(scores, temperature).softmax(-1).tolist() == [[0, 1, 0], [1, 0, 0]]


def slow_top_n_sigma(row: list[float], n: float) -> set[int]:
    possible = [score for score in row if score > -math.inf]
    mean = sum(possible) / len(possible)
    sigma = math.sqrt(sum((score - mean) ** 2 for score in possible) / len(possible))
    return {token for token, score in enumerate(row) if score >= max(possible) - n * sigma and score > -math.inf}


def test_top_n_sigma_counts_deviations_from_the_best(scores):
    for n in (0.1, 0.7, 1.0, 2.5, 50.0):
        found = kept(distribution.keep_top_n_sigma(scores, n))
        assert found == [slow_top_n_sigma(row, n) for row in scores.tolist()]
        cold = distribution.apply_temperature(scores, 0.3)
        assert kept(distribution.keep_top_n_sigma(cold, n)) == found, "whatever the temperature"
    alone = torch.tensor([[-math.inf, 2.0, -math.inf]])
    assert torch.equal(distribution.keep_top_n_sigma(alone, 1.0), alone)


def slow_xtc(row: list[float], threshold: float) -> set[int]:
    probabilities = softmax(row)
    top = sorted((p, token) for token, p in enumerate(probabilities) if p >= threshold)
    least = top[0][0] if top else 0.0
    return {token for token, p in enumerate(probabilities) if p > 0 and not (p >= threshold and p > least)}


def test_xtc_leaves_the_least_of_the_top(scores):
    """In the rows that it acts on, and in no others."""
    rows = torch.arange(len(scores)) % 2 == 0
    cut = 0
    for threshold in (0.01, 0.1, 0.3, 0.5):
        found = kept(distribution.exclude_top(scores, threshold, rows))
        for number, (row, tokens) in enumerate(zip(scores.tolist(), found, strict=True)):
            expected = slow_xtc(row, threshold) if number % 2 == 0 else kept(torch.tensor([row]))[0]
            assert tokens == expected
            cut += len(tokens) < sum(score > -math.inf for score in row)
    assert cut > 20


def test_sampling_filters_come_in_order(scores):
    """Each sees what the one before left."""
    config = SampleConfig(temperature=1.5, top_k=12, top_p=0.9, min_p=0.05, typical_p=0.8)
    expected = distribution.keep_top_k(distribution.apply_temperature(scores, 1.5), 12)
    expected = distribution.keep_typical(distribution.keep_min_p(distribution.keep_top_p(expected, 0.9), 0.05), 0.8)
    assert torch.equal(shape_distribution(scores, config), expected)
    turned = config.model_copy(update={"samplers": ("typical_p", "min_p", "top_p", "top_k", "temperature")})
    expected = distribution.keep_min_p(distribution.keep_typical(scores, 0.8), 0.05)
    expected = distribution.keep_top_k(distribution.keep_top_p(expected, 0.9), 12)
    expected = distribution.apply_temperature(expected, 1.5)
    assert torch.equal(shape_distribution(scores, turned), expected)
    assert not torch.equal(expected, shape_distribution(scores, config))


SETTINGS = {
    "temperature": 1.7,
    "top_n_sigma": 1.2,
    "top_h": 0.7,
    "top_k": 8,
    "top_p": 0.8,
    "min_p": 0.05,
    "typical_p": 0.8,
    "epsilon_cutoff": 0.03,
    "eta_cutoff": 0.2,
    "xtc": Xtc(probability=0.5, threshold=0.1),
}


def slow_cut(row: list[float], name: str, chance: float) -> set[int]:
    """The tokens that a sampler leaves, one row at a time."""
    p = softmax(row)
    possible = sorted((t for t in range(len(row)) if p[t] > 0), key=lambda t: -p[t])
    entropy = -sum(p[t] * math.log(p[t]) for t in possible)
    value = SETTINGS[name]

    def until(order, weights, share):
        taken, total = set(), 0.0
        for token in order:
            if total >= share:
                break
            taken.add(token)
            total += weights[token]
        return taken

    match name:
        case "top_n_sigma":
            return slow_top_n_sigma(row, value)
        case "top_h":
            best = possible[:100]
            total, taken = 0.0, set()
            for token in best:
                total -= p[token] * math.log(p[token])
                if taken and total > value * entropy:
                    break
                taken.add(token)
            return taken
        case "top_k":
            return {t for t in possible if row[t] >= row[possible[min(value, len(possible)) - 1]]}
        case "top_p":
            return until(possible, p, value)
        case "min_p":
            return {t for t in possible if p[t] >= value * max(p)}
        case "typical_p":
            return until(sorted(possible, key=lambda t: abs(-math.log(p[t]) - entropy)), p, value)
        case "epsilon_cutoff":
            return {t for t in possible if p[t] >= value} | {possible[0]}
        case "eta_cutoff":
            limit = min(value, math.sqrt(value) * math.exp(-entropy))
            return {t for t in possible if p[t] >= limit} | {possible[0]}
        case "xtc":
            return slow_xtc(row, value.threshold) if chance < value.probability else set(possible)


@given(st.permutations(list(SETTINGS)), st.integers(1, len(SETTINGS)), st.integers(0, 2**32))
def test_any_order_equals_plain_code(names, count, seed):
    names = names[:count]
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 12, generator=random) * 2
    scores[:, seed % 12] = -math.inf
    chances = torch.rand(3, generator=random, dtype=torch.float64)
    config = SampleConfig(samplers=tuple(names), **{name: SETTINGS[name] for name in names})
    found = shape_distribution(scores, config, chances)
    for row, chance, shaped in zip(scores.tolist(), chances.tolist(), found, strict=True):
        for name in names:
            if name == "temperature":
                row = [score / SETTINGS[name] for score in row]
            else:
                left = slow_cut(row, name, chance)
                row = [score if token in left else -math.inf for token, score in enumerate(row)]
        torch.testing.assert_close(shaped.softmax(-1), torch.tensor(softmax(row)), rtol=1e-4, atol=1e-6)


def test_every_name_has_a_sampler_and_every_setting_a_filter():
    """A setting that no table names would be silently ignored."""
    assert set(SAMPLERS) == set(SAMPLER_ORDER)
    elsewhere = {
        "max_new_tokens",
        "max_length",
        "bad_words",
        "penalty_window",
        "prefix",
        "regex",
        "json_schema",
        "stop",
        "stop_on_loop",
        "num_return",
        "seed",
    }
    assert set(StrategyConfig.model_fields) == set(FILTERS) | elsewhere


@pytest.mark.parametrize(
    ("ours", "name", "setting"),
    [
        (distribution.apply_temperature, "TemperatureLogitsWarper", 0.7),
        (distribution.keep_top_k, "TopKLogitsWarper", 7),
        (distribution.keep_top_p, "TopPLogitsWarper", 0.8),
        (distribution.keep_min_p, "MinPLogitsWarper", 0.1),
        (distribution.keep_typical, "TypicalLogitsWarper", 0.6),
        (distribution.keep_top_h, "TopHLogitsWarper", 0.5),
        (distribution.cut_epsilon, "EpsilonLogitsWarper", 0.05),
        (distribution.cut_eta, "EtaLogitsWarper", 0.2),
    ],
)
def test_equals_transformers(scores, ours, name, setting):
    theirs = getattr(pytest.importorskip("transformers"), name)(setting)
    expected = theirs(torch.zeros(40, 1, dtype=torch.int64), scores)
    torch.testing.assert_close(ours(scores, setting).softmax(-1), expected.softmax(-1))


@pytest.mark.parametrize("name", ["repetition", "ngram"])
def test_history_filters_equal_transformers(scores, name):
    transformers = pytest.importorskip("transformers")
    sequences = torch.randint(0, 30, (40, 60), generator=torch.Generator().manual_seed(4))
    if name == "repetition":
        theirs, ours = (
            transformers.RepetitionPenaltyLogitsProcessor(1.4),
            filters.penalise_repetition(scores, sequences, 1.4),
        )
    else:
        theirs, ours = (
            transformers.NoRepeatNGramLogitsProcessor(2),
            filters.forbid_ngrams(scores, sequences, 2, sequences),
        )
    assert torch.equal(ours, theirs(sequences, scores))
