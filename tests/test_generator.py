import io
import json
import logging
from dataclasses import asdict
from random import Random

import pytest
import sentencepiece
import torch
from torch import nn

from txtgen.chat import encode_pieces, render
from txtgen.checkpoint import LoadedModel
from txtgen.config.chat_formats import TemplateChatFormat, TextChatFormat, TokensChatFormat
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.decoding import GreedyConfig, SampleConfig
from txtgen.config.decoding_values import SequenceBias
from txtgen.config.loader import config_from_tree
from txtgen.config.model import (
    AlibiPosition,
    DecoderConfig,
    EncoderDecoderConfig,
    RotaryPosition,
    T5RelativePosition,
)
from txtgen.errors import DivergedError, ResourceError, UsageError
from txtgen.generator import Generator, in_order
from txtgen.generator.settings import resolve_settings
from txtgen.model import build_model, init_weights
from txtgen.tokenizer import SentencePieceTokenizer

PROMPTS = ["the quick", "", "the lazy dog runs over the moon.\n", "née 春眠不覺曉 😀", "a", "the old horse"]
STRATEGIES = [
    {},
    {"strategy": "beam", "beam_size": 3, "num_return": 2},
    {"strategy": "sample", "seed": 4, "num_return": 2, "top_p": 0.9},
    {"strategy": "sample", "seed": 5, "num_return": 2, "speculation": {"kind": "prompt_lookup", "max_ngram": 1}},
    {"strategy": "beam_sample", "seed": 3, "beam_size": 3, "num_return": 2, "temperature": 1.5},
    {"strategy": "contrastive"},
]


def load(tokenizer, kind="decoder", chat=None, generation=None, seed=0, dtype=torch.float32, **settings):
    """A small model with random weights; in float64 rounding does not decide what is drawn, on any processor."""
    size = {
        "d_model": 16,
        "num_heads": 2,
        "d_ff": 32,
        "max_length": 60,
        "init_std": 0.5,
        "vocab_size": len(tokenizer),
    }
    size |= settings
    if kind == "decoder":
        config = DecoderConfig(num_layers=2, **size)
    else:
        config = EncoderDecoderConfig(num_encoder_layers=1, num_decoder_layers=2, max_source_length=50, **size)
    model = build_model(config)
    init_weights(model, seed)
    model.to(dtype)
    described = CheckpointConfig(model=config, chat=chat, generation=generation or GreedyConfig())
    return LoadedModel(model, tokenizer, None, described)


class Scripted(nn.Module):
    """Says the same tokens after every prompt, one of them per step."""

    def __init__(self, token_ids, vocab_size, max_length=100):
        super().__init__()
        self.config = DecoderConfig(vocab_size=vocab_size, max_length=max_length)
        self.token_ids = token_ids
        self.weight = nn.Parameter(torch.zeros(1))

    def logits(self, places):
        ids = torch.tensor([self.token_ids[min(place, len(self.token_ids) - 1)] for place in places])
        return nn.functional.one_hot(ids, self.config.vocab_size).float() * 50

    def prefill(self, prompt, capacity):
        state = Places([0] * len(prompt))
        return self.logits(state.places), state

    def extend(self, tokens, state):
        state.places = [place + 1 for place in state.places]
        return self.logits(state.places)[:, None]


class Places:
    def __init__(self, places):
        self.places = places

    def select(self, rows):
        self.places = [self.places[row] for row in rows.tolist()]


def scripted(tokenizer, token_ids, **settings):
    model = Scripted(token_ids, len(tokenizer), **settings)
    return Generator(LoadedModel(model, tokenizer, None, CheckpointConfig(model=model.config)))


@pytest.fixture(params=["decoder", "encoder_decoder"])
def loaded(request, tokenizer):
    return load(tokenizer, request.param)


def usable(loaded):
    return [prompt for prompt in PROMPTS if prompt or loaded.config.model.kind == "decoder"]


# -- what comes out


@pytest.mark.parametrize("options", STRATEGIES)
def test_results_say_what_they_are(loaded, options):
    tokenizer, prompts = loaded.tokenizer, usable(loaded)
    copies = options.get("num_return", 1)
    results = Generator(loaded).generate(prompts, max_new_tokens=12, **options)
    assert [(r.prompt_index, r.index) for r in results] == [(p, i) for p in range(len(prompts)) for i in range(copies)]
    for result in results:
        special, ids = tokenizer.special, tokenizer.encode(prompts[result.prompt_index])
        decoder = loaded.config.model.kind == "decoder"
        assert result.prompt == prompts[result.prompt_index]
        assert list(result.prompt_token_ids) == ([special.bos_id, *ids] if decoder else [*ids, special.eos_id])
        assert result.text == str(result) == tokenizer.decode(result.token_ids)
        assert result.finish_reason == ("eos" if result.token_ids[-1] == special.eos_id else "length")
        assert len(result.token_ids) == 12 or result.finish_reason == "eos"
        assert json.loads(json.dumps(asdict(result)))["text"] == result.text


@pytest.mark.parametrize("options", STRATEGIES)
def test_logprob_is_the_teacher_forced_score(loaded, options):
    for result in Generator(loaded).generate(usable(loaded), max_new_tokens=8, **options):
        special = loaded.tokenizer.special
        source = {}
        before = list(result.prompt_token_ids)
        if loaded.config.model.kind != "decoder":
            source, before = {"source_ids": torch.tensor([before])}, [special.bos_id]
        ids = torch.tensor([[*before, *result.token_ids]])
        positions = torch.arange(ids.shape[1] - 1)[None]
        with torch.no_grad():
            logits = loaded.model(ids[:, :-1], positions, torch.ones_like(ids[:, :-1]), **source)
        log_probs = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[0, len(before) - 1 :, 0]
        assert result.logprob == pytest.approx(float(log_probs.sum()), abs=1e-3)


@pytest.mark.parametrize("options", STRATEGIES)
def test_machine_code_writes_the_same(loaded, options):
    slow = Generator(loaded, native="off").generate(usable(loaded), max_new_tokens=12, **options)
    quick = Generator(loaded, native="auto").generate(usable(loaded), max_new_tokens=12, **options)
    same_texts(quick, slow)


def same_texts(found, expected):
    def exact(results):
        return [asdict(result) | {"logprob": 0, "score": 0} for result in results]

    assert exact(found) == exact(expected)
    assert [result.score for result in found] == pytest.approx([result.score for result in expected], abs=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch about its own parts
def test_compiled_steps_write_the_same(loaded, caplog):
    torch._dynamo.reset()
    slow, quick = Generator(loaded), Generator(loaded, compile=True)
    for options in STRATEGIES:
        prompts = usable(loaded)
        same_texts(*(each.generate(prompts, max_new_tokens=12, **options) for each in (quick, slow)))
    assert quick.compiles
    assert not [record for record in caplog.records if record.name.startswith("txtgen")]


def test_many_steps_ahead_are_compiled_where_that_pays(tokenizer, monkeypatch):
    monkeypatch.setattr("txtgen.model.compiling.PAYS_ON", ("cpu",))
    monkeypatch.setattr("txtgen.model.compiled.PAYS_FROM", 24)
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    loaded = load(tokenizer)
    slow, quick = Generator(loaded), Generator(loaded, compile="auto", draft=load(tokenizer, seed=1), batch_size=2)
    same_texts(quick.generate(PROMPTS[:4], max_new_tokens=11), slow.generate(PROMPTS[:4], max_new_tokens=11))
    quick.plan(dict(enumerate(PROMPTS[:4])), max_new_tokens=12, speculation={"kind": "prompt_lookup"})
    assert not quick.compiles
    assert quick.plan(dict(enumerate(PROMPTS[:4])), max_new_tokens=12).steps == 24
    assert quick.compiles
    same_texts(quick.generate(PROMPTS[:4], max_new_tokens=11), slow.generate(PROMPTS[:4], max_new_tokens=11))


@pytest.mark.parametrize("options", STRATEGIES)
@pytest.mark.parametrize("batching", [{"batch_size": 1}, {"batch_size": 2}, {"independent": True}])
def test_batches_do_not_matter(loaded, options, batching):
    together = Generator(loaded).generate(usable(loaded), max_new_tokens=10, **options)
    apart = Generator(loaded, **batching).generate(usable(loaded), max_new_tokens=10, **options)
    assert [r.token_ids for r in apart] == [r.token_ids for r in together]
    assert [r.score for r in apart] == pytest.approx([r.score for r in together], abs=1e-4)


def test_independent_results_are_exact(tokenizer):
    generator = Generator(load(tokenizer), independent=True)
    options = {"strategy": "sample", "max_new_tokens": 10}
    together = generator.generate(PROMPTS, num_return=3, **options)
    assert generator.generate(PROMPTS[:1], num_return=1, **options) == together[:1]


def test_results_come_in_order_as_batches_finish(tokenizer, monkeypatch):
    generator = Generator(load(tokenizer), batch_size=2)
    prompts = ["the " * (number * 7 % 11) for number in range(70)]
    expected = generator.generate(prompts, max_new_tokens=2)
    sizes = []
    search = generator._search

    def counted(batch, decoding):
        sizes.append(len(batch))
        return search(batch, decoding)

    monkeypatch.setattr(generator, "_search", counted)
    results = generator.iterate(prompts, max_new_tokens=2)
    assert not sizes, "nothing is generated before it is asked for"
    first = next(results)
    assert sum(sizes) < len(prompts), "the first results do not wait for the last prompt"
    assert [first, *results] == expected
    assert [r.prompt_index for r in expected] == list(range(70))


def test_batches_keep_to_their_tokens(tokenizer):
    generator = Generator(load(tokenizer), batch_size=5, batch_tokens=60)
    prompts = {number: "the " * (number * 7 % 11) for number in range(200)}
    plan = generator.plan(prompts, max_new_tokens=4)
    assert sorted(prompt.number for batch in plan.batches for prompt in batch) == list(range(200))
    widths = [max(len(prompt.token_ids) + prompt.limit for prompt in batch) for batch in plan.batches]
    sizes = [len(batch) for batch in plan.batches]
    assert max(sizes) == 5
    assert min(sizes) < 5
    assert all(size == 1 or size * width <= 60 for size, width in zip(sizes, widths, strict=True))
    sampled = generator.plan(prompts, max_new_tokens=4, strategy="sample", num_return=2)
    assert max(len(batch) for batch in sampled.batches) == 2


def test_what_was_done_before_changes_no_batch(tokenizer):
    generator = Generator(load(tokenizer), batch_size=2)
    plan = generator.plan({number: "the " * (number % 5) for number in range(200)}, max_new_tokens=2)
    straight = [generator.complete(batch, plan.decoding) for batch in plan.batches]
    for done in ((), range(64), range(7, 200, 3)):
        left = plan.without(done)
        found = [generator.complete(batch, plan.decoding) for batch in left.batches]
        assert found == [results for results in straight if not results.keys() <= set(done)]
    assert len(plan.without(range(64)).batches) == 68
    assert [results[0].prompt_index for results in in_order(straight)] == list(range(200))


def test_no_prompt_no_result(tokenizer):
    assert Generator(load(tokenizer)).generate([]) == []


def test_a_single_prompt_need_not_be_a_list(tokenizer):
    generator = Generator(load(tokenizer, chat=TokensChatFormat()))
    assert generator.generate("hi", max_new_tokens=3) == generator.generate(["hi"], max_new_tokens=3)
    conversation = [{"role": "user", "content": "hi"}]
    assert generator.generate(conversation, max_new_tokens=3) == generator.generate([conversation], max_new_tokens=3)


def test_textless_tokens_are_never_generated(tokenizer):
    """Padding, beginning, roles, and rows of the output layer without a token; but for the end token."""
    loaded = load(tokenizer, vocab_size=len(tokenizer) + 60, init_std=0.02)
    results = Generator(loaded).generate("", strategy="sample", num_return=40, max_new_tokens=50)
    seen = {token for result in results for token in result.token_ids}
    assert len(seen) > 150
    assert max(seen) < len(tokenizer)
    assert {token for token in seen if not tokenizer.token_bytes(token)} == {tokenizer.special.eos_id}


def test_dropout_is_off_while_generating_and_back_on_afterwards(tokenizer):
    loaded = load(tokenizer, dropout=0.5)
    generator = Generator(loaded)
    expected = generator.generate(PROMPTS, max_new_tokens=5)
    loaded.model.train()
    assert generator.generate(PROMPTS, max_new_tokens=5) == expected
    assert "".join(generator.stream(PROMPTS[0], max_new_tokens=5)) == expected[0].text
    assert loaded.model.training


def test_the_defaults_of_the_checkpoint_count(tokenizer):
    loaded = load(tokenizer, generation=SampleConfig(num_return=3, max_new_tokens=4))
    assert [len(r.token_ids) for r in Generator(loaded).generate("the")] == [4, 4, 4]
    assert "".join(Generator(loaded).stream("the")) == Generator(loaded).generate("the")[0].text


# -- words and tokens


def runs(token_ids, length):
    """The runs of so many tokens."""
    return {tuple(token_ids[start : start + length]) for start in range(len(token_ids) - length + 1)}


@pytest.mark.parametrize("strategy", ["greedy", "beam", "sample"])
def test_a_bad_word_is_not_generated(tokenizer, strategy):
    said = [*tokenizer.encode(" fox runs over the moon"), tokenizer.special.eos_id]
    generator = scripted(tokenizer, said)
    assert "fox" in generator.generate("the", strategy=strategy)[0].text
    result = generator.generate("the", strategy=strategy, bad_words="fox")[0]
    assert "fox" not in result.text
    for text in ("fox", " fox"):
        ids = tuple(tokenizer.encode(text))
        assert ids not in runs(result.token_ids, len(ids))


def test_bad_words_are_all_looked_for_in_random_texts(tokenizer):
    generator = Generator(load(tokenizer, init_std=0.02))
    options = {"strategy": "sample", "num_return": 20, "max_new_tokens": 40}
    free = generator.generate("the", **options)
    words = [" lazy", "runs over", " f"]
    spellings = [tuple(tokenizer.encode(text)) for word in words for text in (word, f" {word}") if text[:2] != "  "]
    pairs = [list(free[number].token_ids[number : number + 2]) for number in range(10)]
    bound = generator.generate("the", bad_words=words, bad_words_ids=pairs, **options)
    unwanted = [*spellings, *map(tuple, pairs)]
    assert any(ids in runs(result.token_ids, len(ids)) for ids in unwanted for result in free)
    assert not any(ids in runs(result.token_ids, len(ids)) for ids in unwanted for result in bound)


@pytest.mark.parametrize("text", ["q", "oo"])
def test_a_biased_text_is_biased_at_the_beginning_and_after_a_space(tokenizer, text):
    generator = Generator(load(tokenizer, init_std=0.02))
    options = {"strategy": "sample", "num_return": 30, "max_new_tokens": 30}
    spellings = [tokenizer.encode(text), tokenizer.encode(f" {text}")]
    found = generator.generate("the", sequence_bias=[{"text": text, "bias": 6.0}], **options)
    bias = [{"token_ids": ids, "bias": 6.0} for ids in spellings]
    assert found == generator.generate("the", sequence_bias=bias, **options)
    for ids in spellings:
        assert any(tuple(ids) in runs(result.token_ids, len(ids)) for result in found)
    free = generator.generate("the", **options)
    assert sum(r.text.count(text) for r in found) > 2 * sum(r.text.count(text) for r in free)


def test_breakers_are_the_tokens_that_hold_a_text_and_its_spellings(tokenizer):
    """Also after a space, and of several tokens; those that only share a letter with it are none."""
    loaded = load(tokenizer)
    for text in ("\n", "o", "er", "😀", "dog the"):
        dry = resolve_settings(loaded, {"dry": {"multiplier": 1, "breakers": text, "breaker_ids": [[7, 8]]}}).dry
        single = {run[0] for run in dry.breaker_ids if len(run) == 1}
        assert single == {token for token in range(len(tokenizer)) if text.encode() in tokenizer.token_bytes(token)}
        spelled = {tuple(tokenizer.encode(one)) for one in (text, f" {text}") if not text.isspace()}
        runs = {run for run in dry.breaker_ids if len(run) > 1}
        assert runs == {run for run in spelled if len(run) > 1} | {(7, 8)}
        assert dry.breakers == ()
    assert tokenizer.encode("\n")[0] in {run[0] for run in dry_defaults(loaded)}


def dry_defaults(loaded):
    return resolve_settings(loaded, {"dry": {"multiplier": 1}}).dry.breaker_ids


def test_dry_ends_a_loop_but_not_before_a_breaker(tokenizer):
    """The scripted model says the same for ever; what it is kept from saying comes next best, the first token."""
    line = tokenizer.encode(" the fox runs.\n")
    generator = scripted(tokenizer, line * 4)
    plain = generator.generate("a", max_new_tokens=len(line) * 4)[0]
    assert plain.token_ids == tuple(line * 4)
    broken = generator.generate("a", max_new_tokens=len(line) * 4, dry={"multiplier": 100, "allowed_length": 1})[0]
    assert broken.token_ids[: len(line) + 1] == (*tuple(line), line[0])
    assert broken.token_ids[len(line) + 1] != line[1]


def test_a_token_that_is_never_generated_may_be_forced(tokenizer):
    """As the target language, which stands for no text."""
    generator = Generator(load(tokenizer, "encoder_decoder"))
    role = tokenizer.control_ids["<|user|>"]
    for options in STRATEGIES:
        forced = generator.generate("the", forced_bos_token_id=role, max_new_tokens=6, **options)
        assert {result.token_ids[0] for result in forced} == {role}
        assert not any(role in result.token_ids[1:] for result in forced)
    ended = generator.generate("the", forced_eos_token_id=tokenizer.special.eos_id, max_new_tokens=6, min_new_tokens=6)
    assert (len(ended[0].token_ids), ended[0].finish_reason) == (6, "eos")


def test_tokens_of_different_vocabularies_are_not_compared(tokenizer):
    loaded = load(tokenizer, "encoder_decoder")
    generator = Generator(LoadedModel(loaded.model, tokenizer, tokenizer, loaded.config))
    for option in ({"encoder_repetition_penalty": 1.5}, {"encoder_no_repeat_ngram_size": 2}):
        with pytest.raises(UsageError, match="vocabularies of their own"):
            generator.generate("the", **option)


def test_texts_in_the_defaults_of_the_checkpoint_count(tokenizer):
    bias = SequenceBias(text="moon", bias=-3.0)
    generation = SampleConfig(max_new_tokens=9, bad_words=("fox",), sequence_bias=(bias,), seed=5)
    described = CheckpointConfig(model=load(tokenizer).model.config, generation=generation)
    again = config_from_tree(CheckpointConfig, described.plain())
    assert again == described
    plain, told = load(tokenizer, init_std=0.02), load(tokenizer, generation=again.generation, init_std=0.02)
    options = {"strategy": "sample", "max_new_tokens": 9, "seed": 5, "bad_words": "fox"}
    expected = Generator(plain).generate("the", sequence_bias=[{"text": "moon", "bias": -3.0}], **options)
    assert Generator(told).generate("the") == expected


# -- independence

MIXTURES = [
    {},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_length": 9},
    {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2, "min_new_tokens": 3},
    {"bad_words": ["the", "fox"], "sequence_bias": [{"text": "moon", "bias": 2.0}], "renormalize_logits": True},
    {"exponential_decay_length_penalty": {"start": 2, "factor": 1.3}, "begin_suppress_tokens": [30, 31, 32]},
    {"presence_penalty": 0.5, "frequency_penalty": 0.7, "penalty_window": 4, "dry": {"multiplier": 2.0}},
    {"forced_bos_token_id": 40, "forced_eos_token_id": 3, "suppress_tokens": [50, 51]},
    {"regex": "[a-z ]{3,9}[0-9]?"},
    {"prefix": "th", "bad_words": ["y", "en", "é"], "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("number", range(3 * len(MIXTURES)))
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_a_result_depends_on_its_prompt_and_place_alone(tokenizer, kind, number):
    """Not on what else is in the batch, on its size or on when a neighbour ends."""
    loaded, choice = load(tokenizer, kind, dtype=torch.float64), Random(number)
    prompts = [choice.choice(usable(loaded)) for _ in range(choice.randint(2, 7))]
    strategy = STRATEGIES[number % 3]
    options = {"max_new_tokens": choice.randint(3, 10), **strategy, **MIXTURES[number // 3]}
    copies = options.get("num_return", 1)
    results = Generator(loaded, batch_size=choice.randint(1, 8)).generate(prompts, **options)
    assert [(r.prompt_index, r.index) for r in results] == [(p, i) for p in range(len(prompts)) for i in range(copies)]
    assert all(
        r.finish_reason == ("eos" if r.token_ids[-1] == loaded.tokenizer.special.eos_id else "length") for r in results
    )
    place = choice.randrange(len(prompts))
    others = [choice.choice(usable(loaded)) for _ in range(choice.randint(place, 9))]
    others.insert(place, prompts[place])
    again = Generator(loaded, batch_size=choice.randint(1, 8)).generate(others, **options)
    expected = [r.token_ids for r in results if r.prompt_index == place]
    assert [r.token_ids for r in again if r.prompt_index == place] == expected
    if options.get("strategy") != "sample":
        alone = Generator(loaded).generate(prompts[place], **options)
        assert [r.token_ids for r in alone] == expected, "nor on its place, where nothing is drawn"


@pytest.mark.parametrize("native", ["off", "auto"])
@pytest.mark.parametrize("options", STRATEGIES)
def test_the_number_of_threads_does_not_matter(tokenizer, options, native):
    """In a model that is large enough for threads to share its products."""
    found, before = [], torch.get_num_threads()
    generator = Generator(load(tokenizer, d_model=256, d_ff=1024, init_std=0.1), native=native)
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append([result.token_ids for result in generator.generate(PROMPTS[:3], max_new_tokens=4, **options)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


# -- lengths


@pytest.mark.parametrize("native", ["off", "auto"])
def test_a_prompt_may_leave_room_for_a_single_token(tokenizer, native):
    """Of 60 positions, or 50 of the source. Each q is a token, and one more stands before or behind them."""
    decoder, translator = (Generator(load(tokenizer, kind), native=native) for kind in ("decoder", "encoder_decoder"))
    for count, new in ((57, 2), (58, 1)):
        (result,) = decoder.generate("q" * count, min_new_tokens=2)
        assert (len(result.prompt_token_ids), len(result.token_ids)) == (count + 1, new)
        assert result.finish_reason == "length"
        assert "".join(decoder.stream("q" * count, min_new_tokens=2)) == result.text
    for count in (59, 60):
        told = f"max_length is 60, and {count + 1} tokens are taken before.*shorten the prompt by {count - 58} tokens"
        with pytest.raises(UsageError, match=told):
            decoder.generate("q" * count)
    assert len(translator.generate("q" * 49)[0].prompt_token_ids) == 50
    with pytest.raises(UsageError, match="the prompt has 51 tokens, and max_source_length is 50"):
        translator.generate("q" * 50)


def test_lengths(tokenizer, caplog):
    generator = scripted(tokenizer, tokenizer.encode("the the the the"), max_length=30)

    def count(prompt, **options):
        return len(generator.generate(prompt, **options)[0].token_ids)

    length = len(tokenizer.encode("a dog")) + 1
    assert count("a dog", max_new_tokens=7) == 7
    assert count("a dog", max_length=20) == 20 - length
    assert count("a dog") == 30 - length
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert count("a dog", max_new_tokens=10**9) == 30 - length
    assert "1 of 1 prompts" in caplog.text
    empty = generator.generate("a dog", max_new_tokens=0)[0]
    assert (empty.text, empty.token_ids, empty.finish_reason, empty.logprob) == ("", (), "length", 0.0)
    assert "".join(generator.stream("a dog", max_new_tokens=0)) == ""
    assert len(scripted(tokenizer, [9], max_length=900).generate("a")[0].token_ids) == 256


def test_the_start_token_counts_for_an_encoder_decoder(tokenizer):
    generator = Generator(load(tokenizer, "encoder_decoder"))
    assert len(generator.generate("a dog", max_length=5, min_new_tokens=9)[0].token_ids) == 4
    assert len(generator.generate("a dog", min_new_tokens=100)[0].token_ids) == 59


@pytest.mark.parametrize("position", [RotaryPosition(), AlibiPosition()])
def test_there_is_room_where_something_can_be_generated(loaded, position):
    """q is a token, and one more stands before or behind them. A decoder is out of room at 60, a source at 50."""
    generator = Generator(load(loaded.tokenizer, loaded.config.model.kind, position=position))
    for max_length in (None, 1, 2, 40, 59, 60, 61, 70):
        for count in (1, 38, 39, 48, 49, 50, 58, 59, 60, 69):
            prompt, room = "q" * count, generator.room("q" * count, max_length)
            if room is None or room > 0:
                assert generator.plan({0: prompt}, max_length=max_length).batches
            else:
                with pytest.raises(UsageError, match=r"no room|max_source_length"):
                    generator.plan({0: prompt}, max_length=max_length)
    with pytest.raises(UsageError, match="no chat model"):
        generator.room([{"role": "user", "content": "q"}])
    with pytest.raises(UsageError, match="U\\+D800"):
        generator.room("ok \ud800 no")


@pytest.mark.parametrize("position", [AlibiPosition(), T5RelativePosition()])
def test_positions_without_a_table_set_no_limit(tokenizer, position):
    """max_length and max_source_length are then only what the model was trained with."""
    decoder = Generator(load(tokenizer, position=position))
    assert len(decoder.generate("the " * 90, max_new_tokens=70, min_new_tokens=70)[0].token_ids) == 70
    assert len(decoder.generate("a", min_new_tokens=256)[0].token_ids) == 256
    assert len(decoder.generate("a", max_length=90, min_new_tokens=90)[0].token_ids) > 80
    translator = Generator(load(tokenizer, "encoder_decoder", position=position))
    assert len(translator.generate("the " * 90, max_new_tokens=70, min_new_tokens=70)[0].token_ids) == 70


@pytest.mark.parametrize(
    ("kind", "prompt", "options", "words"),
    [
        ("decoder", "the " * 90, {}, ["the model's max_length is 60", "prompt 1"]),
        ("decoder", "the lazy dog", {"max_length": 2}, ["max_length is 2", "raise max_length"]),
        ("encoder_decoder", "the " * 90, {}, ["max_source_length is 50", "prompt 1"]),
        ("encoder_decoder", "the", {"max_length": 1}, ["max_length is 1"]),
        ("encoder_decoder", "", {}, ["empty prompt"]),
        ("decoder", "ok \ud800 no", {}, ["U+D800", "character 4", "prompt 1"]),
        ("decoder", [{"role": "user", "content": "hi"}], {}, ["conversation", "no chat model"]),
        ("decoder", "the", {"strategy": "beam", "beam_size": 400}, ["beam_size 400", "choose 1 to"]),
        ("decoder", "the", {"top_p": 0.4}, ["top_p", "greedy"]),
        ("decoder", "the", {"bad_words": ["a", ""]}, ["bad_words", "not empty"]),
        ("decoder", "the", {"bad_words_ids": [[1, 999]]}, ["bad_words_ids names token 999", "choose 0 to"]),
        ("decoder", "the", {"sequence_bias": [{"token_ids": [999], "bias": 1.0}]}, ["sequence_bias names token 999"]),
        ("encoder_decoder", "the", {"forced_bos_token_id": 999}, ["forced_bos_token_id names token 999"]),
        ("decoder", "the", {"forced_eos_token_id": [2, 999]}, ["forced_eos_token_id names token 999"]),
        ("decoder", "the", {"suppress_tokens": 999}, ["suppress_tokens names token 999"]),
        ("decoder", "the", {"min_length": 9, "max_length": 8}, ["min_length", "more than max_length 8"]),
        ("decoder", "the", {"min_length": 9, "min_new_tokens": 8}, ["both given"]),
    ],
)
def test_refuses_before_anything_is_generated(tokenizer, kind, prompt, options, words):
    generator = Generator(load(tokenizer, kind))
    for call in (generator.generate, generator.iterate, generator.stream):
        with pytest.raises(UsageError) as caught:
            list(call(prompt if call == generator.stream else [prompt], **options))
        assert not [word for word in words if word not in str(caught.value)], str(caught.value)


@pytest.mark.parametrize("strategy", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("key", ["suppress_tokens", "begin_suppress_tokens"])
def test_refuses_to_forbid_every_token(loaded, strategy, key):
    every = list(range(len(loaded.tokenizer)))
    with pytest.raises(UsageError, match=r"every token is forbidden.*after 0 generated"):
        Generator(loaded).generate("the", strategy=strategy, **{key: every})


def test_a_bad_prompt_is_named_at_once(tokenizer):
    with pytest.raises(UsageError, match="prompt 3"):
        Generator(load(tokenizer)).iterate(["fine", "fine", "the " * 90])


@pytest.mark.parametrize("batch_size", [0, -3])
def test_refuses_an_empty_batch(tokenizer, batch_size):
    with pytest.raises(UsageError, match="at least 1"):
        Generator(load(tokenizer), batch_size=batch_size)


def test_a_broken_model_is_told_in_our_words(tokenizer, monkeypatch):
    loaded = load(tokenizer)
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(torch.nan)
    with pytest.raises(DivergedError):
        Generator(loaded).generate("the")

    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(loaded.model, "prefill", full)
    with pytest.raises(ResourceError, match="batch_size"):
        Generator(loaded).generate("the")


# -- conversations


@pytest.mark.parametrize("format", [TokensChatFormat(), TextChatFormat()])
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_a_chat_model_gets_a_user_turn(tokenizer, kind, format):
    generator, special = Generator(load(tokenizer, kind, chat=format)), tokenizer.special

    def given(prompt, **options):
        return list(generator.generate([prompt], max_new_tokens=2, **options)[0].prompt_token_ids)

    def around(ids):
        return [special.bos_id, *ids] if kind == "decoder" else [*ids, special.eos_id]

    expected, _ = encode_pieces(render([("user", "the dog")], format, reply=True), tokenizer)
    assert given("the dog") == given([{"role": "user", "content": "the dog"}]) == around(expected)
    assert given("the dog", raw=True) == around(tokenizer.encode("the dog"))
    turns = [("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
    expected, _ = encode_pieces(render(turns, format, reply=True), tokenizer)
    assert given([{"role": role, "content": content} for role, content in turns]) == around(expected)
    result = generator.generate([[{"role": "user", "content": "the dog"}]], max_new_tokens=2)[0]
    assert "the dog" in result.prompt


def test_a_template_writes_all_that_the_model_reads(tokenizer):
    template = "{{ bos_token }}<|user|>{{ messages[-1].content }}{{ eos_token }}{{ '<|assistant|>' }}"
    format = TemplateChatFormat(template=template, bos_token="<s>", eos_token="</s>")
    special, roles = tokenizer.special, tokenizer.control_ids
    generator = Generator(load(tokenizer, chat=format))
    result = generator.generate("the dog</s>", max_new_tokens=2)[0]
    assert list(result.prompt_token_ids[:2]) == [special.bos_id, roles["<|user|>"]]
    assert list(result.prompt_token_ids[-2:]) == [special.eos_id, roles["<|assistant|>"]]
    assert result.prompt_token_ids.count(special.eos_id) == 1
    assert result.prompt == "the dog</s>"
    raw = generator.generate("the dog", raw=True, max_new_tokens=2)[0]
    assert list(raw.prompt_token_ids) == [special.bos_id, *tokenizer.encode("the dog")]
    refusing = TemplateChatFormat(template="{{ raise_exception('never') }}")
    with pytest.raises(UsageError, match="refuses the conversation: never; prompt 1, messages"):
        Generator(load(tokenizer, chat=refusing)).generate("the dog")


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        ([], "no messages"),
        ([{"role": "user"}], "prompt 2, message 1"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": 5}], "prompt 2, message 2"),
        ([{"role": "king", "content": "a"}], "unknown role 'king'"),
        ([{"role": "user", "content": "\udfff"}], "U\\+DFFF"),
    ],
)
def test_refuses_bad_conversations(tokenizer, conversation, words):
    generator = Generator(load(tokenizer, chat=TokensChatFormat()))
    with pytest.raises(UsageError, match=words):
        generator.generate(["fine", conversation])
    with pytest.raises(UsageError, match="raw"):
        generator.generate([[{"role": "user", "content": "a"}]], raw=True)


def test_special_tokens_of_a_prompt_for_who_asks(tokenizer):
    generator = Generator(load(tokenizer))
    special, control = tokenizer.special, tokenizer.control_ids
    prompt, text = "<|user|>the dog</s><|assistant|>", tokenizer.encode("the dog")
    result = generator.generate(prompt, special=True, max_new_tokens=3)[0]
    expected = [special.bos_id, control["<|user|>"], *text, special.eos_id, control["<|assistant|>"]]
    assert list(result.prompt_token_ids) == expected
    assert result.prompt == prompt
    assert "".join(generator.stream(prompt, special=True, max_new_tokens=3)) == result.text
    plain = generator.generate(prompt, max_new_tokens=3)[0]
    assert list(plain.prompt_token_ids) == [special.bos_id, *tokenizer.encode(prompt)]
    chat = Generator(load(tokenizer, chat=TokensChatFormat()))
    for call in (chat.generate, chat.iterate, chat.stream):
        with pytest.raises(UsageError, match="--raw"):
            call(prompt, special=True)
    assert chat.generate(prompt, raw=True, special=True, max_new_tokens=3)[0] == result


# -- streaming and stop strings


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "beam"},
        {"strategy": "beam", "beam_size": 4, "num_groups": 2, "diversity_penalty": 0.5},
        {"strategy": "beam_sample", "beam_size": 3, "top_k": 5},
        {"strategy": "contrastive"},
        {"strategy": "sample", "temperature": 2.0},
    ],
)
def test_a_stream_makes_up_the_text(loaded, options):
    for seed in range(3):
        generator = Generator(loaded)
        options = options | {"seed": seed, "max_new_tokens": 20}
        pieces = list(generator.stream("the fox", **options))
        assert "".join(pieces) == generator.generate("the fox", **options)[0].text
        assert all(pieces)
        assert len(pieces) > 1 or "beam" in options.get("strategy", "") or len("".join(pieces)) < 5


def test_a_stream_never_shows_half_a_character(tokenizer):
    text = "née 春眠 😀 fox"
    assert tokenizer.byte_ids & set(tokenizer.encode(text)), "some characters take several tokens"
    generator = scripted(tokenizer, [*tokenizer.encode(text), tokenizer.special.eos_id])
    pieces = list(generator.stream("the"))
    assert "".join(pieces) == text
    assert len(pieces) > 5
    cut = list(generator.stream("the", max_new_tokens=len(tokenizer.encode("née ")) + 2))
    assert "".join(cut) == "née \ufffd", "what is cut within a character is shown as such, at the very end"


def test_text_goes_on_from_the_prompt(tokenizer):
    """The space between prompt and text belongs to the text."""
    generator = scripted(tokenizer, [*tokenizer.encode(" fox runs"), tokenizer.special.eos_id])
    assert generator.generate("the")[0].text == " fox runs"


@pytest.mark.parametrize("strategy", ["greedy", "beam", "sample"])
def test_text_ends_before_a_stop_string(tokenizer, strategy):
    said = "the fox runs 😀 over\n\nthe moon"
    generator = scripted(tokenizer, [*tokenizer.encode(said), tokenizer.special.eos_id])
    for stop, left in [
        (["\n\n"], "the fox runs 😀 over"),
        (["ox r"], "the f"),
        (["x", "fox"], "the "),
        (["fox runs", "x"], "the fo"),
        (["😀"], "the fox runs "),
        (["s 😀 o"], "the fox run"),
        ([said], ""),
        (["the"], ""),
    ]:
        result = generator.generate("the", strategy=strategy, stop=stop)[0]
        assert (result.text, result.finish_reason) == (left, "stop")
        assert "".join(generator.stream("the", strategy=strategy, stop=stop)) == left
    result = generator.generate("the", strategy=strategy, stop=["moon.", "Fox", "the the"])[0]
    assert (result.text, result.finish_reason) == (said, "eos"), "a stop string across the prompt's end is none"


def spaced_tokenizer():
    """It puts a space before every text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the fox runs over the moon"] * 9),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        add_dummy_prefix=True,
        minloglevel=3,
    )
    return SentencePieceTokenizer(model.getvalue())


def test_a_tokenizer_that_puts_a_space_before_a_text():
    """Its space at the very beginning is no text; one after the prompt is, also for stop strings."""
    tokenizer = spaced_tokenizer()
    assert tokenizer.leading_space
    said = [*tokenizer.encode("fox runs over"), tokenizer.special.eos_id]
    generator = scripted(tokenizer, said)
    for prompt, text in [("the", " fox runs over"), ("", "fox runs over")]:
        for stop in ([], [" runs"], [" fox"], ["x ru"], [" o"]):
            expected = min((text[: text.index(one)] for one in stop if one in text), key=len, default=text)
            result = generator.generate(prompt, stop=stop)[0]
            assert (result.text, result.finish_reason) == (expected, "eos" if expected == text else "stop")
            assert "".join(generator.stream(prompt, stop=stop)) == expected


def test_a_stop_string_that_is_not_completed_is_shown(tokenizer):
    generator = scripted(tokenizer, [*tokenizer.encode("fox fo"), tokenizer.special.eos_id])
    pieces = list(generator.stream("the", stop=["fox!", "fox fox"]))
    assert "".join(pieces) == "fox fo"


def test_stop_strings_cut_random_texts_at_their_first_place(tokenizer):
    generator = Generator(load(tokenizer, init_std=0.02))
    tried = 0
    for seed in range(7):
        options = {"strategy": "sample", "seed": seed, "max_new_tokens": 25}
        whole = generator.generate("the", **options)[0]
        for start in range(3, len(whole.text) - 3, 4):
            stop = whole.text[start : start + 1 + start % 3]
            if "\ufffd" in stop:
                continue
            result = generator.generate("the", stop=stop, **options)[0]
            assert result.text == whole.text[: whole.text.index(stop)]
            assert result.token_ids == whole.token_ids[: len(result.token_ids)]
            assert result.finish_reason == "stop"
            assert "".join(generator.stream("the", stop=stop, **options)) == result.text
            tried += 1
    assert tried > 10


def test_a_stream_of_beams_makes_up_random_texts(tokenizer):
    """Whatever ends them, and in pieces wherever the beams agree."""
    choice, pieces_seen = Random(0), 0
    for seed in range(4):
        generator = Generator(load(tokenizer, seed=seed))
        for _ in range(2):
            prompt = choice.choice(PROMPTS)
            options = {
                "strategy": "beam",
                "beam_size": choice.randint(2, 5),
                "early_stopping": choice.choice(["true", "false", "never"]),
                "length_penalty": choice.choice([0.0, 1.0, 2.0]),
                "max_new_tokens": choice.randint(5, 25),
            }
            whole = generator.generate(prompt, **options)[0].text
            if len(whole) > 4:
                options["stop"] = choice.choice([(), whole[2:4], whole[-2:]])
            result = generator.generate(prompt, **options)[0]
            pieces = list(generator.stream(prompt, **options))
            assert "".join(pieces) == result.text
            pieces_seen += len(pieces)
    assert pieces_seen > 12, "beams agree on something before the end"


def test_a_stream_has_one_result(tokenizer):
    with pytest.raises(UsageError, match="one result"):
        Generator(load(tokenizer)).stream("the", strategy="sample", num_return=2)
