"""Minimum Bayes risk, with sacreBLEU as the judge of likeness."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_generator import load, usable

from txtgen.errors import UsageError
from txtgen.generator import Generator
from txtgen.generator.consensus import CharacterNgrams, chrf

WORDS = st.lists(st.sampled_from(["the", "fox", " ", "\n", "春眠", "😀", "a", "ab", "runs over", "."]), max_size=9)
TEXTS = WORDS.map("".join) | st.text(max_size=15)


def their_chrf(hypothesis: str, reference: str) -> float:
    metrics = pytest.importorskip("sacrebleu.metrics.chrf")
    return metrics.CHRF().sentence_score(hypothesis, [reference]).score


@given(TEXTS, TEXTS)
def test_likeness_is_that_of_sacrebleu(hypothesis, reference):
    ours = chrf(CharacterNgrams(hypothesis), CharacterNgrams(reference))
    if hypothesis == reference:
        assert ours == 100.0
    else:
        assert ours == pytest.approx(their_chrf(hypothesis, reference), abs=1e-9)


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_the_most_alike_of_the_samples_come_first(tokenizer, kind):
    loaded = load(tokenizer, kind, init_std=0.2)
    generator, prompts = Generator(loaded, batch_size=5), usable(load(tokenizer, kind))[:3]
    options = {"strategy": "sample", "seed": 3, "max_new_tokens": 8, "temperature": 0.7}
    samples = generator.generate(prompts, num_return=7, **options)
    found = generator.generate(prompts, num_return=3, mbr={"candidates": 7}, **options)
    assert [(result.prompt_index, result.index) for result in found] == [(p, i) for p in range(3) for i in range(3)]
    moved = 0
    for number in range(3):
        of_this = [sample for sample in samples if sample.prompt_index == number]
        texts = [sample.text for sample in of_this]
        risk = [sum(100.0 if a == b else their_chrf(a, b) for b in texts) / len(texts) for a in texts]
        best = sorted(range(7), key=lambda place: -risk[place])[:3]
        results = found[number * 3 : number * 3 + 3]
        assert [result.token_ids for result in results] == [of_this[place].token_ids for place in best]
        assert [result.score for result in results] == pytest.approx([risk[place] for place in best])
        assert [result.logprob for result in results] == [of_this[place].logprob for place in best]
        moved += best[0] != 0
    assert moved


def test_what_is_chosen_depends_on_the_prompt_and_its_place_alone(tokenizer):
    loaded = load(tokenizer, dtype=torch.float64, init_std=0.2)
    options = {"strategy": "sample", "max_new_tokens": 6, "mbr": {"candidates": 6}}
    together = Generator(loaded, batch_size=16).generate(["the", "a dog", "the fox"], **options)
    assert len(together) == 3
    for batch_size in (1, 4):
        apart = Generator(loaded, batch_size=batch_size).generate(["the", "a dog", "the fox"], **options)
        assert [result.token_ids for result in apart] == [result.token_ids for result in together]
    assert list(Generator(loaded).stream("the", **options)) == [together[0].text]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mbr": {"candidates": 8}}, "use strategy sample"),
        ({"strategy": "sample", "mbr": {"candidates": 1}}, "mbr.candidates: expected a whole number"),
        ({"strategy": "sample", "mbr": 8}, "mbr: expected a section"),
        ({"strategy": "sample", "num_return": 9, "mbr": {"candidates": 8}}, "is 9, more than mbr.candidates 8"),
    ],
)
def test_refuses_what_makes_no_sense(tokenizer, options, words):
    with pytest.raises(UsageError, match=words):
        Generator(load(tokenizer)).generate("the", **options)
