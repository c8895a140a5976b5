"""A model beside the one that generates."""

import pytest
from test_generator import load, usable

from txtgen.config.ensemble import Mixture
from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import CheckpointError, UsageError
from txtgen.generator import Generator
from txtgen.tokenizer import train_sentencepiece

DRAFTED = {"speculation": {"kind": "draft", "num_tokens": 3}}


@pytest.fixture(scope="module")
def other_tokenizer():
    return train_sentencepiece(SentencePieceConfig(vocab_size=320), ["a few other words, all of them small\n"] * 9)[0]


@pytest.fixture(params=["decoder", "encoder_decoder"])
def pair(request, tokenizer):
    """A model and a smaller one with the same tokens."""
    return load(tokenizer, request.param), load(tokenizer, request.param, seed=1, d_model=8, num_heads=1)


@pytest.mark.parametrize("native", ["off", "auto"])
def test_a_draft_changes_no_text(pair, native):
    loaded, small = pair
    prompts, options = usable(loaded), {"max_new_tokens": 14, "stop": [" the q", "ow"], "no_repeat_ngram_size": 3}
    expected = Generator(loaded, native=native).generate(prompts, **options)
    for draft in (small, loaded):
        generator = Generator(loaded, native=native, draft=draft)
        found = generator.generate(prompts, **options, **DRAFTED)
        assert [(g.token_ids, g.text, g.finish_reason) for g in found] == [
            (g.token_ids, g.text, g.finish_reason) for g in expected
        ]
        assert sum(g.proposed for g in found) > 20
        if draft is loaded:
            assert sum(g.accepted for g in found) > 20
        assert "".join(generator.stream(prompts[0], **options, **DRAFTED)) == expected[0].text
        assert not any(g.proposed for g in generator.generate(prompts, **options)), "nobody asked for it"


def test_a_draft_that_is_not_there_is_told_when_it_is_asked_for(pair):
    """Before the first result is: training asks early, and looks at results late."""
    with pytest.raises(UsageError, match="there is no draft model"):
        Generator(pair[0]).iterate(usable(pair[0]), **DRAFTED)


def test_samples_that_were_drafted_do_not_depend_on_the_batch(pair):
    loaded, small = pair
    for each in pair:
        each.model.double()  # rounding decides nothing
    prompts, options = usable(loaded), {"strategy": "sample", "num_return": 2, "max_new_tokens": 12, **DRAFTED}
    together = Generator(loaded, draft=small).generate(prompts, **options)
    alone = Generator(loaded, draft=small, independent=True).generate(prompts, **options)
    assert [g.token_ids for g in together] == [g.token_ids for g in alone]


def test_an_expected_text_is_spelled_in_full(pair):
    """Constraints follow rows that are unequally long."""
    pytest.importorskip("llguidance")
    loaded, small = pair
    options = {"regex": "the (quick|lazy) fox,( dog| cat){2,4}\\.", "max_new_tokens": 30}
    for kind in ({"kind": "prompt_lookup"}, {"kind": "draft"}):
        for strategy in ({}, {"strategy": "sample", "num_return": 3}):
            generator = Generator(loaded, draft=small)
            found = generator.generate(usable(loaded), **options, **strategy, speculation=kind)
            assert all(g.text.startswith("the ") and g.text.endswith(".") for g in found)
            if kind["kind"] == "prompt_lookup" or not strategy:
                expected = generator.generate(usable(loaded), **options, **strategy)
                assert [g.token_ids for g in found] == [g.token_ids for g in expected]
            assert sum(g.proposed for g in found)


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_a_draft_that_does_not_fit_is_refused(tokenizer, other_tokenizer, kind):
    loaded = load(tokenizer, kind)
    other = "encoder_decoder" if kind == "decoder" else "decoder"
    with pytest.raises(CheckpointError, match=f"architecture: {other}, not {kind}"):
        Generator(loaded, draft=load(tokenizer, other))
    with pytest.raises(CheckpointError, match="the draft model has another tokenizer"):
        Generator(loaded, draft=load(other_tokenizer, kind))
    with pytest.raises(CheckpointError, match=f"vocabulary size: {len(tokenizer) + 8}, not {len(tokenizer)}"):
        Generator(loaded, draft=load(tokenizer, kind, vocab_size=len(tokenizer) + 8))


def test_a_draft_reads_all_that_may_become_of_a_prompt(tokenizer):
    generator = Generator(load(tokenizer), draft=load(tokenizer, max_length=20))
    assert len(generator.generate("the", max_new_tokens=9, **DRAFTED)) == 1
    with pytest.raises(UsageError, match="prompt 2; lower max_new_tokens"):
        generator.generate(["the", "the quick brown fox jumps over the moon"], max_new_tokens=15, **DRAFTED)
    assert generator.generate("the", max_new_tokens=40), "nobody asked for it"
    with pytest.raises(UsageError, match="no draft model"):
        Generator(load(tokenizer)).generate("the", **DRAFTED)


@pytest.mark.parametrize("options", [{}, {"strategy": "beam", "beam_size": 3}, {"strategy": "sample", "seed": 3}])
def test_models_decide_together(pair, options):
    """Beside an equal model one says what it says alone; beside another one, what weighs more."""
    loaded, small = pair
    prompts, options = usable(loaded), {"max_new_tokens": 12, **options}
    alone, other = (Generator(each).generate(prompts, **options) for each in pair)
    for mean in ("linear", "log_linear"):
        same = Generator(loaded, ensemble=[loaded], mixture=Mixture(mean=mean)).generate(prompts, **options)
        assert [g.token_ids for g in same] == [g.token_ids for g in alone]
        for weights, expected in (((1e6, 1e-6), alone), ((1e-6, 1e6), other)):
            mixture = Mixture(mean=mean, weights=weights)
            found = Generator(loaded, ensemble=[small], mixture=mixture).generate(prompts, **options)
            assert [g.token_ids for g in found] == [g.token_ids for g in expected]
    generator = Generator(loaded, ensemble=[small])
    mixed = generator.generate(prompts, **options)
    assert mixed[0].logprob != pytest.approx(alone[0].logprob, abs=1e-3)
    assert "".join(generator.stream(prompts[0], **options)) == mixed[0].text


def test_a_member_must_fit(tokenizer, other_tokenizer):
    with pytest.raises(CheckpointError, match="the ensemble model has another tokenizer"):
        Generator(load(tokenizer), ensemble=[load(tokenizer), load(other_tokenizer)])
    generator = Generator(load(tokenizer), ensemble=[load(tokenizer, max_length=20)])
    with pytest.raises(UsageError, match="the ensemble model reads 20 tokens at most"):
        generator.generate("the", max_new_tokens=30)
    with pytest.raises(UsageError, match="the ensemble model reads 20 tokens at most"):
        generator.score("the quick brown fox jumps over the moon and the old horse")
