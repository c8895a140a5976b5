"""Texts that say the same again and again, against a search for every block."""

import pytest
from decode_fakes import TableModel, batch
from hypothesis import given
from hypothesis import strategies as st

from txtgen.config.decoding import BeamConfig, GreedyConfig, SampleConfig
from txtgen.config.decoding_values import LoopStop
from txtgen.decode import search
from txtgen.decode.stopping import ends_in_loop


def is_loop(token_ids, max_block, times):
    return any(token_ids[-size:] * times == token_ids[-size * times :] for size in range(1, max_block + 1))


TOKENS = st.lists(st.integers(0, 2), max_size=30)
LOOPS = st.builds(lambda head, block, times: head + block * times, TOKENS, TOKENS, st.integers(1, 6))


@given(TOKENS | LOOPS, st.integers(1, 12), st.integers(2, 5))
def test_equals_the_search_for_every_block(token_ids, max_block, times):
    expected = bool(token_ids) and is_loop(token_ids, max_block, times)
    assert ends_in_loop(token_ids, max_block, times) == expected


@pytest.mark.parametrize("config", [GreedyConfig(), SampleConfig(temperature=0.2), BeamConfig(beam_size=3)])
def test_generation_ends_with_the_first_loop(config):
    """Each row of a batch by itself; what comes before is as without the check, and the prompt does not count."""
    looped = 0
    for seed in range(10):
        model, prompts = TableModel(9, seed, eos_bonus={1: 1.0}), batch([[3, 3, 3], [4, 5], [6]])
        arguments = {"limits": [40, 30, 20], "eos_ids": (1,)}
        stop = LoopStop(max_block=7, times=3)
        free = search(model, prompts, config, **arguments)
        held = search(model, prompts, config.model_copy(update={"stop_on_loop": stop}), **arguments)
        for (result,), (before,) in zip(held, free, strict=True):
            ids = list(result.token_ids)
            ends = [count for count in range(1, len(ids) + 1) if is_loop(ids[:count], stop.max_block, stop.times)]
            assert ends == ([len(ids)] if result.finish_reason == "loop" else [])
            looped += bool(ends)
            if config.strategy != "beam":
                assert before.token_ids[: len(ids)] == result.token_ids
    assert looped > 5


def test_end_token_and_stop_string_come_before_a_loop():
    cases = [((2,), None, "eos"), ((), lambda row, ids: len(ids) == 3, "stop"), ((), None, "loop")]
    for eos_ids, stop, reason in cases:
        model, config = TableModel(4, never=(0, 1, 3)), GreedyConfig(stop_on_loop=LoopStop(times=3))
        found = search(model, batch([[2]]), config, limits=[3], eos_ids=eos_ids, stop=stop)
        assert found[0][0].finish_reason == reason
