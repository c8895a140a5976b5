"""What must and must not be said, against a look at every token and its text."""

import io
import json
import re
import sys
from itertools import product
from random import Random

import pytest
import sentencepiece
import torch
from test_generator import PROMPTS, load, scripted

from txtgen.errors import ResourceError, UsageError
from txtgen.generator import Generator
from txtgen.generator.constraints.automata import Row, Tracked
from txtgen.generator.constraints.grammar import Grammars
from txtgen.generator.constraints.inclusion import Included, Parts
from txtgen.generator.constraints.token_texts import TokenTexts
from txtgen.generator.constraints.wording import Beginning, Forbidden
from txtgen.tokenizer import IncrementalDecoder, SentencePieceTokenizer, tokenizer_from_hf_folder

STRATEGIES = [
    {"strategy": "greedy"},
    {"strategy": "beam", "beam_size": 4, "num_return": 3},
    {"strategy": "beam", "beam_size": 4, "num_return": 3, "num_groups": 2, "diversity_penalty": 0.5},
    {"strategy": "beam_sample", "beam_size": 3, "num_return": 2},
    {"strategy": "sample", "num_return": 12},
    {"strategy": "sample", "num_return": 6, "speculation": {"kind": "prompt_lookup", "max_ngram": 1}},
    {"strategy": "contrastive"},
]


@pytest.fixture(scope="module")
def spaced():
    """A tokenizer that puts a space before every text, and has no pieces for bytes."""
    model = io.BytesIO()
    text = "the quick brown fox lazy dog small cat old horse jumps runs looks over hill river moon née là-bas"
    choice = Random(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(choice.choices(text.split(), k=9)) for _ in range(200)]),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        add_dummy_prefix=True,
        minloglevel=3,
    )
    return SentencePieceTokenizer(model.getvalue())


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A tokenizer of GPT-2's kind, from a Hugging Face folder."""
    pytest.importorskip("transformers")
    from hf_folders import gpt2_folder

    return tokenizer_from_hf_folder(gpt2_folder(tmp_path_factory.mktemp("gpt2"))).tokenizer


@pytest.fixture(params=["tokenizer", "spaced", "byte_level"])
def either(request):
    return request.getfixturevalue(request.param)


def text_of(tokenizer, token_ids, begins):
    decoder = IncrementalDecoder(tokenizer, begins=begins)
    return "".join(map(decoder.push, token_ids)) + decoder.flush()


def said_by(tokenizer, token_ids, begins):
    """The bytes of the text; what `text_of` shows of them is U+FFFD where they are no characters."""
    said = b"".join(map(tokenizer.token_bytes, token_ids))
    return said.removeprefix(b" ") if begins and tokenizer.leading_space else said


# -- what is not said


@pytest.mark.parametrize("begins", [True, False])
def test_a_token_is_forbidden_if_the_text_would_hold_a_part(either, begins):
    parts = ["fox", " r", "e", "ée", "n the moo"]
    texts = TokenTexts(either, len(either) + 3)
    constraint = Tracked(Forbidden(texts, parts, [begins]))
    choice, seen = Random(0), 0
    for _ in range(30):
        token_ids: tuple[int, ...] = ()
        for _ in range(8):
            allowed = constraint.allowed(0, token_ids).tolist()
            for token in range(len(either)):
                said = said_by(either, [*token_ids, token], begins)
                assert allowed[token] == (not any(part.encode() in said for part in parts)), (token_ids, token)
            assert all(allowed[len(either) :]), "a row without a token says nothing"
            seen += len(either) - sum(allowed[: len(either)])
            beginnings = [b"f", b" ", b"fo", b"\xc3", b"n th", b"n"]
            near = [token for token in range(len(either)) if either.token_bytes(token) in beginnings and allowed[token]]
            free = [token for token in range(len(either)) if allowed[token]]
            token_ids = (*token_ids, choice.choice(near if near and choice.random() < 0.7 else free))
    assert seen > 100


@pytest.mark.parametrize("options", STRATEGIES)
def test_a_forbidden_text_is_in_no_result(tokenizer, options):
    generator = Generator(load(tokenizer, init_std=0.02 if "sample" in options["strategy"] else 0.5))
    options = {**options, "max_new_tokens": 25}
    free = generator.generate(PROMPTS, **options)
    choice = Random(1)
    for _ in range(4):
        said = [result.text for result in free if len(result.text) > 6]
        words = [
            text[place : place + choice.randint(1, 3)] for text in said for place in [choice.randrange(len(text) - 3)]
        ]
        words = sorted({word for word in words if not {"\ufffd", "\0"} & {*word}})[:6]
        bound = generator.generate(PROMPTS, bad_words=words, **options)
        assert not [(word, result.text) for word in words for result in bound if word in result.text]
        assert len(bound) == len(free)


def test_every_spelling_is_forbidden(tokenizer):
    """Also the one by letters, which no tokenizer would write, and the one within a word."""
    letters = [
        next(token for token in range(len(tokenizer)) if tokenizer.token_bytes(token) == bytes([letter]))
        for letter in b"foxes"
    ]
    generator = scripted(tokenizer, [*letters, tokenizer.special.eos_id])
    assert generator.generate("the")[0].text == "foxes"
    for word in ("fox", "x", "oxe", "s", "foxes"):
        assert word not in generator.generate("the", bad_words=word, max_new_tokens=9)[0].text
    assert generator.generate("the", bad_words=["Fox", "foxes.", "es "])[0].text == "foxes"


# -- how it begins


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("prefix", ["the fox r", " the", "née", "o", "the moon"])
def test_a_prefix_allows_its_next_token_and_all_that_say_the_rest(either, prefix, begins):
    texts = TokenTexts(either, len(either))
    constraint = Tracked(Beginning(texts, prefix, [begins]))
    spelling = texts.spell(prefix, begins)
    assert said_by(either, spelling, begins) == prefix.encode()
    for count, following in enumerate(spelling):
        allowed = constraint.allowed(0, spelling[:count]).tolist()
        for token in range(len(either)):
            whole = said_by(either, [*spelling[:count], token], begins).startswith(prefix.encode())
            assert allowed[token] == (token == following or whole)
            if whole and token != following:
                assert constraint.allowed(0, (*spelling[:count], token)).all()
    assert constraint.allowed(0, spelling).all()


def test_a_token_may_go_beyond_the_prefix(either):
    texts = TokenTexts(either, len(either))
    long = [token for token in range(len(either)) if len(either.token_bytes(token).decode(errors="ignore")) > 1]
    assert len(long) > 5
    for token in long:
        text = either.token_bytes(token).decode(errors="replace")
        if "\ufffd" in text:
            continue
        allowed = Tracked(Beginning(texts, text[:-1], [False])).allowed(0, ())
        assert allowed[token], (text, allowed.sum())
        assert 2 <= allowed.sum() < 40, (text, allowed.sum())


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("options", STRATEGIES)
def test_every_result_begins_with_the_prefix(either, kind, options):
    generator = Generator(load(either, kind, dtype=torch.float64))
    prompts = ["the fox", "moon", "the fox runs over"]
    for prefix in ("the", " moon overs", "née "):
        results = generator.generate(prompts, prefix=prefix, max_new_tokens=16, **options)
        assert [result.text for result in results if not result.text.startswith(prefix)] == []
        assert {result.prompt_index for result in results} == {0, 1, 2}
        alone = generator.generate(prompts[0], prefix=prefix, max_new_tokens=16, **options)
        assert [r.token_ids for r in alone] == [r.token_ids for r in results if r.prompt_index == 0]
        if options.get("num_return", 1) == 1:
            assert "".join(generator.stream(prompts[0], prefix=prefix, max_new_tokens=16, **options)) == alone[0].text


def test_what_follows_a_prefix_is_what_the_model_says(tokenizer):
    """As if the prompt had ended with it, where that makes the same tokens."""
    generator, prefix, compared = Generator(load(tokenizer, init_std=0.2)), " over the moon", 0
    spelling = TokenTexts(tokenizer, len(tokenizer)).spell(prefix, False)
    for prompt in ["the fox runs", "née", "the old horse", "a"]:
        found = generator.generate(prompt, prefix=prefix, max_new_tokens=len(spelling) + 6)[0]
        after = generator.generate(prompt + prefix, max_new_tokens=6)[0]
        if (*found.prompt_token_ids, *found.token_ids[: len(spelling)]) == after.prompt_token_ids:
            assert found.token_ids[len(spelling) :] == after.token_ids
            compared += 1
    assert compared > 1


def test_prefix_and_forbidden_texts_hold_together(tokenizer):
    generator = Generator(load(tokenizer, init_std=0.02))
    options = {"strategy": "sample", "num_return": 40, "max_new_tokens": 9}
    for result in generator.generate("the", prefix="the fox", bad_words=["q", "foxe", "\n"], **options):
        assert result.text.startswith("the fox")
        assert not any(word in result.text for word in ["q", "foxe", "\n"])
    with pytest.raises(UsageError, match="every token is forbidden"):
        generator.generate("the", prefix="the fox", bad_words="fox")


def test_a_target_language_comes_before_the_prefix(tokenizer):
    """It is forced, and says nothing."""
    generator = Generator(load(tokenizer, "encoder_decoder"))
    role = tokenizer.control_ids["<|user|>"]
    found = generator.generate("the", forced_bos_token_id=role, prefix="the moon", max_new_tokens=9)[0]
    assert found.token_ids[0] == role
    assert found.text.startswith("the moon")


def test_a_prefix_within_a_conversation_begins_the_reply(tokenizer):
    from txtgen.config.chat_formats import TokensChatFormat

    generator = Generator(load(tokenizer, chat=TokensChatFormat()))
    assert generator.generate("hi", prefix="the fox", max_new_tokens=9)[0].text.startswith("the fox")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": "the quick brown fox", "max_new_tokens": 2}, ["prefix takes", "2 are generated at most"]),
        ({"prefix": ""}, ["prefix"]),
        ({"prefix": "the", "gap": "___"}, ["gap", "prefix"]),
    ],
)
def test_refuses_before_anything_is_generated(tokenizer, options, words):
    with pytest.raises(UsageError) as caught:
        Generator(load(tokenizer)).iterate(["the ___"], **options)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


# -- what both need


def test_a_state_depends_on_its_tokens_alone(tokenizer):
    """However rows are reordered, copied and dropped."""
    texts = TokenTexts(tokenizer, len(tokenizer))
    automaton = Forbidden(texts, ["fox runs", "ee"], [True, False])
    tracked, choice = Tracked(automaton), Random(3)
    live: list[tuple[int, tuple[int, ...]]] = [(row, ()) for row in (0, 1)]
    for _ in range(30):
        live = [
            (row, (*ids, choice.choice(tokenizer.encode(" fox runs ee")))) for row, ids in choice.choices(live, k=5)
        ]
        for row, ids in live:
            state = automaton.start(row)
            for token in ids:
                state = automaton.after(state, token)
            assert tracked.state(row, ids) == state
    assert len(tracked._states) < 20, "what is no longer needed is forgotten"


def test_texts_are_spelled_as_the_tokenizer_writes_them(either):
    texts = TokenTexts(either, len(either))
    assert texts.spell("the fox", True) == tuple(either.encode("the fox"))
    for begins in (True, False):
        for text in ("the fox", " fox", "fox", "née", " ", "e"):
            assert said_by(either, texts.spell(text, begins), begins) == text.encode()
    inner = texts.spell("fox", False)
    assert text_of(either, [*either.encode("the"), *inner], True) == "thefox"
    if either.leading_space:
        with pytest.raises(UsageError, match="no tokens for '€'"):
            texts.spell("€", True)
    else:
        assert [either.token_bytes(token) for token in texts.spell(b"\xe2\x82", False)] == [b"\xe2", b"\x82"]


def test_tokens_that_begin_with_a_text(either):
    texts = TokenTexts(either, len(either))
    for begins in (True, False):
        for start in (b"t", b"th", b" ", b"o", b"\xc3", b"zzz"):
            expected = {token for token, text in enumerate(texts.all(begins)) if text.startswith(start)}
            assert {*texts.beginning_with(start, begins)} == expected


# -- grammars

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["fox", "moon", 7, None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


def is_of_schema(value):
    return (
        isinstance(value, dict)
        and set(value) == {"name", "age", "kind", "tags"}
        and isinstance(value["name"], str)
        and len(value["name"]) <= 6
        and type(value["age"]) is int
        and 0 <= value["age"] <= 120
        and value["kind"] in ("fox", "moon", 7, None)
        and 1 <= len(value["tags"]) <= 3
        and all(isinstance(tag, bool) for tag in value["tags"])
    )


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("options", STRATEGIES)
def test_every_result_matches_the_regular_expression(either, kind, options):
    generator = Generator(load(either, kind, init_std=0.1))
    for pattern in (r"(the|a) (fox|moon|dog)[a-g]{1,3}(s|oon)?", r"[ée]{2,4}n", r"(fox|over){0,2}", r"[^xyz]{1,9}o"):
        results = generator.generate(["the fox", "moon"], regex=pattern, max_new_tokens=40, **options)
        assert {result.finish_reason for result in results} == {"eos"}
        assert [result.text for result in results if not re.fullmatch(pattern, result.text)] == []
        if options.get("num_return", 1) == 1:
            pieces = generator.stream("the fox", regex=pattern, max_new_tokens=40, **options)
            assert "".join(pieces) == results[0].text


@pytest.mark.parametrize("options", STRATEGIES)
def test_every_result_is_json_of_the_schema(tokenizer, options):
    generator = Generator(load(tokenizer, init_std=0.1, max_length=250))
    seen = set()
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        for result in generator.generate(["the fox", "moon"], json_schema=schema, max_new_tokens=200, **options):
            assert result.finish_reason == "eos"
            assert is_of_schema(json.loads(result.text)), result.text
            seen.add(result.text)
    assert len(seen) > 5 or options["strategy"] != "sample"


def words_of(pattern, letters, longest):
    """All texts of a regular expression over a few letters, up to a length."""
    texts = ("".join(some) for length in range(longest + 1) for some in product(letters, repeat=length))
    return {text.encode() for text in texts if re.fullmatch(pattern, text)}


@pytest.mark.parametrize("begins", [True, False])
def test_a_grammar_allows_every_token_that_leads_to_a_text(either, begins):
    """Where what follows is certain, only the tokens in which the tokenizer writes it, if it can write all."""
    texts, end = TokenTexts(either, len(either) + 2), either.special.eos_id
    grammars, choice, free = Grammars(texts, [end]), Random(0), 0
    for pattern in ("(th|t)(e|h){0,2}", "(o|ov|he)*v?", "the|tho|oh", " ?(h|o){1,2}"):
        words = words_of(pattern, "thov e", 5)
        beginnings = {word[:length] for word in words for length in range(len(word) + 1)}
        constraint = Tracked(grammars.regex(pattern, [begins]))
        for _ in range(15):
            token_ids: tuple[int, ...] = ()
            while len(said := said_by(either, token_ids, begins)) < 4:
                found = {token for token, can in enumerate(constraint.allowed(0, token_ids).tolist()) if can}
                possible = {
                    token
                    for token in range(len(either))
                    if either.token_bytes(token) and said_by(either, [*token_ids, token], begins) in beginnings
                }
                possible |= {end} if said in words else set()
                assert found
                assert found <= possible
                following = {word[len(said) : len(said) + 1] for word in words if word.startswith(said)}
                if either.leading_space or len(following) > 1:
                    assert found == possible, (pattern, token_ids)
                    free += 1
                if found == {end} or choice.random() < 0.1:
                    break
                token_ids = (*token_ids, choice.choice(sorted(found - {end})))
    assert free > 40


def test_tokens_are_drawn_from_what_is_left_of_the_distribution(tokenizer):
    loaded = load(tokenizer, init_std=0.3)
    generator, total = Generator(loaded), 3000
    options = {"strategy": "sample", "max_new_tokens": 1}
    results = [r.token_ids[0] for r in generator.generate("the", regex="[a-fo]+", num_return=total, **options)]
    allowed = [t for t in range(len(tokenizer)) if re.fullmatch(b"[a-fo]+", tokenizer.token_bytes(t))]
    ids = torch.tensor([[tokenizer.special.bos_id, *tokenizer.encode("the")]])
    with torch.no_grad():
        logits = loaded.model(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids))[0, -1]
    expected = logits[allowed].softmax(-1) * total
    counts = torch.tensor([results.count(token) for token in allowed])
    assert counts.sum() == total
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < len(allowed) + 4 * (2 * len(allowed)) ** 0.5


def test_what_is_certain_is_spelled_as_the_tokenizer_writes_it(tokenizer):
    generator = Generator(load(tokenizer, init_std=0.02))
    for result in generator.generate(
        "the", strategy="sample", num_return=20, regex="the fox runs over", max_new_tokens=30
    ):
        assert list(result.token_ids) == [*tokenizer.encode("the fox runs over"), tokenizer.special.eos_id]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regex": "(fox"}, ["regex", "unclosed group"]),
        ({"regex": "(?=fox)"}, ["regex", "look-around"]),
        ({"regex": ""}, ["regex"]),
        ({"json_schema": "fox"}, ["json_schema", "a JSON object"]),
        ({"json_schema": "[1]"}, ["json_schema", "a JSON object"]),
        ({"json_schema": {"type": "fox"}}, ["json_schema", "Invalid type: fox"]),
        ({"json_schema": {"not": {"type": "string"}}}, ["json_schema", "not"]),
        ({"json_schema": {}, "regex": "fox"}, ["regex and json_schema"]),
        ({"prefix": "the", "regex": "the fox"}, ["prefix and regex"]),
        ({"regex": "the", "gap": "___"}, ["gap", "regex"]),
    ],
)
def test_refuses_grammars_before_anything_is_generated(tokenizer, options, words):
    with pytest.raises(UsageError) as caught:
        Generator(load(tokenizer)).iterate(["the ___"], **options)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_a_grammar_and_what_it_does_not_know(tokenizer):
    generator = Generator(load(tokenizer, "encoder_decoder"))
    with pytest.raises(UsageError, match="every token is forbidden"):
        generator.generate("the", regex="fox", bad_words="x")
    with pytest.raises(UsageError, match="regex"):
        generator.generate(
            "the", regex="fox", forced_bos_token_id=tokenizer.encode("moon")[0], max_new_tokens=5
        ) and None


def test_a_missing_package_is_told(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ResourceError, match=r"pip install 'txtgen\[constrain\]'"):
        Generator(load(tokenizer)).generate("the", regex="fox")


# -- what is included

BEAMS = [options for options in STRATEGIES if "beam_size" in options]


@pytest.mark.parametrize("begins", [True, False])
def test_whatever_is_allowed_says_every_part_in_time(either, begins):
    """Walks at random through what is allowed, with just enough room or more."""
    texts, end, choice = TokenTexts(either, len(either) + 1), either.special.eos_id, Random(0)
    ended = said_early = 0
    for _ in range(60):
        words = choice.sample(["fox", "over the", " moon", "née", "o", "n m", "the"], choice.choice([1, 2, 3]))
        stops = choice.choice([(), ("fox runs", "q"), ("e",)])
        stops = tuple(stop for stop in stops if not any(stop in word or word in stop for word in words))
        alone = Parts(texts, words, stops, [Row(begins, 0)], [end])
        needed = alone.remaining(alone.start(0))
        limit = needed + choice.choice([0, 1, 5, 12])
        parts = Parts(texts, words, stops, [Row(begins, limit)], [end])
        tracked = Included(parts)
        token_ids: tuple[int, ...] = ()
        for place in range(limit):
            allowed = tracked.allowed(0, token_ids)
            said = said_by(either, token_ids, begins)
            missing = [word for word in words if word.encode() not in said]
            assert tracked.state(0, token_ids).missing == {words.index(word) for word in missing}
            assert allowed[end] == (not missing)
            assert tracked.remaining(0, token_ids) <= limit - place
            assert (tracked.remaining(0, token_ids) == 0) == (not missing)
            helpful = {*tracked.helpful(0, token_ids)}
            assert bool(helpful) == bool(missing)
            said_early += not missing
            following = [token for token, can in enumerate(allowed.tolist()) if can and token < len(either)]
            assert following, (words, stops, said)
            near = [token for token in following if token in helpful]
            token = choice.choice(near if near and choice.random() < 0.3 else following)
            if token == end:
                ended += 1
                break
            token_ids = (*token_ids, token)
        said = said_by(either, token_ids, begins)
        assert not [word for word in words if word.encode() not in said], (words, said)
        before = said[: max(said.index(word.encode()) for word in words)]
        assert not [stop for stop in stops if stop.encode() in before]
    assert said_early


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("options", BEAMS)
def test_every_result_has_the_texts_in_it(either, kind, options):
    generator = Generator(load(either, kind, dtype=torch.float64))
    prompts = ["the fox", "moon", "the fox runs over"]
    options = options | {"max_new_tokens": 18}
    for more in (
        {"include": "runs"},
        {"include": ["moon", "née"]},
        {"include": ["fo", "ov"], "stop": ["e", "."]},
        {"include": ["moon"], "prefix": "the", "bad_words": ["x"]},
        {"include": ["runs"], "forced_eos_token_id": either.special.eos_id, "max_new_tokens": 9},
    ):
        words = [more["include"]] if isinstance(more["include"], str) else more["include"]
        results = generator.generate(prompts, **options | more)
        assert {result.prompt_index for result in results} == {0, 1, 2}
        for result in results:
            assert not [word for word in words if word not in result.text], (more, result.text)
            assert result.text.startswith(more.get("prefix", ""))
        alone = generator.generate(prompts[0], **options | more)
        assert [r.token_ids for r in alone] == [r.token_ids for r in results if r.prompt_index == 0]
        pieces = generator.stream(prompts[0], **options | more | {"num_return": 1})
        assert "".join(pieces) == alone[0].text


def test_help_makes_no_longer_words(tokenizer):
    texts, end = TokenTexts(tokenizer, len(tokenizer)), tokenizer.special.eos_id
    parts = Parts(texts, ["fox", "馬", " moon"], (), [Row(True, 40)], [end])
    tracked = Included(parts)

    def helpful(said):
        return {*map(tokenizer.token_bytes, tracked.helpful(0, tuple(tokenizer.encode(said))))}

    at_once, spaced, horse, moon = (
        tokenizer.token_bytes(tokenizer.encode(text)[0]) for text in ("fox", " fox", "馬", " moon")
    )
    assert helpful("") == {at_once, spaced, horse, moon}
    assert helpful("the ") == {at_once, spaced, horse, moon, b"m"}, "the space may begin the moon"
    assert helpful("the") == {spaced, horse, moon}
    assert helpful("the fox馬") == {moon}
    assert helpful("foxes moon馬") == set()


def test_a_text_that_would_be_said_anyway_changes_nothing(tokenizer):
    generator = scripted(tokenizer, [*tokenizer.encode(" fox runs over the moon"), tokenizer.special.eos_id])
    options = {"strategy": "beam", "beam_size": 12, "max_new_tokens": 30}
    assert generator.generate("the", include="runs over", **options)[0].text == " fox runs over the moon"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "greedy"}, ["include", "greedy", "use strategy beam or beam_sample"]),
        ({"strategy": "sample"}, ["include", "sample"]),
        ({"beam_size": 1}, ["include", "larger beam_size"]),
        ({"beam_size": 4, "num_groups": 4, "diversity_penalty": 1.0}, ["include", "larger beam_size"]),
        ({"max_new_tokens": 2}, ["include takes", "2 are generated at most"]),
        ({"max_new_tokens": 13, "prefix": "the lazy dog"}, ["include takes", "13 are"]),
        ({"bad_words": ["z", "oo"]}, ["'moon' is to be included", "'oo'", "bad_words"]),
        ({"stop": "qui"}, ["'the quick' is to be included", "'qui'", "stop"]),
        ({"regex": "the fox.*"}, ["include and regex"]),
        ({"stop_on_loop": {}}, ["stop_on_loop", "include"]),
    ],
)
def test_refuses_what_cannot_be_included(tokenizer, options, words):
    generator, options = Generator(load(tokenizer)), {"strategy": "beam", "include": ["the quick", "moon"]} | options
    with pytest.raises(UsageError) as caught:
        generator.iterate(["the"], **options)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
