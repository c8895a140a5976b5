"""Penalties for what was said before, against plain Python that looks at one row and one token at a time."""

import math

import torch
from decode_fakes import TableModel, batch
from hypothesis import given
from hypothesis import strategies as st

from txtgen.config.decoding import BeamConfig, GreedyConfig, SampleConfig
from txtgen.config.decoding_values import DryPenalty
from txtgen.decode import search
from txtgen.decode.chain import Place, make_filters
from txtgen.decode.filters import align_right
from txtgen.decode.stopping import Stopping

VOCABULARY = 6
ROWS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=25), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32)


def filtered(config, rows, num_new, seed, eos_ids=()):
    """Random scores, and what the filters of a search make of them after these rows."""
    scores = torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    scores[:, seed % VOCABULARY] = -math.inf
    whole = batch(rows)
    stopping = Stopping(frozenset(eos_ids), (99,) * len(rows))
    chosen = make_filters(config, whole, stopping, (), (), VOCABULARY)
    before = scores.clone()
    place = Place(align_right(whole.input_ids, whole.lengths), [num_new] * len(rows), range(len(rows)))
    found = chosen(scores, place)
    assert torch.equal(scores, before)
    return scores.tolist(), found


def slow_counts(scores, generated, presence, frequency):
    return [
        score - frequency * generated.count(token) - presence * (token in generated)
        for token, score in enumerate(scores)
    ]


@given(ROWS, SEEDS, st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 6), st.data())
def test_counts_of_generated_tokens_are_penalised(rows, seed, presence, frequency, window, data):
    """The prompt does not count, nor what stands before the window."""
    window = window if presence or frequency else 0
    num_new = data.draw(st.integers(0, min(map(len, rows))))
    config = GreedyConfig(presence_penalty=presence, frequency_penalty=frequency, penalty_window=window)
    scores, found = filtered(config, rows, num_new, seed)
    generated = [row[len(row) - num_new :] for row in rows]
    recent = [row[-window:] if window else row for row in generated]
    expected = [slow_counts(*pair, presence, frequency) for pair in zip(scores, recent, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected))


def slow_dry(scores, row, dry, breakers):
    """Every place before the last is compared with the end, token by token."""
    ends = {
        place
        for place in range(len(row))
        for run in breakers
        if tuple(row[max(0, place + 1 - len(run)) : place + 1]) == run
    }
    longest = {}
    for place in range(len(row) - 1):
        length = 0
        while length <= place and (last := len(row) - 1 - length) not in ends and row[place - length] == row[last]:
            length += 1
        if place + 1 not in ends:
            longest[row[place + 1]] = max(length, longest.get(row[place + 1], 0))
    return [
        score - dry.multiplier * dry.base ** (longest[token] - dry.allowed_length)
        if longest.get(token, 0) >= dry.allowed_length
        else score
        for token, score in enumerate(scores)
    ]


RUNS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3).map(tuple), max_size=3)


@given(ROWS, SEEDS, st.floats(0.1, 3), st.floats(1, 2), st.integers(1, 4), RUNS, st.sets(st.integers(0, 5), max_size=1))
def test_dry_equals_plain_code(rows, seed, multiplier, base, allowed, runs, eos_ids):
    dry = DryPenalty(multiplier=multiplier, base=base, allowed_length=allowed, breakers=(), breaker_ids=tuple(runs))
    scores, found = filtered(GreedyConfig(dry=dry), rows, 0, seed, eos_ids)
    breakers = [*runs, *((token,) for token in eos_ids)]
    expected = [slow_dry(*pair, dry, breakers) for pair in zip(scores, rows, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_dry_on_few_tokens():
    """By hand: `1 2 3` then `1 2` costs 3 its multiplier, as does the longest of several."""
    dry = DryPenalty(multiplier=2.0, base=3.0, breakers=())
    for row, expected in [
        ([1, 2, 3, 1, 2], {3: 2.0}),
        ([0, 1, 2, 3, 0, 1, 2], {3: 6.0}),
        ([1, 2, 3, 4, 1, 2, 5, 3, 1, 2], {3: 2.0, 5: 2.0}),
        ([1, 3, 1], {}),
        ([4, 4, 4, 4], {4: 6.0}),
    ]:
        scores, found = filtered(GreedyConfig(dry=dry), [row], 0, 0)
        cost = {token: scores[0][token] - score for token, score in enumerate(found[0].tolist()) if token}
        assert {token: round(lost, 4) for token, lost in cost.items() if lost} == expected


def test_the_longest_repetitions_stay_finite():
    """exp(200) is no number of single precision."""
    dry = DryPenalty(multiplier=1e4, base=100.0, breakers=())
    scores, found = filtered(GreedyConfig(dry=dry), [[1] * 400], 0, 0)
    assert found[0].isfinite().tolist() == [score > -math.inf for score in scores[0]]
    assert found[0, 1] < -1e20


def loops(token_ids, size=3):
    """Whether a run of so many tokens occurs twice."""
    runs = [tuple(token_ids[start : start + size]) for start in range(len(token_ids) - size + 1)]
    return len(set(runs)) < len(runs)


def test_a_heavy_penalty_ends_loops_in_every_strategy():
    """Also where beams change their rows, and where prompts have several lengths."""
    dry = DryPenalty(multiplier=100.0, breakers=())
    looped = 0
    for seed in range(12):
        model, prompts = TableModel(12, seed), batch([[1], [2, 3, 4], [5, 6]])
        for config in (GreedyConfig(), BeamConfig(beam_size=3), SampleConfig(temperature=0.3, seed=seed)):
            free = search(model, prompts, config, limits=[30] * 3)
            held = search(model, prompts, config.model_copy(update={"dry": dry}), limits=[30] * 3)
            looped += sum(loops(result.token_ids) for (result,) in free)
            assert not any(loops(result.token_ids) for (result,) in held)
    assert looped > 60


def test_frequency_penalty_spreads_the_tokens():
    model = TableModel(12, 3, spread=0.5)
    free = search(model, batch([[1]]), GreedyConfig(), limits=[24])[0][0]
    held = search(model, batch([[1]]), GreedyConfig(frequency_penalty=100.0), limits=[24])[0][0]
    assert sorted(held.token_ids) == sorted([*range(12)] * 2), "each once before any twice, the prompt not counted"
    assert len(set(free.token_ids)) < 12
