"""What a survey counts is what training sees, and what it samples is fair."""

import random
from itertools import islice

import pytest
from data_fakes import EOS, ByteTokenizer, data_config, write_jsonl, write_lines

from txtgen.data import build_objective, survey, train_stream
from txtgen.data.report import locate
from txtgen.data.survey import Hashes, bin_of


def surveyed(data, max_length=64, max_source_length=None, max_bytes=10**9, num_samples=2):
    objective = build_objective(
        data.objective, ByteTokenizer(), max_length=max_length, max_source_length=max_source_length
    )
    return survey(
        data, objective, objective, source_tokenizer=None, seed=0, max_bytes=max_bytes, num_samples=num_samples
    )


@pytest.fixture
def lines(tmp_path):
    """Twenty lines, two of them the same, three blank."""
    texts = [f"line {number} äü" for number in range(16)] + ["line 3 äü", " ", "", "\t"]
    return write_lines(tmp_path / "x.txt", texts)


def test_training_and_held_out_text_are_counted_as_the_stream_reads_them(tmp_path):
    texts = [f"line {number} äü" for number in range(40)]
    path = write_lines(tmp_path / "x.txt", [*texts, " ", "", "\t"])
    data = data_config({"path": str(path), "documents": "line"}, validation={"fraction": 0.3})
    found, held = surveyed(data, num_samples=50)
    assert (found.blank, held.blank) == (3, 0)
    parts = (found, held)
    assert [part.examples for part in parts] == [part.report.records for part in parts]
    assert [part.ending for part in parts] == [part.examples for part in parts]
    assert sum(part.tokens for part in parts) == sum(len(text.encode()) + 1 for text in texts)
    assert [part.tokens - part.byte_tokens for part in parts] == [part.examples for part in parts]  # the beginnings
    assert [part.scored_tokens for part in parts] == [part.tokens for part in parts]
    assert all(sum(part.lengths.values()) == part.examples for part in parts)
    objective = build_objective(data.objective, ByteTokenizer(), max_length=64)
    batches = islice(train_stream(data, objective, batch_tokens=64, length=64, seed=0), 30)
    read = {locate(origin) for batch in batches for origin in batch.origins[0]}
    assert {sample.place for sample in found.samples} == read
    assert len(read) == found.examples
    assert not read & {sample.place for sample in held.samples}


def test_repeated_and_shared_records(tmp_path):
    chats = [
        {"messages": [{"role": "user", "content": f"q{n % 6}"}, {"role": "assistant", "content": "a"}]}
        for n in range(8)
    ]
    sources = {"kind": "chat", "path": str(write_jsonl(tmp_path / "a.jsonl", chats))}
    other = [*chats[:2], {"messages": [{"role": "user", "content": "q0a"}, {"role": "assistant", "content": ""}]}]
    held = {"kind": "chat", "path": str(write_jsonl(tmp_path / "b.jsonl", other))}
    data = data_config(sources, objective={"kind": "chat"}, validation={"sources": [held]})
    found, validation = surveyed(data)
    assert (found.repeated, found.compared) == (2, 8)
    assert (validation.repeated, validation.shared, validation.sought) == (0, 2, 3)
    assert validation.report.oddities["an empty turn of the assistant"].places == [f"{tmp_path}/b.jsonl:3"]


def test_of_very_many_records_a_fair_share_of_the_hashes_is_kept():
    draw = random.Random(0)
    values = [draw.getrandbits(64) for _ in range(20_000)]
    hashes = Hashes(most=1_000)
    for value in values + values[:10_000]:
        hashes.add(value)
        assert len(hashes.counts) <= 1_000
    met = sum(hashes.counts.values())
    assert len(hashes.counts) > 400
    assert 1 - len(hashes.counts) / met == pytest.approx(1 / 3, abs=0.04)
    everything = Hashes(most=30_000)
    for value in values:
        everything.add(value)
    assert len(everything.counts) == 20_000


def test_a_large_corpus_is_sampled_over_all_of_it(tmp_path):
    for name in "ab":
        write_lines(tmp_path / f"{name}.txt", [f"{name} line {number}" for number in range(20_000)])
    data = data_config(*({"path": str(tmp_path / f"{name}.txt"), "documents": "line"} for name in "ab"))
    found, _ = surveyed(data, max_bytes=100_000)
    assert 50_000 <= found.read_bytes <= 250_000 < found.num_bytes
    whole, _ = surveyed(data)
    assert whole.read_bytes == whole.num_bytes
    assert whole.tokens / whole.examples == pytest.approx(found.tokens / found.examples, rel=0.1)


@pytest.mark.parametrize(
    ("objective", "source_length"),
    [
        ({"kind": "seq2seq"}, 64),
        ({"kind": "chat"}, None),
        ({"kind": "chat", "format": {"kind": "text"}}, None),
    ],
)
def test_pairs_end_unless_they_are_cut(tmp_path, objective, source_length):
    path = write_lines(tmp_path / "x.tsv", [f"source {n}\ttarget {'long ' * (20 * (n == 3))}{n}" for n in range(10)])
    data = data_config({"kind": "tsv", "path": str(path)}, objective=objective)
    found, validation = surveyed(data, 64, source_length, num_samples=10)
    assert validation is None
    assert (found.examples, found.ending, found.report.cut_examples) == (10, 9, 1)
    assert sum(found.source_lengths.values()) == (10 if source_length else 0)
    assert len(found.samples) == 10
    for sample in found.samples:
        scored = [token for _, token, flag in sample.tokens if flag]
        text = ByteTokenizer().decode(scored)
        assert text.startswith("target")
        assert (scored[-1] == EOS) == (not text.startswith("target long"))
        assert bool(sample.source) == bool(source_length)


@pytest.mark.parametrize(
    "objective", ["causal_lm", "prefix_lm", "span_corruption", "fill_in_middle", {"causal_lm": 1, "prefix_lm": 1}]
)
def test_every_objective_of_texts_can_be_surveyed(lines, objective):
    if isinstance(objective, str):
        settings = {"kind": objective, **({"num_sentinels": 40} if objective == "span_corruption" else {})}
    else:
        settings = {
            "kind": "mixture",
            "parts": [{"kind": kind, "weight": weight} for kind, weight in objective.items()],
        }
    data = data_config({"path": str(lines), "documents": "line"}, objective=settings)
    found, _ = surveyed(data)
    assert found.examples == found.ending == 17
    for sample in found.samples:
        assert any(flag for *_, flag in sample.tokens)
        assert sample.place.startswith(f"{lines}:")


def test_bad_records_are_counted_and_never_raised(tmp_path):
    path = write_lines(tmp_path / "x.tsv", ["a\tb", "only one", "c\td"] * 50)
    found, _ = surveyed(data_config({"kind": "tsv", "path": str(path)}, objective={"kind": "seq2seq"}), 64, 64)
    assert (found.report.records, found.report.bad_records) == (150, 50)
    assert found.report.bad_examples[0].startswith(f"{path}:")


def test_bins():
    assert [bin_of(length) for length in (0, 1, 2, 3, 4, 5, 8, 9)] == [1, 1, 2, 4, 4, 8, 8, 16]
    assert all(bin_of(length) >= length > bin_of(length) // 2 for length in range(2, 200))
