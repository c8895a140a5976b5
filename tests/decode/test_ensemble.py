import itertools
import math

import pytest
import torch
from decode_fakes import TableModel, batch, random_case

from txtgen.config.decoding import BeamConfig, ContrastiveConfig, GreedyConfig, SampleConfig
from txtgen.config.decoding_values import PromptLookup
from txtgen.decode import Ensemble, search, token_logprobs
from txtgen.errors import DivergedError, UsageError

CONFIGS = [
    GreedyConfig(repetition_penalty=1.4, no_repeat_ngram_size=3),
    GreedyConfig(speculation=PromptLookup(max_ngram=1)),
    BeamConfig(beam_size=4, num_return=2, repetition_penalty=1.4),
    SampleConfig(num_return=2, top_p=0.9, temperature=0.8, repetition_penalty=1.4),
]
means = pytest.mark.parametrize("mean", ["linear", "log_linear"])


def slow_mixture(rows, mean, weights):
    """Log-probabilities from those of each model, one token at a time."""
    shares = [weight / math.fsum(weights) for weight in weights]
    mixed = []
    for logprobs in zip(*rows, strict=True):
        pairs = list(zip(shares, logprobs, strict=True))
        if mean == "linear":
            mixed.append(math.fsum(share * math.exp(logprob) for share, logprob in pairs))
        else:
            mixed.append(math.exp(math.fsum(share * logprob for share, logprob in pairs)))
    total = math.fsum(mixed)
    return [math.log(value / total) if value else -math.inf for value in mixed]


@means
@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0), (0.2, 5.0, 1.0)])
def test_equals_plain_arithmetic(mean, weights):
    members = [TableModel(9, seed, never=(8,) if seed == 1 else ()) for seed in range(3)]
    ensemble = Ensemble(members, mean, weights)
    rows = [[1, 2, 3], [4]]
    first, state = ensemble.prefill(batch(rows), 8)
    later = ensemble.extend(torch.tensor([[5, 6], [7, 0]]), state)
    state.select(torch.tensor([1, 0]))
    state.truncate(torch.tensor([2, 4]))
    assert state.lengths.tolist() == [2, 4]
    last = ensemble.extend(torch.tensor([[3], [2]]), state)
    places = [(first[0], rows[0]), (first[1], rows[1])]
    places += [(later[0, 0], [*rows[0], 5]), (later[0, 1], [*rows[0], 5, 6]), (later[1, 1], [*rows[1], 7, 0])]
    places += [(last[0, 0], [4, 7, 3]), (last[1, 0], [1, 2, 3, 5, 2])]
    for logits, tokens in places:
        expected = slow_mixture([member.log_probs(tokens) for member in members], mean, weights or [1.0] * 3)
        torch.testing.assert_close(logits.log_softmax(-1), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@means
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_equal_models_say_what_one_says(mean, copies):
    """With penalties too, which look at the scale of the logits."""
    for number in range(8):
        model, prompts, rules, limits, _ = random_case(number)
        for config in CONFIGS:
            arguments = {"limits": limits, "eos_ids": rules.eos_ids, "suppress": rules.suppress}
            found = search(Ensemble([model] * copies, mean), batch(prompts), config, **arguments)
            expected = search(model, batch(prompts), config, **arguments)
            for mine, its in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
                assert (mine.token_ids, mine.finish_reason) == (its.token_ids, its.finish_reason)
                assert (mine.logprob, mine.score) == pytest.approx((its.logprob, its.score), abs=1e-4)


@means
def test_a_wide_beam_searches_exhaustively(mean):
    """Five words that can be said, the first of them the end; the others only make room for beams."""
    members = [TableModel(64, seed, spread=1.0, never=tuple(range(5, 64))) for seed in range(2)]
    config = BeamConfig(beam_size=64, num_return=64, length_penalty=0.0, early_stopping="never")
    ensemble, weights, limit = Ensemble(members, mean, (1.0, 3.0)), (1.0, 3.0), 3
    (found,) = search(ensemble, batch([[3, 1]]), config, limits=[limit], eos_ids=(0,))

    def total(new):
        places = [[3, 1, *new[:place]] for place in range(len(new))]
        rows = [slow_mixture([member.log_probs(tokens) for member in members], mean, weights) for tokens in places]
        return sum(row[token] for row, token in zip(rows, new, strict=True))

    complete = [
        new
        for length in range(1, limit + 1)
        for new in itertools.product(range(5), repeat=length)
        if 0 not in new[:-1] and (new[-1] == 0 or length == limit)
    ]
    best = sorted(complete, key=total, reverse=True)[:64]
    assert [hypothesis.token_ids for hypothesis in found] == best
    assert found[0].logprob == pytest.approx(total(best[0]), abs=1e-4)
    greedy = [search(one, batch([[3, 1]]), config, limits=[limit], eos_ids=(0,))[0][0] for one in members]
    assert found[0].logprob != pytest.approx(greedy[0].logprob, abs=1e-2), "both models count"


def test_it_scores_as_it_generates():
    ensemble = Ensemble([TableModel(9, 1), TableModel(9, 2)], "linear")
    prompts = batch([[1, 2], [3]])
    found = search(ensemble, prompts, GreedyConfig(), limits=[5, 3])
    scores = token_logprobs(ensemble, prompts, [hypothesis.token_ids for (hypothesis,) in found])
    assert [sum(each) for each in scores] == pytest.approx([h.logprob for (h,) in found], abs=1e-4)


@means
def test_what_cannot_be_is_refused(mean):
    with pytest.raises(UsageError, match="2 weights for 3 models"):
        Ensemble([TableModel(9)] * 3, mean, (1.0, 2.0))
    with pytest.raises(UsageError, match="hidden states"):
        search(Ensemble([TableModel(9)] * 2, mean), batch([[1]]), ContrastiveConfig(), limits=[3])
    broken = TableModel(9)
    broken.last[1] = math.nan
    with pytest.raises(DivergedError):
        search(Ensemble([TableModel(9), broken], mean), batch([[1]]), GreedyConfig(), limits=[3])
