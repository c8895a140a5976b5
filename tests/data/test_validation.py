from collections import Counter
from itertools import islice

import pytest
import torch
from data_fakes import data_config, documents_of, objective_of, plain, write_jsonl, write_lines

from txtgen.data import (
    StreamReport,
    blocks,
    buckets,
    describe,
    sample_texts,
    train_stream,
    validation_batches,
    validation_pairs,
)
from txtgen.errors import ConfigError, DataError

LINES = [f"line number {number} {'x' * (number * 7 % 40)}" for number in range(200)]
PAIRS = [
    f"source {number} {'x' * (number * 7 % 40)}\ttarget {number} {'y' * (number * 5 % 30)}" for number in range(200)
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "MIN_BLOCK_BYTES", 256)
    monkeypatch.setattr(buckets, "WINDOW_EXAMPLES", 50)


@pytest.fixture
def lines(tmp_path):
    return {"path": str(write_lines(tmp_path / "lines", LINES)), "documents": "line"}


@pytest.fixture
def pairs(tmp_path):
    return {"kind": "tsv", "path": str(write_lines(tmp_path / "pairs", PAIRS))}


def validate(data, batch_tokens=256, length=64, seed=3, rank=0, world_size=1, report=None):
    objective = objective_of(data, length)
    sizes = {"batch_tokens": batch_tokens, "length": length, "seed": seed}
    return validation_batches(data, objective, **sizes, rank=rank, world_size=world_size, report=report)


def train(data, batches, seed=3):
    return islice(train_stream(data, objective_of(data), batch_tokens=256, length=64, seed=seed), batches)


def test_sources_of_their_own_are_read_once_in_order(lines, tmp_path):
    path = write_lines(tmp_path / "val", LINES[:30])
    data = data_config(lines, validation={"sources": [{"kind": "text", "path": str(path), "documents": "line"}]})
    batches = list(validate(data))
    text = b"".join(text for batch in batches for _, text in documents_of(batch))
    assert text == "".join(line + "$" for line in LINES[:30]).encode()
    assert sum(batch.bytes for batch in batches) == sum(map(len, LINES[:30]))
    assert all(batch.input_ids.shape == (4, 64) for batch in batches[:-1])
    assert batches[-1].input_ids.shape[0] <= 4


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_every_document_is_either_trained_on_or_held_out(lines, fraction):
    data = data_config(lines, validation={"fraction": fraction})
    held_out = {origin for batch in validate(data) for origins in batch.origins for origin in origins}
    trained = {origin for batch in train(data, 400) for origins in batch.origins for origin in origins}
    assert len(held_out) + len(trained) == len(LINES)
    assert not held_out & trained
    assert len(held_out) == pytest.approx(fraction * len(LINES), rel=0.4)
    sampled = list(sample_texts(data, "all", 10**6, seed=3))
    assert len(sampled) == len(trained)
    assert sorted(sampled) == sorted(line for line in LINES if any(line in text for text in sampled))


def test_pieces_of_a_long_document_are_held_out(tmp_path):
    path = tmp_path / "book"
    path.write_text("\n".join(LINES))
    for documents in ("file", "continuous"):
        data = data_config({"path": str(path), "documents": documents}, validation={"fraction": 0.3})
        held_out = {str(origin) for batch in validate(data) for origins in batch.origins for origin in origins}
        # Another batch size, another seed: what is held out depends on the seed only.
        other = {str(o) for batch in validate(data, 64, 16) for origins in batch.origins for o in origins}
        assert held_out == other
        assert held_out != {str(o) for batch in validate(data, seed=4) for origins in batch.origins for o in origins}
        trained = {str(o) for batch in train(data, 300) for origins in batch.origins for o in origins}
        assert not held_out & trained
        assert len(held_out) + len(trained) == describe(data)[0].blocks


@pytest.mark.parametrize("kind", ["causal_lm", "chat", "seq2seq"])
def test_every_pass_is_the_same(lines, pairs, kind):
    data = data_config(lines if kind == "causal_lm" else pairs, objective={"kind": kind}, validation={"fraction": 0.5})
    batches = validate(data)
    first = [plain(batch) for batch in batches]
    assert len(first) > 3
    assert [plain(batch) for batch in batches] == first == [plain(batch) for batch in validate(data)]
    rows = [origins for batch in first for origins in batch["origins"]]
    assert max(Counter(origin for row in rows for origin in set(row)).values()) <= 2


@pytest.mark.parametrize("kind", ["causal_lm", "chat", "seq2seq"])
@pytest.mark.parametrize("world_size", [2, 3, 4, 7])
def test_ranks_share_out_the_rows_and_have_as_many_batches(lines, pairs, kind, world_size):
    data = data_config(lines if kind == "causal_lm" else pairs, objective={"kind": kind}, validation={"fraction": 0.5})
    whole = list(validate(data))
    ranks = [list(validate(data, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    for group in zip(*ranks, strict=True):
        shapes = {batch.input_ids.shape[0] for batch in group}
        assert min(shapes) >= 1
        assert kind == "seq2seq" or len(shapes) == 1
    assert sum(batch.num_scored for batches in ranks for batch in batches) == sum(b.num_scored for b in whole)
    assert sum(batch.bytes for batches in ranks for batch in batches) == sum(b.bytes for b in whole)
    if kind != "seq2seq" and world_size in (2, 4):
        for number, batch in enumerate(whole[:-1]):
            for row in range(4):
                share = ranks[row % world_size][number]
                assert torch.equal(batch.labels[row], share.labels[row // world_size])


def test_a_batch_smaller_than_a_row_still_has_a_row(lines):
    data = data_config(lines, validation={"fraction": 0.2})
    assert {tuple(batch.input_ids.shape) for batch in validate(data, batch_tokens=10)} == {(1, 64)}


def test_the_first_batches_of_pairs_are_a_fair_sample(pairs):
    data = data_config(pairs, objective={"kind": "seq2seq"}, validation={"fraction": 0.5})
    widths = [batch.input_ids.shape[1] for batch in validate(data)]
    assert widths != sorted(widths)


def test_validation_pairs(pairs, lines, tmp_path):
    data = data_config(pairs, objective={"kind": "seq2seq"}, validation={"fraction": 0.5})
    found = [f"{pair.source}\t{pair.target}" for pair in validation_pairs(data, seed=3)]
    assert found == [pair for pair in PAIRS if pair in found]
    assert len(found) == sum(len(batch.origins) for batch in validate(data))
    path = write_lines(tmp_path / "val", PAIRS[:5])
    sources = [{"kind": "tsv", "path": str(path)}]
    data = data_config(pairs, objective={"kind": "seq2seq"}, validation={"sources": sources})
    assert [f"{pair.source}\t{pair.target}" for pair in validation_pairs(data, seed=3)] == PAIRS[:5]
    assert list(validation_pairs(data_config(lines, validation={"fraction": 0.5}), seed=3)) == []


def test_nothing_to_validate_on_is_an_error_with_counts(tmp_path, lines):
    path = write_lines(tmp_path / "two", ["one", "two"])
    source = {"path": str(path), "documents": "line"}
    seed = next(seed for seed in range(100) if len(list(sample_texts_held(source, seed))) == 2)
    with pytest.raises(DataError, match=r"fraction 0.1 holds out nothing usable of 2 documents"):
        validate(data_config(source, validation={"fraction": 0.1}), seed=seed)
    with pytest.raises(ConfigError, match="no validation data"):
        validate(data_config(lines))
    (tmp_path / "blank").write_text(" \n\n")
    sources = [{"kind": "text", "path": str(tmp_path / "blank")}]
    with pytest.raises(DataError, match="hold nothing to learn from: 0 records"):
        validate(data_config(lines, validation={"sources": sources}))


def sample_texts_held(source, seed):
    return sample_texts(data_config(source, validation={"fraction": 0.1}), "all", 1000, seed)


def test_everything_held_out_is_an_error_in_training(tmp_path):
    path = write_lines(tmp_path / "one", ["only one"])
    source = {"path": str(path), "documents": "line"}
    seed = next(seed for seed in range(1000) if not list(sample_texts_held(source, seed)))
    data = data_config(source, validation={"fraction": 0.1})
    with pytest.raises(DataError, match="nothing to learn"):
        next(train(data, 1, seed=seed))


def test_counts_of_what_was_held_out(lines):
    report = StreamReport()
    data = data_config(lines, validation={"fraction": 0.5})
    list(validate(data, report=report))
    assert report.held_out == 0
    assert 60 < report.records < 150
    stream = train_stream(data, objective_of(data), batch_tokens=256, length=64, seed=3, report=report)
    list(islice(stream, 50))
    assert report.held_out > 20


def test_samples_are_bounded_and_spread_over_the_corpus(lines, tmp_path):
    longer = [f"{line} end" for line in LINES]
    other = {"path": str(write_lines(tmp_path / "other", longer)), "documents": "line"}
    data = data_config(lines | {"weight": 1.0}, other | {"weight": 3.0})
    texts = list(sample_texts(data, "all", 2000, seed=1))
    assert sum(len(text.encode()) for text in texts) == 2000
    assert texts == list(sample_texts(data, "all", 2000, seed=1)) != list(sample_texts(data, "all", 2000, seed=2))
    ours = sum(len(text) for text in texts if not text.endswith("end"))
    assert ours / 2000 == pytest.approx(0.25, abs=0.1)
    numbers = [int(text.split()[2]) for text in texts[:-1]]
    assert max(numbers) - min(numbers) > 100
    assert len(list(sample_texts(data, "all", 10**9, seed=1))) == 400


def test_a_sample_ends_between_characters(tmp_path):
    (tmp_path / "x").write_text("世" * 200)
    assert list(sample_texts(data_config({"path": str(tmp_path / "x")}), "all", 10, seed=0)) == ["世世世"]


def test_samples_of_one_side(pairs, tmp_path):
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    chat = {"kind": "chat", "path": str(write_jsonl(tmp_path / "chat", [{"messages": turns}]))}
    data = data_config(pairs, chat, objective={"kind": "seq2seq"})
    for which, roles in (("source", {"system", "user"}), ("target", {"assistant"}), ("all", set())):
        texts = set(sample_texts(data, which, 10**9, seed=0))
        if which == "all":
            assert len(texts) == 2 * len(PAIRS) + 3
        else:
            side = 0 if which == "source" else 1
            assert texts == {pair.split("\t")[side] for pair in PAIRS} | roles


def test_describe(lines, pairs):
    summary, other = describe(data_config(lines, {"path": lines["path"], "documents": "file"}))
    assert (summary.files, summary.num_bytes) == (1, sum(len(line) + 1 for line in LINES))
    assert summary.name == f"text {lines['path']}"
    assert other.blocks > 5
