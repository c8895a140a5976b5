import pickle
from functools import lru_cache

import numpy as np
import pytest
import torch
from data_fakes import PAD, ByteTokenizer, data_config, objective_of, plain, taking
from hypothesis import given
from hypothesis import strategies as st

from txtgen.data import StreamReport, merge_bookmarks
from txtgen.data.buckets import cut_window, pad_pairs
from txtgen.data.packing import Packer, Rows
from txtgen.data.types import IGNORE, Example, Origin

TOGETHER = st.integers(1, 5)
SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=20)


@lru_cache
def objective(separate=True):
    return objective_of(data_config({"path": "x"}, objective={"kind": "causal_lm", "separate_documents": separate}))


def example(number, size, source=0, bidirectional=0, splittable=False):
    ids = np.full(size, number, np.int64)
    labels = np.arange(size, dtype=np.int64)
    sources = np.full(source, 200 + number, np.int64) if source else None
    return Example(ids, labels, Origin(0, "x", number), sources, bidirectional, splittable)


def pack(sizes, length, splittable, bidirectional=0, together=1):
    examples = [example(number, size, 0, bidirectional, splittable) for number, size in enumerate(sizes)]
    groups = [examples[first : first + together] for first in range(0, len(examples), together)]
    packer = Packer(taking(groups), report := StreamReport())
    batches = []
    while True:
        rows = Rows(1, length, PAD)
        if not packer.fill(rows, 0):
            return batches, report
        batches.append(rows.batch(objective()))


@given(SIZES, st.integers(1, 20), TOGETHER)
def test_split_examples_fill_all_rows_and_nothing_is_lost(sizes, length, together):
    batches, report = pack(sizes, length, splittable=True, together=together)
    ids = torch.cat([batch.input_ids[0] for batch in batches]).tolist()
    labels = torch.cat([batch.labels[0] for batch in batches]).tolist()
    expected = [number for number, size in enumerate(sizes) for _ in range(size)]
    padding = [PAD] * (-len(expected) % length)
    assert ids == expected + padding
    assert labels == [place for size in sizes for place in range(size)] + [IGNORE] * len(padding)
    assert report.cut_examples == 0


@given(SIZES, st.integers(1, 20), TOGETHER)
def test_whole_examples_stay_whole(sizes, length, together):
    batches, report = pack(sizes, length, splittable=False, together=together)
    rows, room = [], 0
    for number, size in enumerate(sizes):
        size = min(size, length)
        if size > room:
            rows.append([])
            room = length
        rows[-1] += [number] * size
        room -= size
    assert [batch.input_ids[0].tolist() for batch in batches] == [row + [PAD] * (length - len(row)) for row in rows]
    assert report.cut_examples == sum(size > length for size in sizes)


@given(SIZES, st.integers(1, 20), st.integers(0, 6), TOGETHER)
def test_bidirectional_positions_follow_their_example_over_rows(sizes, length, prefix, together):
    batches, _ = pack(sizes, length, splittable=True, bidirectional=prefix, together=together)
    for batch in batches:
        expected = (batch.labels >= 0) & (batch.labels < prefix)
        if expected.any():
            assert torch.equal(batch.bidirectional, expected)
        else:
            assert batch.bidirectional is None


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=60), st.integers(24, 80))
def test_batches_of_pairs(lengths, batch_tokens):
    window = [example(number, target, source) for number, (target, source) in enumerate(lengths)]
    batches = cut_window(window, batch_tokens, seed=0, number=0)
    assert sorted(pair.origin.offset for batch in batches for pair in batch) == list(range(len(window)))
    for batch in batches:
        padded = pad_pairs(batch, objective(), 0, 1)
        rows, width = padded.input_ids.shape
        assert rows * (width + padded.source_ids.shape[1]) <= batch_tokens
        for row, pair in enumerate(batch):
            assert padded.input_ids[row].tolist() == pair.input_ids.tolist() + [PAD] * (width - len(pair.input_ids))
            assert padded.source_ids[row][padded.source_mask[row]].tolist() == pair.source_ids.tolist()
            assert (padded.segment_ids[row] > 0).sum() == len(pair.input_ids)
            assert padded.positions[row].tolist() == list(range(width))


def test_pairs_with_a_bidirectional_prefix():
    padded = pad_pairs([example(0, 4, 1, bidirectional=2), example(1, 3, 1)], objective(), 0, 1)
    assert padded.bidirectional.tolist() == [[True, True, False, False], [False] * 4]


def test_bytes_of_a_row_are_those_of_its_scored_tokens():
    text = "grüße 世界"
    rows = Rows(2, 5, PAD)
    ids = np.array(ByteTokenizer().encode(text), np.int64)
    packer = Packer(taking([[Example(ids, ids, Origin(0, "x", 0), splittable=True)]]), StreamReport())
    assert all(packer.fill(rows, row) for row in range(2))
    assert rows.batch(objective()).bytes == 10
    assert rows.batch(objective(), slice(1, 2)).bytes == 5


def filled(numbers, bidirectional):
    rows = Rows(len(numbers), 4, PAD)
    for row, number in enumerate(numbers):
        Packer(taking([[example(number, 3, 0, bidirectional)]]), StreamReport()).fill(rows, row)
    return rows


def test_rows_of_several_processes_are_dealt_out_in_turn():
    parts = [filled([10, 11, 12], 0), filled([20, 21], 2), filled([30, 31], 0)]
    batch = Rows.dealt(pickle.loads(pickle.dumps(parts))).batch(objective())
    order = [10, 20, 30, 11, 21, 31, 12]
    assert batch.input_ids.tolist() == [[number] * 3 + [PAD] for number in order]
    assert [[origin.offset for origin in origins] for origins in batch.origins] == [[number] for number in order]
    assert batch.bidirectional[:, :2].all(1).tolist() == [False, True, False, False, True, False, False]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 0]] * 7
    assert Rows.dealt([filled([1], 0), filled([2], 0)]).batch(objective()).bidirectional is None


def test_a_batch_comes_from_another_process_as_it_was():
    batch = pad_pairs([example(0, 4, 1, bidirectional=2), example(1, 3, 1)], objective(), 0, 1, {"window": 1})
    assert plain(pickle.loads(pickle.dumps(batch))) == plain(batch)


@pytest.mark.parametrize("count", [2, 11])
def test_merged_lanes_are_in_order(count):
    bookmarks = [
        {"version": 1, "lanes": {str(lane): [lane] for lane in range(rank, 22, count)}} for rank in range(count)
    ]
    merged = merge_bookmarks(bookmarks[::-1])
    assert list(merged["lanes"].items()) == [(str(lane), [lane]) for lane in range(22)]
