import math
import random
from collections import Counter
from itertools import chain, product

import pytest
import torch
from decode_fakes import TableModel, batch, random_case
from test_contrastive import cases, prompt_batch

from txtgen.config.decoding import GreedyConfig, SampleConfig
from txtgen.config.decoding_values import DraftModel, DryPenalty, LengthDecay, LoopStop, PromptLookup, SequenceBias, Xtc
from txtgen.decode import PromptBatch, search, search_steps
from txtgen.decode.distribution import shape_distribution
from txtgen.decode.proposals import Lookup
from txtgen.decode.speculation import Texts
from txtgen.errors import UsageError

COMMON = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")
HISTORIES = {
    "frequency": {"frequency_penalty": 0.8, "presence_penalty": 0.5, "penalty_window": 3},
    "dry": {"dry": DryPenalty(multiplier=2.0, allowed_length=1, breakers=(), breaker_ids=((4,),))},
    "ends": {"min_length": 8, "exponential_decay_length_penalty": LengthDecay(start=4, factor=1.6)},
    "forced": {"forced_bos_token_id": 3, "forced_eos_token_id": (1,), "begin_suppress_tokens": (5, 6)},
    "runs": {"sequence_bias": (SequenceBias(token_ids=(2, 3), bias=4.0),), "bad_words_ids": ((7, 2), (3, 3, 3))},
    "source": {"encoder_repetition_penalty": 1.6, "encoder_no_repeat_ngram_size": 3},
    "loops": {"stop_on_loop": LoopStop(max_block=3, times=2)},
}


def kinds(number):
    return [PromptLookup(max_ngram=1 + number % 3, num_tokens=1 + number % 6), DraftModel(num_tokens=1 + number % 5)]


def said(found):
    return [[(h.token_ids, h.finish_reason, round(h.logprob, 4)) for h in row] for row in found]


def test_greedy_search_finds_the_same():
    taken = refused = 0
    for number in range(40):
        model, prompts, rules, limits, config = random_case(number)
        options = {key: getattr(config, key) for key in COMMON}
        arguments = {"limits": limits, "eos_ids": rules.eos_ids, "suppress": rules.suppress}
        expected = said(search(model, batch(prompts), GreedyConfig(**options), **arguments))
        draft = TableModel(model.vocabulary, number + number % 2, model.spread)  # half of them say the same
        for speculation in kinds(number):
            config = GreedyConfig(**options, speculation=speculation)
            found = search(model, batch(prompts), config, draft=draft, **arguments)
            assert said(found) == expected
            taken += sum(row[0].accepted for row in found)
            refused += sum(row[0].proposed - row[0].accepted for row in found)
    assert taken > 60
    assert refused > 60


@pytest.mark.parametrize("options", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("strategy", [GreedyConfig, SampleConfig])
def test_every_place_is_filtered_with_what_stands_before_it(options, strategy):
    """Few tokens and a model that likes to say the same again, so that proposals are taken and filters matter."""
    taken = changed = 0
    for number in range(8):
        model = TableModel(9, number, 1.0, eos_bonus={1: -1.0})
        prompts = batch([[3, 2, 3, 2], [5], [6, 7, 2, 6, 7]])
        arguments = {"limits": [14, 9, 20], "eos_ids": (1,), "suppress": (0,)}
        expected = said(search(model, prompts, strategy(**options), **arguments))
        changed += expected != said(search(model, prompts, strategy(), **arguments))
        config = strategy(**options, speculation=PromptLookup(num_tokens=5, max_ngram=2))
        found = search(model, prompts, config, **arguments)
        assert said(found) == expected
        taken += sum(row[0].accepted for row in found)
    assert taken > 5
    assert changed


def test_a_stop_string_ends_within_what_was_proposed():
    def stop(row, token_ids):
        return len(token_ids) > 5 and sum(token_ids) % 3 == row

    model = TableModel(30, 3)
    arguments = {"limits": [30] * 3, "stop": stop}
    expected = said(search(model, batch([[1], [2], [3]]), GreedyConfig(), **arguments))
    assert {row[0][1] for row in expected} == {"stop"}
    config = GreedyConfig(speculation=DraftModel(num_tokens=7))
    assert said(search(model, batch([[1], [2], [3]]), config, draft=model, **arguments)) == expected


def test_samples_are_the_same_where_proposals_are_sure():
    for number in range(20):
        model, prompts, rules, limits, _ = random_case(number)
        arguments = {"limits": limits, "eos_ids": rules.eos_ids}
        options = {"num_return": 3, "seed": number, "top_k": 3, "xtc": Xtc(probability=0.5, threshold=0.2)}
        expected = said(search(model, batch(prompts), SampleConfig(**options), **arguments))
        config = SampleConfig(**options, speculation=PromptLookup(max_ngram=1))
        assert said(search(model, batch(prompts), config, **arguments)) == expected


def quantile(freedom):
    """The 99.99th percentile of chi-square, by Wilson and Hilferty's approximation."""
    return freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6, "top_k": 3}, {"no_repeat_ngram_size": 1}, {"xtc": Xtc(threshold=0.3)}]
)
@pytest.mark.parametrize("spread", [0.0, 2.5])
def test_drafted_samples_are_distributed_as_plain_ones(options, spread):
    """Pearson's chi-square over all texts of three tokens, with a draft that knows nothing or is wrong."""
    model, count, length = TableModel(4, 1, 1.0), 3000, 3
    draft = TableModel(4, 99, spread)
    assert (draft.last[2].softmax(-1) - model.last[2].softmax(-1)).abs().sum() > 0.3
    config = SampleConfig(num_return=count, seed=3, speculation=DraftModel(num_tokens=2), **options)
    (found,) = search(model, batch([[2]]), config, limits=[length], draft=draft)
    drawn = Counter(hypothesis.token_ids for hypothesis in found)
    statistic, freedom = 0.0, -1
    for text in product(range(4), repeat=length):
        share = count * chance_of(model, [2], text, config)
        assert share or not drawn[text]
        if share:
            statistic += (drawn[text] - share) ** 2 / share
            freedom += 1
    assert statistic < quantile(freedom)
    accepted = sum(hypothesis.accepted for hypothesis in found) / sum(hypothesis.proposed for hypothesis in found)
    assert 0.05 < accepted < 0.9


def chance_of(model, prompt, text, config):
    """The probability that plain sampling says this."""
    chance = 1.0
    for place, token in enumerate(text):
        scores = model.logits([*prompt, *text[:place]])[None].clone()
        if config.no_repeat_ngram_size:
            scores[0, [*prompt, *text[:place]]] = -math.inf
        shaped = shape_distribution(scores, config).softmax(-1)[0, token]
        if config.xtc is not None:
            surely = shape_distribution(scores, config, torch.zeros(1)).softmax(-1)[0, token]
            shaped = (1 - config.xtc.probability) * shaped + config.xtc.probability * surely
        chance *= float(shaped)
    return chance


def test_the_same_draft_is_always_taken():
    model = TableModel(20, 5)
    config = SampleConfig(num_return=5, speculation=DraftModel(num_tokens=3))
    for row in search(model, batch([[1], [2, 3]]), config, limits=[17, 9], draft=model):
        for hypothesis in row:
            assert hypothesis.proposed == hypothesis.accepted > 5


def test_drafted_samples_do_not_depend_on_the_batch():
    model, draft = TableModel(30, 3, eos_bonus={1: 1.0}), TableModel(30, 4, 1.0)
    config = SampleConfig(seed=7, num_return=3, temperature=1.5, speculation=DraftModel(num_tokens=4))
    prompts, limits = [[1, 2], [3], [4, 5, 6, 7, 8], [1, 2]], [12, 30, 9, 5]

    def run(order):
        chosen = batch([prompts[index] for index in order])
        arguments = {"limits": [limits[index] for index in order], "prompt_indices": order, "draft": draft}
        return search(model, chosen, config, eos_ids=(1,), **arguments)

    together = run([0, 1, 2, 3])
    assert run([3, 1, 0, 2]) == [together[index] for index in (3, 1, 0, 2)]
    assert [run([index])[0] for index in range(4)] == together


def partly_of_one_mind():
    """A model and a draft that say the same in texts of tokens below 5, which stay such, and nearly never in others."""
    model, draft = TableModel(30, 3), TableModel(30, 3)
    draft.last[5:] += torch.randn(25, 30, generator=torch.Generator().manual_seed(0)) * 9
    model.last[:5, 5:] = draft.last[:5, 5:] = -math.inf
    model.last[5:, :5] = -math.inf
    return model, draft


def test_rows_take_what_they_can_whatever_others_do():
    """One row always says what was proposed, the other never does."""
    model, draft = partly_of_one_mind()
    config = GreedyConfig(speculation=DraftModel(num_tokens=4))
    found = search(model, batch([[1], [9]]), config, limits=[30, 30], draft=draft)
    assert found[0][0].accepted == found[0][0].proposed
    assert found[1][0].accepted < 5
    calls = model.rows_fed
    assert len(calls) > 25
    assert calls.count(2) <= 7, "the first row is done in a sixth of the calls, and leaves"


@pytest.mark.parametrize("strategy", [GreedyConfig, SampleConfig])
def test_a_row_whose_offers_wait_lags_by_more_than_another_row_has(strategy):
    """Near the greatest length of the first text little fits into a call, so that the second one keeps offers."""
    model, draft = partly_of_one_mind()
    prompts, limits = [[9] * 40, [1, 2], [9, 8]], [24, 62, 62]
    config = strategy(speculation=DraftModel(num_tokens=32))
    found = search(model, batch(prompts), config, limits=limits, draft=draft)
    for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        alone = search(model, batch([prompt]), config, limits=[limit], prompt_indices=[row], draft=draft)
        assert found[row] == alone[0]


def test_a_text_that_repeats_itself_takes_few_calls():
    model = TableModel(6, spread=0.0)
    model.last[torch.arange(6), (torch.arange(6) + 1) % 6] = 9.0
    config = GreedyConfig(speculation=PromptLookup(num_tokens=10))
    (found,) = search(model, batch([[0, 1, 2, 3, 4, 5, 0]]), config, limits=[45])[0]
    assert found.token_ids == tuple((1 + place) % 6 for place in range(45))
    assert len(model.rows_fed) == 5
    assert found.proposed == found.accepted


def slow_lookup(token_ids, longest, most):
    for size in range(min(longest, len(token_ids)), 0, -1):
        for end in range(len(token_ids) - 1, size - 1, -1):
            if token_ids[end - size : end] == token_ids[-size:]:
                found = token_ids[end:]
                return [found[place % len(found)] for place in range(most)]
    return []


def test_what_is_looked_up_equals_the_slow_way():
    choice, seen = random.Random(0), 0
    for _ in range(200):
        longest, most, copies = choice.randint(1, 4), choice.randint(1, 9), choice.randint(1, 2)
        prompts = [choice.choices(range(5), k=choice.randint(1, 9)) for _ in range(2)]
        sources = [choice.choices(range(7), k=choice.randint(1, 9)) for _ in prompts]
        has_source = choice.random() < 0.5
        rows = prompt_batch(prompts, sources if has_source else [None])
        lookup, texts = Lookup(PromptLookup(max_ngram=longest, num_tokens=most)), Texts(rows, copies, 30)
        lookup.begin(rows, copies, 30, 5)
        new = [[] for _ in range(2 * copies)]
        for _ in range(3):
            for row, tokens in enumerate(new):
                tokens += choice.choices(range(5), k=choice.randint(1, 4))
                texts.lengths[row] = len(prompts[row // copies]) + len(tokens)
                texts.token_ids[row, : texts.lengths[row]] = torch.tensor([*prompts[row // copies], *tokens])
            found = lookup.propose(texts, range(2 * copies), [most] * (2 * copies))
            for row, offers in enumerate(found):
                known = [*(sources[row // copies] if has_source else []), *prompts[row // copies], *new[row]]
                expected = slow_lookup(known, longest, most)
                while any(token > 4 for token in expected):
                    expected.pop()
                assert [offer.token_id for offer in offers] == expected
                seen += len(expected)
    assert seen > 1000


@pytest.mark.parametrize("kind", ["lookup", "same", "other"])
def test_both_architectures(tiny_model, kind):
    """Of real models, whose rounding differs where several tokens are read at once."""
    tiny_model.eval().double()
    other = TableModel(13, 3) if kind == "other" else tiny_model
    speculation = PromptLookup(max_ngram=2) if kind == "lookup" else DraftModel(num_tokens=3)
    taken = 0
    for prompts, sources, limits, eos_ids, _ in cases(tiny_model, 12):
        rows = prompt_batch(prompts, sources)
        for plain in (GreedyConfig(), SampleConfig(num_return=2)):
            if kind != "lookup" and isinstance(plain, SampleConfig):
                continue
            config = plain.model_copy(update={"speculation": speculation})
            found = search(tiny_model, rows, config, limits=limits, eos_ids=eos_ids, draft=other)
            expected = search(tiny_model, rows, plain, limits=limits, eos_ids=eos_ids)
            for mine, its in zip(chain(*found), chain(*expected), strict=True):
                assert (mine.token_ids, mine.finish_reason) == (its.token_ids, its.finish_reason)
                assert mine.logprob == pytest.approx(its.logprob, abs=1e-4)
                taken += mine.accepted
    assert taken > (20 if kind == "same" else 0)


def test_prompts_read_in_both_directions_stay_so(tiny_model):
    """What is read again are new tokens alone."""
    tiny_model.eval().double()
    if tiny_model.encoder is not None:
        pytest.skip("a decoder's prompts")
    for prompts, _, limits, _, _ in cases(tiny_model, 6):
        rows = batch(prompts)
        rows = PromptBatch(rows.input_ids, rows.lengths, bidirectional=torch.arange(len(prompts)) % 2 == 0)
        config = GreedyConfig(speculation=DraftModel(num_tokens=2))
        found = search(tiny_model, rows, config, limits=limits, draft=tiny_model)
        expected = search(tiny_model, rows, GreedyConfig(), limits=limits)
        assert [h.token_ids for (h,) in found] == [h.token_ids for (h,) in expected]
        assert all(h.proposed == h.accepted for (h,) in found)


def test_several_tokens_are_told_at_once():
    model = TableModel(20, 5)
    config = GreedyConfig(speculation=DraftModel(num_tokens=3))
    steps = search_steps(model, batch([[1], [2]]), config, limits=[9, 9], draft=model)
    told = {0: [], 1: []}
    sizes = []
    while True:
        try:
            decided = next(steps)
        except StopIteration as end:
            found = end.value
            break
        assert not torch.is_inference_mode_enabled()
        sizes.append(len(decided))
        for result, token in decided:
            told[result].append(token)
    assert sizes == [2, 8, 8]
    assert [tuple(told[row]) for row in (0, 1)] == [h.token_ids for (h,) in found]


def test_a_draft_must_be_there():
    with pytest.raises(UsageError, match="no draft model"):
        search(TableModel(9), batch([[1]]), GreedyConfig(speculation=DraftModel()), limits=[3])
