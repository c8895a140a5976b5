"""Where text ends: stop strings in random cuts of random texts into tokens, of which many hold parts of characters."""

import codecs
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from txtgen.checkpoint import LoadedModel
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.model import DecoderConfig
from txtgen.generator import Generator
from txtgen.tokenizer import IncrementalDecoder
from txtgen.tokenizer.joining import ByteJoiner
from txtgen.tokenizer.names import SpecialNames
from txtgen.tokenizer.types import Special

BOS, EOS, PAD = 0, 1, 2


class Pieces(ByteJoiner):
    """A tokenizer of given pieces of UTF-8. A prompt is the numbers of its pieces."""

    kind = "pieces"
    special = Special(PAD, PAD, BOS, EOS)
    names = SpecialNames()
    control_ids: ClassVar[dict[str, int]] = {}
    byte_ids: frozenset[int] = frozenset()

    def __init__(self, pieces: Sequence[bytes], leading_space: bool = False) -> None:
        self._bytes = [b"", b"", b"", *pieces]
        self._pieces = [repr(piece) for piece in self._bytes]
        self.leading_space = leading_space

    def encode(self, text: str) -> list[int]:
        return [int(number) + 3 for number in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


class Scripts(nn.Module):
    """After each prompt, by its last token, one row of tokens for sure, and then the end."""

    def __init__(self, scripts: dict[int, list[int]], vocabulary: int) -> None:
        super().__init__()
        self.config = DecoderConfig(vocab_size=vocabulary, max_length=200)
        self.scripts = scripts
        self.weight = nn.Parameter(torch.zeros(1))

    def logits(self, state):
        ids = [(self.scripts[last] + [EOS] * 99)[place] for last, place in state.rows]
        return nn.functional.one_hot(torch.tensor(ids), self.config.vocab_size).float() * 60

    def prefill(self, prompt, capacity):
        ends = (prompt.lengths - 1).tolist()
        state = Rows([(ids[end], 0) for ids, end in zip(prompt.input_ids.tolist(), ends, strict=True)])
        return self.logits(state), state

    def extend(self, tokens, state):
        state.rows = [(last, place + 1) for last, place in state.rows]
        return self.logits(state)[:, None]


class Rows:
    def __init__(self, rows):
        self.rows = rows

    def select(self, rows):
        self.rows = [self.rows[row] for row in rows.tolist()]


ALPHABET = ["a", "b", "ab", " ", "\n", "é", "春", "眠", "😀", "👩\u200d👧", "\u2581", "\ufffd"]
TEXTS = st.lists(st.sampled_from(ALPHABET), max_size=12).map("".join)


@st.composite
def cut(draw, text: str) -> list[bytes]:
    """The UTF-8 of a text in pieces, cut anywhere; some with broken characters."""
    data = text.encode()
    places = draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=len(data)))
    ends = [0, *sorted(place for place in places if place < len(data)), len(data)]
    pieces = [data[start:end] for start, end in pairwise(ends) if start < end]
    if pieces and draw(st.integers(0, 3)) == 0:
        del pieces[draw(st.integers(0, len(pieces) - 1))]
    return pieces


@st.composite
def cases(draw):
    """Pieces of prompts and of what is said after each, and stop strings: parts of the texts, and others."""
    scripts = draw(st.lists(TEXTS.flatmap(cut), min_size=1, max_size=4))
    prompts = [draw(TEXTS.filter(bool).flatmap(lambda text: cut(text))) or [b"x"] for _ in scripts]
    stops = draw(st.lists(TEXTS.filter(bool), max_size=2))
    for _ in range(draw(st.integers(0, 2))):
        said = b"".join(draw(st.sampled_from(scripts))).decode(errors="ignore")
        if said:
            start = draw(st.integers(0, len(said) - 1))
            stops.append(said[start : draw(st.integers(start + 1, len(said)))])
    return prompts, scripts, stops, draw(st.booleans())


def generator_of(prompts, scripts, leading_space, batch_size):
    """A generator that says the scripts, and its prompts as it takes them."""
    pieces: list[bytes] = []
    numbers = []
    for prompt, script in zip(prompts, scripts, strict=True):
        first = len(pieces)
        pieces += [*prompt, *script]
        numbers.append((range(first, first + len(prompt)), range(first + len(prompt), len(pieces))))
    tokenizer = Pieces(pieces, leading_space)
    said = {asked[-1] + 3: [number + 3 for number in told] for asked, told in numbers}
    model = Scripts(said, len(tokenizer))
    generator = Generator(
        LoadedModel(model, tokenizer, None, CheckpointConfig(model=model.config)), batch_size=batch_size
    )
    return generator, [" ".join(map(str, asked)) for asked, _ in numbers]


def expected_of(prompt: list[bytes], script: list[bytes], stops: list[str], leading_space: bool):
    """The text up to the first stop string that is complete, token by token; how many tokens it took; and why."""
    strip = leading_space and not b"".join(prompt)
    wanted = [stop.encode() for stop in stops]
    for count in range(len(script) + 1):
        data = b"".join(script[:count])
        data = data.removeprefix(b" ") if strip else data
        places = [data.index(stop) for stop in wanted if stop in data]
        if places:
            return data[: min(places)].decode(errors="replace"), count, "stop"
    return data.decode(errors="replace"), len(script) + 1, "eos"


@pytest.mark.parametrize("strategy", ["greedy", "beam", "sample"])
@given(case=cases(), batch_size=st.integers(1, 4))
@settings(max_examples=60)
def test_text_ends_before_the_first_stop_string(strategy, case, batch_size):
    prompts, scripts, stops, leading_space = case
    generator, asked = generator_of(prompts, scripts, leading_space, batch_size)
    size = {"beam_size": min(3, len(generator.loaded.tokenizer))} if strategy == "beam" else {}
    results = generator.generate(asked, strategy=strategy, stop=stops, **size)
    for result, prompt, script in zip(results, prompts, scripts, strict=True):
        text, count, reason = expected_of(prompt, script, stops, leading_space)
        assert (result.text, len(result.token_ids), result.finish_reason) == (text, count, reason)
        assert not any(stop in result.text for stop in stops if "\ufffd" not in stop)
        pieces = list(generator.stream(asked[result.prompt_index], strategy=strategy, stop=stops, **size))
        assert "".join(pieces) == result.text
        assert all(pieces)


@given(pieces=TEXTS.flatmap(cut), stops=st.lists(TEXTS.filter(bool), max_size=3))
@settings(max_examples=200)
def test_what_is_certain_is_shown_at_once(pieces, stops):
    """Held back are the longest end that begins a stop string, and the first bytes of a character."""
    decoder, wanted = IncrementalDecoder(Pieces(pieces), stops), [stop.encode() for stop in stops]
    shown, said = "", b""
    for number, piece in enumerate(pieces):
        shown, said = shown + decoder.push(number + 3), said + piece
        if any(stop in said for stop in wanted):
            break
        held = max(n for n in range(len(said) + 1) if not n or any(s.startswith(said[-n:]) for s in wanted))
        certain = codecs.getincrementaldecoder("utf-8")("replace").decode(said[: len(said) - held])
        assert shown == certain


def test_a_stop_string_does_not_match_in_the_prompt_or_across_its_end():
    for prompt, script, stop, text, reason in [
        ([b"ab", b"stop"], [b"go"], "stop", "go", "eos"),
        ([b"s", b"to"], [b"p", b"go"], "stop", "pgo", "eos"),
        ([b"to"], [b"p", b"stop"], "stop", "p", "stop"),
        (["春".encode()[:2]], ["春".encode()[2:], b"x"], "春", "\ufffdx", "eos"),
        ([b"a"], ["😀".encode()[:3], "😀".encode()[3:], b"x"], "😀x", "", "stop"),
        ([b"a"], ["😀".encode()[:3], "😀x".encode()[3:]], "x", "😀", "stop"),
        ([b"a"], ["x春".encode()[:3], "眠".encode()], "眠", "x\ufffd", "stop"),
        ([b"a"], ["x春".encode()[:3], b"b"], "\ufffd", "x\ufffdb", "eos"),
        ([b"a"], [b"xab", b"c"], ["abc", "b"], "xa", "stop"),
        ([b"a"], [b"xabc"], ["abc", "b"], "x", "stop"),
    ]:
        generator, asked = generator_of([prompt], [script], False, 1)
        result = generator.generate(asked, stop=stop)[0]
        assert (result.text, result.finish_reason) == (text, reason), (prompt, script, stop)
        assert "".join(generator.stream(asked[0], stop=stop)) == text


@pytest.mark.parametrize("strategy", ["greedy", "beam", "sample"])
def test_a_text_that_ends_in_a_loop_keeps_what_was_said(strategy):
    """Also in a stream, which cannot take it back."""
    first, rest = "春".encode()[:2], "春".encode()[2:]
    generator, asked = generator_of([[b"a"]], [[b"x", first, rest]], False, 1)
    generator.loaded.model.scripts[3] = [4] + [5, 6] * 9
    options = {"strategy": strategy, "stop_on_loop": {"max_block": 2, "times": 3}}
    result = generator.generate(asked, **options)[0]
    assert result.finish_reason == "loop"
    assert result.text == "x春春春"
    assert "".join(generator.stream(asked[0], **options)) == result.text
    assert generator.generate(asked, strategy=strategy)[0].finish_reason == "eos"
