"""The order of training: exact, elastic, and every document once an epoch."""

import json
import random
from collections import Counter
from itertools import islice

import pytest
import torch
from data_fakes import EOS, ByteTokenizer, data_config, documents_of, objective_of, plain, write_jsonl, write_lines

from txtgen.config.data import DataConfig
from txtgen.config.objectives import Seq2SeqObjective
from txtgen.config.sources import TsvSource
from txtgen.data import StreamReport, blocks, buckets, build_objective, merge_bookmarks, train_stream
from txtgen.data.corpora import open_corpora
from txtgen.data.order import keyed_permutation, keyed_word
from txtgen.data.report import BadRecordPolicy
from txtgen.data.supply import Feed
from txtgen.data.types import IGNORE
from txtgen.errors import CheckpointError, ConfigError, DataError

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Small corpora of many blocks, and windows of few pairs."""
    monkeypatch.setattr(blocks, "MIN_BLOCK_BYTES", 256)
    monkeypatch.setattr(buckets, "WINDOW_EXAMPLES", 50)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of every kind, a few KB each."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)

    def sentence(most=20):
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    (folder / "books").mkdir()
    for number in range(4):
        text = "\n".join(sentence() for _ in range(draw.randint(1, 20)))
        (folder / "books" / f"{number}.txt").write_text(text)
    write_lines(folder / "lines", [sentence() for _ in range(60)])
    write_jsonl(folder / "jsonl", [{"text": sentence()} for _ in range(30)])
    write_lines(folder / "tsv", [f"{sentence(8)}\t{sentence(8)}" for _ in range(130)])
    chats = [
        [{"role": role, "content": sentence(5)} for role in ("user", "assistant") * draw.randint(1, 3)]
        for _ in range(40)
    ]
    write_jsonl(folder / "chat", [{"messages": messages} for messages in chats])
    return folder


def config_of(corpus, task):
    books = {"path": f"{corpus}/books/*.txt"}
    lines = {"path": f"{corpus}/lines", "documents": "line"}
    jsonl = {"kind": "jsonl", "path": f"{corpus}/jsonl"}
    tsv = {"kind": "tsv", "path": f"{corpus}/tsv"}
    chat = {"kind": "chat", "path": f"{corpus}/chat"}
    match task:
        case "causal":
            return data_config(books | {"weight": 3.0}, lines | {"weight": 1.0}, jsonl | {"weight": 2.0})
        case "separate":
            return data_config(lines, objective={"kind": "causal_lm", "separate_documents": True})
        case "continuous":
            return data_config({"path": f"{corpus}/books", "documents": "continuous"})
        case "chat":
            return data_config(chat, tsv, objective={"kind": "chat"}, validation={"fraction": 0.2})
        case "seq2seq":
            return data_config(tsv, chat, objective={"kind": "seq2seq"})
        case "prefix":
            return data_config(books, lines, objective={"kind": "prefix_lm"})
        case "spans":
            return data_config(books, objective={"kind": "span_corruption", "num_sentinels": 40})
        case "middle":
            return data_config(books, lines, objective={"kind": "fill_in_middle", "rate": 0.7})
        case "mixture":
            spans = {"kind": "span_corruption", "weight": 3.0, "num_sentinels": 40}
            parts = [{"kind": kind, "weight": 1.0} for kind in ("causal_lm", "prefix_lm", "fill_in_middle", "chat")]
            return data_config(books, chat, tsv, objective={"kind": "mixture", "parts": [spans, *parts]})
        case "denoising":
            return data_config(books, objective={"kind": "denoising", "delete_ratio": 0.1})
        case "pairs":
            spans = {"kind": "span_corruption", "num_sentinels": 40}
            parts = [spans, *({"kind": kind} for kind in ("denoising", "prefix_lm", "seq2seq"))]
            return data_config(books, lines, tsv, objective={"kind": "mixture", "parts": parts})
        case "tiny":
            return data_config({"path": f"{corpus}/books/0.txt"})


DRAWN = ["prefix", "spans", "middle", "mixture", "denoising", "pairs"]
TASKS = ["causal", "separate", "continuous", "chat", "seq2seq", "tiny", *DRAWN]
BATCH_TOKENS, LENGTH = 512, 128


def stream(data, rank=0, world_size=1, bookmark=None, seed=5, batch_tokens=BATCH_TOKENS, length=LENGTH, report=None):
    return train_stream(
        data,
        objective_of(data, length),
        batch_tokens=batch_tokens,
        length=length,
        seed=seed,
        rank=rank,
        world_size=world_size,
        bookmark=bookmark,
        report=report,
    )


@pytest.mark.parametrize("task", TASKS)
def test_resuming_after_any_batch_gives_the_straight_run(corpus, task):
    data = config_of(corpus, task)
    straight = [plain(batch) for batch in islice(stream(data), 45)]
    for k in range(0, 40, 1 if task != "tiny" else 7):
        bookmark = json.loads(json.dumps(straight[k]["bookmark"]))
        resumed = [plain(batch) for batch in islice(stream(data, bookmark=bookmark), 5)]
        assert resumed == straight[k + 1 : k + 6], k


@pytest.mark.parametrize("task", TASKS)
def test_every_number_of_ranks_gives_the_same_global_batches(corpus, task):
    data = config_of(corpus, task)
    whole = list(islice(stream(data), 20))
    for world_size in (2, 4):
        ranks = [list(islice(stream(data, rank, world_size), 20)) for rank in range(world_size)]
        for number, batch in enumerate(whole):
            shares = [share[number] for share in ranks]
            for row in range(len(batch.input_ids)):
                share = shares[row % world_size]
                for name in ("input_ids", "labels", "positions", "segment_ids", "source_ids", "source_mask"):
                    if getattr(batch, name) is not None:
                        assert torch.equal(getattr(batch, name)[row], getattr(share, name)[row // world_size]), name
                assert batch.origins[row] == share.origins[row // world_size]
            assert sum(share.num_scored for share in shares) == batch.num_scored
            assert sum(share.bytes for share in shares) == batch.bytes
            assert merge_bookmarks([share.bookmark for share in shares]) == batch.bookmark


def test_another_number_of_ranks_can_go_on(corpus):
    for task in ("causal", "seq2seq"):
        data = config_of(corpus, task)
        straight = list(islice(stream(data), 12))
        ranks = [list(islice(stream(data, rank, 4), 6)) for rank in range(4)]
        bookmark = merge_bookmarks([batches[-1].bookmark for batches in ranks])
        resumed = [list(islice(stream(data, rank, 2, bookmark), 6)) for rank in range(2)]
        for number, batch in enumerate(straight[6:]):
            assert torch.equal(batch.input_ids[0::2], resumed[0][number].input_ids[: len(batch.input_ids[0::2])])
            assert torch.equal(batch.input_ids[1::2], resumed[1][number].input_ids[: len(batch.input_ids[1::2])])


def test_a_rank_without_a_pair_gets_a_row_that_teaches_nothing(corpus):
    data = config_of(corpus, "seq2seq")
    shares = [list(islice(stream(data, rank, 16), 30)) for rank in range(16)]
    empty = [batch for batches in shares for batch in batches if not batch.num_scored]
    assert empty
    for batch in empty:
        assert batch.input_ids.shape[0] == 1
        assert not batch.segment_ids.any()
        assert batch.source_mask.any()
        assert batch.bytes == 0


def test_every_document_is_read_once_an_epoch_in_another_order_each_time(corpus):
    lines = (corpus / "lines").read_bytes().split(b"\n")[:-1]
    offsets = {sum(len(line) + 1 for line in lines[:number]): line for number, line in enumerate(lines)}
    epoch_tokens = sum(len(line) + 1 for line in lines)
    data = config_of(corpus, "separate")
    batches = stream(data, batch_tokens=64, length=64)
    read, order, texts = 0, [], {}
    while read < 3 * epoch_tokens:
        batch = next(batches)
        for offset, text in documents_of(batch):
            if not order or order[-1] != offset or texts[offset].endswith(b"$"):
                order.append(offset)
                texts[offset] = b""
            texts[offset] += text
            assert (offsets[offset] + b"$").startswith(texts[offset])
        read += 64
    epochs = [order[start : start + len(lines)] for start in (0, len(lines), 2 * len(lines))]
    assert all(sorted(epoch) == sorted(offsets) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [offsets[offset] for offset in order[: len(lines)]] != lines


def test_lanes_together_read_every_block_once_an_epoch(corpus):
    data = config_of(corpus, "separate")
    epoch_tokens = (corpus / "lines").stat().st_size
    counts = Counter()
    for batch in islice(stream(data, batch_tokens=256, length=64), 10 * epoch_tokens // 256):
        counts.update(offset for offset, text in documents_of(batch) if text.endswith(b"$"))
    # Lanes are not in step, so after ten epochs some are a little ahead of others.
    assert len(counts) == 60
    assert min(counts.values()) >= 7
    assert max(counts.values()) <= 13


def test_no_two_lanes_read_the_same_text_in_an_epoch(corpus):
    data = config_of(corpus, "separate")
    half_an_epoch = (corpus / "lines").stat().st_size // 2
    ended = Counter()
    for batch in islice(stream(data, batch_tokens=4 * 64, length=64), half_an_epoch // (4 * 64)):
        ended.update(offset for offset, text in documents_of(batch) if text.endswith(b"$"))
    assert len(ended) > 20
    assert max(ended.values()) == 1


@pytest.mark.parametrize("task", DRAWN)
def test_a_document_is_drawn_anew_each_epoch_and_for_each_seed(corpus, task):
    """What is made of a document: always the same in an epoch of a seed, seldom the same in another."""
    data = config_of(corpus, task)
    policy = BadRecordPolicy(data, StreamReport())
    versions = {}
    for seed in (1, 2):
        feed = Feed(open_corpora(data.sources)[0], objective_of(data, LENGTH), policy, seed)
        for epoch in (0, 1, 2, 1):
            for block in range(len(feed)):
                opened = feed.open(epoch * len(feed) + block)
                found = feed.read(opened, 0)
                assert found.stop == len(opened.order)
                for number in range(len(found)):
                    examples = found.span(number, number + 1).each()
                    place = (opened.units.block.file, opened.units.offset(opened.order[found.number(number)]))
                    parts = [
                        part for e in examples for part in (e.input_ids, e.labels, e.source_ids) if part is not None
                    ]
                    made = b"".join(part.tobytes() for part in parts)
                    assert versions.setdefault(place, {}).setdefault((seed, epoch), made) == made
    different = [len(set(made.values())) for made in versions.values()]
    assert sum(different) > 0.6 * 6 * len(different)


def test_blocks_are_in_another_order_each_epoch(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"{number}")
    data = data_config({"path": str(tmp_path)})
    tokens = torch.cat([batch.labels[0] for batch in islice(stream(data, batch_tokens=16, length=16), 4)])
    epochs = [bytes(epoch).decode() for epoch in tokens[tokens != EOS].reshape(-1, 8).tolist()]
    assert all(sorted(epoch) == list("01234567") for epoch in epochs)
    assert len(set(epochs)) == len(epochs) == 4


def test_seeds_give_other_orders(corpus):
    data = config_of(corpus, "causal")
    assert plain(next(stream(data, seed=1))) != plain(next(stream(data, seed=2)))


@pytest.mark.parametrize(("task", "separate"), [("causal", False), ("separate", True), ("chat", True)])
def test_positions_segments_and_padding(corpus, task, separate):
    for batch in islice(stream(config_of(corpus, task)), 10):
        assert batch.separate is separate
        for row in range(4):
            segments = batch.segment_ids[row].tolist()
            assert sorted(set(segments) - {0}) == list(range(1, len(batch.origins[row]) + 1))
            seen = Counter()
            for place, (segment, position) in enumerate(zip(segments, batch.positions[row].tolist(), strict=True)):
                assert position == (seen[segment] if separate and segment else 0 if separate else place)
                seen[segment] += 1
            assert segments[segments.index(0) :] == [0] * seen[0] if seen[0] else task != "chat" or seen
            assert all(label == IGNORE for label in batch.labels[row][batch.segment_ids[row] == 0].tolist())
        if task != "chat":
            assert batch.num_scored == batch.num_tokens == BATCH_TOKENS


def test_conversations_are_never_split(corpus):
    data = config_of(corpus, "chat")
    for batch in islice(stream(data, length=256, batch_tokens=512), 20):
        for row in range(len(batch.input_ids)):
            for segment in range(1, len(batch.origins[row]) + 1):
                inputs = batch.input_ids[row][batch.segment_ids[row] == segment]
                assert inputs[0] == ByteTokenizer.special.bos_id


def test_pairs_stay_within_the_budget_and_each_is_read_once_an_epoch(corpus):
    data = data_config({"kind": "tsv", "path": f"{corpus}/tsv"}, objective={"kind": "seq2seq"})
    counts, waste, size = Counter(), 0, 0
    batches = stream(data, batch_tokens=600)
    while sum(counts.values()) < 5 * 130:
        batch = next(batches)
        rows, width = batch.input_ids.shape
        padded = rows * (width + batch.source_ids.shape[1])
        assert padded <= 600
        waste, size = waste + padded - batch.num_tokens, size + padded
        counts.update(origins[0].offset for origins in batch.origins)
        assert (batch.segment_ids != 0).any(0).all(), "padded to more than the longest"
        assert batch.source_mask.any(0).all()
    assert len(counts) == 130
    assert max(counts.values()) - min(counts.values()) <= 1
    assert waste / size < 0.3


def test_sources_have_their_share_of_the_tokens(corpus):
    lines = {"path": f"{corpus}/lines", "documents": "line"}
    jsonl = {"kind": "jsonl", "path": f"{corpus}/jsonl"}
    for weights, batches in (((1.0, 1.0), 40), ((1.0, 9.0), 40), ((1.0, 49.0), 100)):
        data = data_config(lines | {"weight": weights[0]}, jsonl | {"weight": weights[1]})
        counts = Counter()
        first = Counter()
        for number, batch in enumerate(islice(stream(data, batch_tokens=64 * 64, length=64), batches)):
            for origins, segments in zip(batch.origins, batch.segment_ids.tolist(), strict=True):
                for segment, origin in enumerate(origins, start=1):
                    size = segments.count(segment)
                    counts[origin.source] += size
                    first[origin.source] += size * (number < 3)
        share = weights[0] / sum(weights)
        assert counts[0] / counts.total() == pytest.approx(share, rel=0.1)
        # From the first batches on, a rare source is neither absent nor in every row.
        assert first[0] / first.total() == pytest.approx(share, rel=0.7)


def test_sources_without_weights_are_read_by_their_size(corpus):
    data = data_config(
        {"path": f"{corpus}/lines", "documents": "line"}, {"path": f"{corpus}/books", "documents": "continuous"}
    )
    sizes = [(corpus / "lines").stat().st_size, sum(path.stat().st_size for path in (corpus / "books").iterdir())]
    counts = Counter()
    for batch in islice(stream(data), 100):
        for row, origins in enumerate(batch.origins):
            for segment, origin in enumerate(origins, start=1):
                counts[origin.source] += int((batch.segment_ids[row] == segment).sum())
    assert counts[0] / counts.total() == pytest.approx(sizes[0] / sum(sizes), rel=0.1)


@pytest.mark.parametrize(
    ("batch_tokens", "length", "world_size", "near"),
    [(100, 64, 1, "64 or 128"), (128, 64, 4, "256"), (320, 64, 2, "256 or 384"), (32, 64, 1, "64")],
)
def test_rows_that_cannot_be_shared_out(corpus, batch_tokens, length, world_size, near):
    with pytest.raises(ConfigError, match=f"set it to {near}$"):
        stream(config_of(corpus, "causal"), 0, world_size, batch_tokens=batch_tokens, length=length)


def test_a_pair_that_is_longer_than_a_batch(corpus):
    with pytest.raises(ConfigError, match="batch_tokens 20 cannot hold a pair"):
        next(stream(config_of(corpus, "seq2seq"), batch_tokens=20))


def test_bookmarks_of_another_stream_are_refused(corpus):
    data = config_of(corpus, "causal")
    bookmark = next(stream(data)).bookmark
    with pytest.raises(ConfigError, match=r"seed 5, now it is 6"):
        stream(data, seed=6, bookmark=bookmark)
    with pytest.raises(ConfigError, match=r"rows of a batch .* 4, now it is 8"):
        stream(data, batch_tokens=1024, bookmark=bookmark)
    with pytest.raises(ConfigError, match=r"data.objective.kind rows, now it is windows"):
        stream(config_of(corpus, "seq2seq"), bookmark=bookmark)
    with pytest.raises(ConfigError, match=r"number of data.sources 3, now it is 1"):
        stream(config_of(corpus, "separate"), bookmark=bookmark)


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 1},
        {"lanes": {}},
        {"lanes": []},
        {"lanes": {"0": [3, 0, [0, 0, 0], [0, 0, 0], [0, 0, 0]]}},
        {"lanes": {"0": [0, -1, [0, 0, 0], [0, 0, 0], [0, 0, 0]]}},
        {"lanes": {"0": [0, 0, [0, 0, 0], [0, 0, 0]]}},
        {"lanes": {"0": [0, 0, [0, 0, 0], [0, 0, 0], [0, 0, "0"]]}},
        {"lanes": {"0": [True, 0, [0, 0, 0], [0, 0, 0], [0, 0, 0]]}},
        {"corpora": None},
        {"corpora": [1, 2, 3]},
        {"corpora": [[["a", 1]], [], []]},
        {"corpora": [[["a", -1, 1]], [], []]},
        {"corpora": [[[1, 1, 1]], [], []]},
    ],
)
def test_damaged_bookmarks_are_refused(corpus, damage):
    data = config_of(corpus, "causal")
    with pytest.raises(CheckpointError):
        stream(data, bookmark=next(stream(data)).bookmark | damage)


def test_bookmarks_of_different_steps_do_not_merge(corpus):
    data = config_of(corpus, "seq2seq")
    batches = stream(data)
    with pytest.raises(CheckpointError, match="not at the same place"):
        merge_bookmarks([next(batches).bookmark, next(batches).bookmark])


def test_bookmarks_are_plain(corpus):
    def check(value):
        if isinstance(value, dict):
            assert all(type(key) is str for key in value)
            value = list(value.values())
        if type(value) is list:
            for part in value:
                check(part)
        else:
            assert type(value) in (int, str)

    for task in TASKS:
        for batch in islice(stream(config_of(corpus, task)), 3):
            check(batch.bookmark)


@pytest.mark.parametrize("text", ["", "\n\n \n", "\t\r\n\u3000"])
def test_a_corpus_of_nothing_is_an_error(tmp_path, text):
    (tmp_path / "x.txt").write_text(text)
    for documents in ("file", "line", "paragraph", "continuous"):
        with pytest.raises(DataError):
            next(stream(data_config({"path": str(tmp_path), "documents": documents})))


def test_a_source_of_nothing_usable_is_an_error_even_if_bad_records_are_skipped(corpus, tmp_path):
    write_jsonl(tmp_path / "x", [{"messages": [{"role": "user", "content": "hello?"}]}] * 50)
    bad = {"kind": "chat", "path": str(tmp_path / "x")}
    good = {"kind": "chat", "path": f"{corpus}/chat"}
    data = data_config(good, bad, objective={"kind": "chat"}, on_bad_record="skip", max_bad_fraction=1.0)
    with pytest.raises(DataError, match="nothing to learn"):
        next(stream(data))
    with pytest.raises(DataError, match="no turn of assistant"):
        next(stream(data_config(bad, objective={"kind": "chat"})))


def test_bad_records_are_judged_at_the_end_of_an_epoch_of_a_small_corpus(tmp_path):
    lines = ['{"text": "a good line"}'] * 9 + ["bad"]
    source = {"kind": "jsonl", "path": str(write_lines(tmp_path / "x", lines))}
    report = StreamReport()
    with pytest.raises(DataError, match="1 of 10 records cannot be used"):
        stream(data_config(source, on_bad_record="skip"), batch_tokens=16, length=16)
    # Too large to be looked over at the start, so the epoch's end is where it shows.
    batches = stream(data_config(source, on_bad_record="skip"), batch_tokens=2, length=2, report=report)
    assert not report.records
    with pytest.raises(DataError, match="1 of 10 records cannot be used"):
        list(batches)
    allowed = data_config(source, on_bad_record="skip", max_bad_fraction=0.1)
    assert len(list(islice(stream(allowed, batch_tokens=16, length=16), 50))) == 50


def test_a_corpus_smaller_than_a_row_repeats_with_a_warning(tmp_path, caplog):
    (tmp_path / "x.txt").write_text("tiny")
    batch = next(stream(data_config({"path": str(tmp_path / "x.txt")}), batch_tokens=64, length=64))
    assert batch.num_scored == 64
    assert batch.labels[0].tolist()[:10] == [*b"tiny", EOS, *b"tiny", EOS]
    assert "only 5 tokens, and a row holds 64" in caplog.text


def test_missing_files_are_found_before_the_first_batch(tmp_path):
    with pytest.raises(DataError, match="no file matches"):
        stream(data_config({"path": f"{tmp_path}/*.txt"}))


def test_examples_that_are_too_long_are_cut_and_counted(corpus):
    source = {"kind": "tsv", "path": f"{corpus}/tsv"}
    data = data_config(source, objective={"kind": "chat"}, on_bad_record="skip", max_bad_fraction=1.0)
    report = StreamReport()
    list(islice(stream(data, length=32, batch_tokens=128, report=report), 10))
    assert 0 < report.cut_examples <= report.records


def test_an_example_that_is_longer_than_a_row_is_cut_and_counted(corpus):
    data = data_config({"kind": "tsv", "path": f"{corpus}/tsv"}, objective={"kind": "chat"})
    report = StreamReport()
    objective = objective_of(data, max_length=1000)
    batches = train_stream(data, objective, batch_tokens=64, length=32, seed=0, report=report)
    assert all(len(batch.origins[0]) >= 1 for batch in islice(batches, 10))
    assert report.cut_examples > 0


def test_keys_never_change():
    """A changed order would break the resuming of every run, so these values are a promise."""
    assert keyed_word(1, 2, 3) == 13041116711478803063
    assert keyed_permutation(8, 1, 2, 3).tolist() == [3, 1, 6, 5, 7, 4, 2, 0]


def test_a_window_of_pairs_holds_no_pair_twice(tmp_path) -> None:
    """A corpus smaller than a window: sorted by length, the copies of a pair would share a batch."""
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{'s' * (1 + n % 7)}{n}\t{'t' * (1 + n % 5)}{n}\n" for n in range(200)), encoding="utf-8")
    data = DataConfig(sources=(TsvSource(path=str(path)),), objective=Seq2SeqObjective())
    objective = build_objective(data.objective, ByteTokenizer(), max_length=64, max_source_length=64)
    stream = train_stream(data, objective, batch_tokens=512, length=64, seed=1)
    seen: set[bytes] = set()
    while len(seen) < 200:
        rows = [row.numpy().tobytes() for row in next(stream).source_ids]
        assert len(set(rows)) == len(rows)
        seen.update(rows)
