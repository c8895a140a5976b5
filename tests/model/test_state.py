import random
from dataclasses import dataclass

import pytest
import torch
from tiny_models import ARCHITECTURES, POSITIONS, logits_of, random_ids, source_for, tiny_model
from torch import Tensor

from txtgen.config.model import NgramConfig
from txtgen.errors import UsageError
from txtgen.model import Transformer
from txtgen.model.state import TransformerState
from txtgen.model.transformer import at_least_float32


@dataclass
class Prompts:
    input_ids: Tensor
    lengths: Tensor
    source_ids: Tensor | None = None
    source_mask: Tensor | None = None
    bidirectional: Tensor | None = None


class Reference:
    """Rows kept as plain lists and run through the whole model one by one: slow and simple."""

    def __init__(self, model: Transformer, rows: list[list[int]], sources: dict[str, Tensor]) -> None:
        self.model, self.rows = model, rows
        self.sources = [
            {"source_ids": sources["source_ids"][row][sources["source_mask"][row]][None]} if sources else {}
            for row in range(len(rows))
        ]

    def last_logits(self, count: int) -> Tensor:
        """Of the last `count` positions of each row, [B,count,V]."""
        logits = [
            logits_of(self.model, torch.tensor([row]), **source)[0, -count:]
            for row, source in zip(self.rows, self.sources, strict=True)
        ]
        return torch.stack(logits)

    def select(self, order: list[int]) -> None:
        self.rows = [list(self.rows[row]) for row in order]
        self.sources = [self.sources[row] for row in order]


def start(model: Transformer, lengths: list[int], capacity: int = 20, way=None):
    """Prefilled state, its logits, and the reference. way: what reads in place of the model."""
    ids = random_ids(len(lengths), max(lengths), seed=5)
    sources = source_for(model, len(lengths))
    with torch.inference_mode():
        logits, state = (way or model).prefill(Prompts(ids, torch.tensor(lengths), **sources), capacity)
    rows = [ids[row, :length].tolist() for row, length in enumerate(lengths)]
    return logits, state, Reference(model, rows, sources)


def extend(model, state, reference: Reference, count: int, seed: int, atol: float = 1e-11) -> None:
    """One step of both, which must agree."""
    tokens = random_ids(len(reference.rows), count, seed=seed)
    with torch.inference_mode(seed % 2 == 0):
        logits = model.extend(tokens, state)
    for row, new in zip(reference.rows, tokens.tolist(), strict=True):
        row.extend(new)
    expected = at_least_float32(reference.last_logits(count))
    torch.testing.assert_close(logits, expected, rtol=0, atol=atol)
    assert state.lengths.tolist() == [len(row) for row in reference.rows]


def walked(model: Transformer) -> tuple[TransformerState, Reference]:
    """A state that rows were extended, chosen and cut short in, every step of it compared with the whole sequence."""
    logits, state, reference = start(model, [3, 5, 1])
    torch.testing.assert_close(logits, reference.last_logits(1)[:, 0], rtol=0, atol=1e-11)
    extend(model, state, reference, 1, seed=1)
    extend(model, state, reference, 3, seed=2)
    state.select(torch.tensor([2, 0, 0, 1]))
    reference.select([2, 0, 0, 1])
    extend(model, state, reference, 1, seed=3)
    lengths = [2, 6, 4, 9]
    state.truncate(torch.tensor(lengths))
    reference.rows = [row[:length] for row, length in zip(reference.rows, lengths, strict=True)]
    extend(model, state, reference, 2, seed=4)
    return state, reference


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_agree_with_the_whole_sequence(architecture, position, heads):
    model = tiny_model(architecture, position, num_kv_heads=heads, qk_norm=heads == 2)
    walked(model)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_of_equal_rows_agree_with_the_whole_sequence(architecture, position):
    model = tiny_model(architecture, position, num_kv_heads=2)
    logits, state, reference = start(model, [4, 4])
    torch.testing.assert_close(logits, reference.last_logits(1)[:, 0], rtol=0, atol=1e-11)
    extend(model, state, reference, 1, seed=1)
    extend(model, state, reference, 4, seed=2)
    state.select(torch.tensor([1, 1, 0]))
    reference.select([1, 1, 0])
    extend(model, state, reference, 1, seed=3)
    state.truncate(torch.full((3,), 2))
    reference.rows = [row[:2] for row in reference.rows]
    extend(model, state, reference, 1, seed=4)
    extend(model, state, reference, 2, seed=5)


@pytest.mark.parametrize("position", ["rotary", "alibi", "sinusoidal"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_agree_within_a_sliding_window(architecture, position):
    model = tiny_model(architecture, position, sliding_window=3, full_attention_layers=(1,))
    logits, state, reference = start(model, [7, 2, 5])
    torch.testing.assert_close(logits, reference.last_logits(1)[:, 0], rtol=0, atol=1e-11)
    extend(model, state, reference, 1, seed=1)
    extend(model, state, reference, 4, seed=2)
    state.select(torch.tensor([1, 1, 0]))
    reference.select([1, 1, 0])
    extend(model, state, reference, 1, seed=3)


def wander(model: Transformer, choose: random.Random, way=None, atol: float = 1e-11) -> None:
    """Extend, choose and cut short as it comes, and compare."""
    lengths = [choose.randint(1, 4) for _ in range(choose.randint(1, 3))]
    _, state, reference = start(model, lengths, way=way)
    for step in range(10):
        match choose.choice(["extend", "extend", "select", "truncate"]):
            case "extend":
                count = choose.choice([1, 1, 2])
                if max(len(row) for row in reference.rows) + count <= 20:
                    extend(way or model, state, reference, count, step, atol)
            case "select":
                order = [choose.randrange(len(reference.rows)) for _ in range(choose.randint(1, 5))]
                state.select(torch.tensor(order))
                reference.select(order)
            case "truncate":
                kept = [choose.randint(1, len(row)) for row in reference.rows]
                state.truncate(torch.tensor(kept))
                reference.rows = [row[:n] for row, n in zip(reference.rows, kept, strict=True)]
    extend(way or model, state, reference, 1, 99, atol)


def any_model(architecture: str, choose: random.Random) -> Transformer:
    ngrams = choose.choice([None, NgramConfig(max_order=choose.randint(2, 5), num_buckets=64)])
    position, heads = choose.choice(list(POSITIONS)), choose.choice([1, 2, 4])
    return tiny_model(architecture, position, num_kv_heads=heads, ngrams=ngrams)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_order_of_operations(architecture, seed):
    choose = random.Random(seed)
    wander(any_model(architecture, choose), choose)


def test_beams_of_one_prompt_share_the_source():
    model = tiny_model("encoder_decoder", "rotary")
    _, state, reference = start(model, [2, 2])
    before = [cache.source[0].data_ptr() for cache in state.caches]
    order = [0, 0, 0, 1, 1, 1]
    for order in ([0, 0, 0, 1, 1, 1], [2, 0, 0, 3, 5, 4]):
        state.select(torch.tensor(order))
        reference.select(order)
        extend(model, state, reference, 1, seed=1)
        assert state.sources == (0, 0, 0, 1, 1, 1)
        assert [cache.source[0].data_ptr() for cache in state.caches] == before
    assert state.caches[0].source[0].shape[0] == 2


def test_sources_follow_their_rows():
    model = tiny_model("encoder_decoder", "rotary")
    _, state, reference = start(model, [2, 2, 2])
    expected = [0, 1, 2]
    for order in ([0, 0, 0, 2, 2, 1], [4, 0, 1, 3], [3, 1, 2, 0], [1, 2]):
        state.select(torch.tensor(order))
        reference.select(order)
        expected = [expected[row] for row in order]
        assert state.sources == tuple(expected)
        extend(model, state, reference, 1, seed=2)
    # Rows that share a source and stand side by side are one again.
    assert state.caches[0].source[0].shape[0] == 1


def test_selecting_the_rows_as_they_are_copies_nothing():
    model = tiny_model()
    _, state, _ = start(model, [2, 2, 3])
    keys = state.caches[0].keys
    state.select(torch.arange(3))
    assert state.caches[0].keys is keys


def test_what_lies_beyond_a_row_does_not_matter():
    model = tiny_model("decoder", "rotary")
    ids = random_ids(2, 6)
    lengths = torch.tensor([6, 2])
    other = ids.clone()
    other[1, 2:] = (other[1, 2:] + 1) % 13
    first, one = model.prefill(Prompts(ids, lengths), 10)
    second, two = model.prefill(Prompts(other, lengths), 10)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-14)
    tokens = random_ids(2, 1)
    torch.testing.assert_close(model.extend(tokens, one), model.extend(tokens, two), rtol=0, atol=1e-14)


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary"])
def test_capacity_beyond_the_positions_is_refused(position):
    model = tiny_model("decoder", position)
    with pytest.raises(UsageError, match="max_length is 24"):
        model.prefill(Prompts(random_ids(1, 3), torch.tensor([3])), 25)


@pytest.mark.parametrize("position", ["alibi", "t5_relative", "none"])
def test_positions_without_a_table_have_no_end(position):
    model = tiny_model("decoder", position)
    _, state, reference = start(model, [3], capacity=40)
    extend(model, state, reference, 30, seed=1)
    extend(model, state, reference, 1, seed=2)


def test_a_full_state_is_refused():
    model = tiny_model()
    with pytest.raises(UsageError, match="capacity is 2"):
        model.prefill(Prompts(random_ids(1, 3), torch.tensor([3])), 2)
    _, state, _ = start(model, [3, 2], capacity=4)
    model.extend(random_ids(2, 1), state)
    with pytest.raises(UsageError, match="holds 4 a row"):
        model.extend(random_ids(2, 1), state)


@pytest.mark.parametrize("length", [4, -1])
def test_truncating_to_what_is_not_there_is_refused(length):
    _, state, _ = start(tiny_model(), [3, 2])
    with pytest.raises(UsageError, match=f"{length} tokens"):
        state.truncate(torch.tensor([length, 1]))


def test_source_and_architecture_must_fit():
    prompts = Prompts(random_ids(1, 2), torch.tensor([2]))
    with pytest.raises(UsageError, match="no source"):
        tiny_model("encoder_decoder").prefill(prompts, 4)
    prompts.source_ids = random_ids(1, 2)
    with pytest.raises(UsageError, match="no encoder"):
        tiny_model("decoder").prefill(prompts, 4)
    prompts.source_ids = random_ids(1, 13)
    with pytest.raises(UsageError, match="max_source_length is 12"):
        tiny_model("encoder_decoder").prefill(prompts, 4)
