"""`Generator.score`: texts are scored as the model would write them."""

import math

import pytest
from test_generator import STRATEGIES, load, scripted, spaced_tokenizer, usable

from txtgen.config.chat_formats import TokensChatFormat
from txtgen.errors import UsageError
from txtgen.generator import Generator


@pytest.fixture(params=["decoder", "encoder_decoder"])
def loaded(request, tokenizer):
    return load(tokenizer, request.param)


@pytest.mark.parametrize("options", STRATEGIES)
def test_equals_what_generation_says_of_its_results(loaded, options):
    """Wherever the tokenizer writes the text in the tokens that were generated."""
    generator, compared = Generator(loaded, batch_size=3), 0
    options = {**options, "bad_words_ids": [[token] for token in sorted(loaded.tokenizer.byte_ids)]}
    results = generator.generate(usable(loaded) * 3, max_new_tokens=6, **options)
    for end in (True, False):
        of_this = [result for result in results if (result.finish_reason == "eos") == end]
        asked = [usable(loaded)[result.prompt_index % len(usable(loaded))] for result in of_this]
        scores = generator.score([result.text for result in of_this], asked, end=end) if of_this else []
        for result, score in zip(of_this, scores, strict=True):
            assert score.prompt_token_ids == result.prompt_token_ids
            if score.token_ids == result.token_ids:
                assert score.logprob == pytest.approx(result.logprob, abs=1e-4)
                compared += 1
    assert compared > 5


def test_scores_say_what_they_are(loaded):
    tokenizer = loaded.tokenizer
    generator = Generator(loaded, batch_size=2)
    texts = ["the dog", " runs over 春 😀", "", "x", "the quick brown fox jumps"]
    scores = generator.score(texts, "the fox")
    for index, (text, score) in enumerate(zip(texts, scores, strict=True)):
        assert (score.index, score.text, score.prompt) == (index, text, "the fox")
        assert list(score.token_ids) == [*tokenizer.encode(text), tokenizer.special.eos_id]
        assert list(score.tokens) == tokenizer.pieces(score.token_ids)
        assert len(score.token_logprobs) == len(score.token_ids)
        assert max(score.token_logprobs) <= 0
        assert score.logprob == pytest.approx(sum(score.token_logprobs))
        assert score.perplexity == pytest.approx(math.exp(-score.logprob / len(score.token_ids)))
    for score, whole in zip(generator.score(texts[:2], "the fox", end=False), scores, strict=False):
        assert score.token_logprobs == pytest.approx(whole.token_logprobs[:-1], abs=1e-5)
    alone = Generator(loaded, independent=True).score(texts, ["the fox"] * 5)
    assert [score.logprob for score in alone] == pytest.approx([score.logprob for score in scores], abs=1e-4)
    assert generator.score("the dog", "the fox") == generator.score(["the dog"], ["the fox"])
    assert generator.score([], "the fox") == []


def test_a_text_without_a_prompt_stands_after_the_begin_token(tokenizer):
    generator = Generator(load(tokenizer))
    score = generator.score("the dog runs")[0]
    assert score.prompt_token_ids == (tokenizer.special.bos_id,)
    assert score.prompt == ""
    assert score.token_ids == (*tokenizer.encode("the dog"), *tokenizer.encode(" runs"), tokenizer.special.eos_id)
    rest = generator.score(" runs", "the dog")[0]
    assert rest.token_logprobs == pytest.approx(score.token_logprobs[-len(rest.token_ids) :], abs=1e-4)


def test_a_text_goes_on_from_its_prompt_without_a_space_of_the_tokenizer():
    tokenizer = spaced_tokenizer()
    assert tokenizer.leading_space
    generator = Generator(load(tokenizer))
    for prompt, text in [("the", " fox runs"), ("the fo", "x runs"), ("", "fox runs")]:
        score = generator.score(text, prompt, end=False)[0]
        assert tokenizer.decode([*score.prompt_token_ids, *score.token_ids]) == prompt + text
        said = scripted(tokenizer, [*score.token_ids, tokenizer.special.eos_id]).generate(prompt)[0]
        assert (said.text, said.token_ids[:-1]) == (text, score.token_ids)


def test_a_chat_model_scores_replies(tokenizer):
    generator = Generator(load(tokenizer, chat=TokensChatFormat()))
    reply = generator.score("the dog", "who runs?")[0]
    expected = generator.generate("who runs?", max_new_tokens=1)[0].prompt_token_ids
    assert reply.prompt_token_ids == expected
    turns = [{"role": "user", "content": "who runs?"}]
    assert generator.score("the dog", [turns])[0].token_logprobs == reply.token_logprobs
    assert generator.score("the dog", turns)[0].token_logprobs == reply.token_logprobs
    assert generator.score("the dog", "who runs?", raw=True)[0].prompt_token_ids != expected
    assert generator.score("the dog")[0].prompt_token_ids == (tokenizer.special.bos_id,)


@pytest.mark.parametrize(
    ("kind", "targets", "prompts", "options", "words"),
    [
        ("encoder_decoder", ["a"], None, {}, "there is no source"),
        ("encoder_decoder", ["a"], "", {}, "an empty prompt"),
        ("decoder", ["a", "b"], ["a", "b", "c"], {}, "3 prompts and 2 texts"),
        ("decoder", ["fine", "the " * 90], None, {}, "and 59 are what the model can read there; text 2"),
        ("decoder", ["fine"], "the " * 90, {}, "no room"),
        ("decoder", ["fine", ""], None, {"end": False}, "no tokens to score; text 2"),
        ("decoder", ["fine", "\ud800"], None, {}, "U\\+D800.*text 2"),
    ],
)
def test_refuses_what_cannot_be_scored(tokenizer, kind, targets, prompts, options, words):
    with pytest.raises(UsageError, match=words):
        Generator(load(tokenizer, kind)).score(targets, prompts, **options)
