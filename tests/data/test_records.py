import json

import pytest
from data_fakes import data_config, write_jsonl, write_lines

from txtgen.data import lines, sample_texts
from txtgen.data import records as records_module
from txtgen.data.corpora import open_corpora, usable_records
from txtgen.data.report import BadRecordPolicy, StreamReport
from txtgen.data.types import ChatRecord, Message, PairRecord, TextRecord
from txtgen.errors import DataError


def read(data, report=None):
    """Every record of every source, in order."""
    policy = BadRecordPolicy(data, report or StreamReport())
    found = []
    for corpus in open_corpora(data.sources):
        for block in range(len(corpus.blocks)):
            units = corpus.units(block)
            for unit in range(len(units)):
                found += usable_records(units, unit, None, policy)
    return found


def test_jsonl(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "one\u2028\n"}, {"text": ""}, {"text": " "}, {"text": "zwei ü"}])
    path.write_text("\ufeff\n" + path.read_text() + "  \n")
    found = read(data_config({"kind": "jsonl", "path": str(path)}))
    assert [(record.text, record.begins, record.ends) for record in found] == [
        ("one\u2028\n", True, True),
        ("zwei ü", True, True),
    ]


def test_a_long_text_in_json_becomes_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "PIECE_CHARACTERS", 5000)
    for text in ("word " * 4000, "line\n" * 4000, "世" * 20_000):
        path = write_jsonl(tmp_path / "x.jsonl", [{"body": text}, {"body": "short"}])
        *pieces, short = read(data_config({"kind": "jsonl", "path": str(path), "text_field": "body"}))
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.begins for piece in pieces] == [True, *[False] * (len(pieces) - 1)]
        assert [piece.ends for piece in pieces] == [*[False] * (len(pieces) - 1), True]
        assert len(pieces) >= 4
        assert short == TextRecord("short", short.origin)


def test_tsv(tmp_path):
    path = write_lines(tmp_path / "x.tsv", ["a\tb\tc", "", "d\te\tf\tg\r"])
    data = data_config({"kind": "tsv", "path": str(path), "source_column": 2, "target_column": 0})
    assert [(pair.source, pair.target) for pair in read(data)] == [("c", "a"), ("f", "d")]


def test_jsonl_pairs_join_their_source_fields(tmp_path):
    rows = [{"q": "do", "i": "this", "a": "done"}, {"q": "do", "i": "", "a": "what?"}]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    data = data_config({"kind": "jsonl_pairs", "path": str(path), "source_field": ["q", "i"], "target_field": "a"})
    assert [(pair.source, pair.target) for pair in read(data)] == [("do\nthis", "done"), ("do", "what?")]


def test_chat(tmp_path):
    messages = [{"role": "user", "content": "hi", "mood": "fine"}, {"role": "assistant", "content": "ho"}]
    path = write_jsonl(tmp_path / "x.jsonl", [{"messages": messages, "id": 7}])
    (record,) = read(data_config({"kind": "chat", "path": str(path)}))
    assert record == ChatRecord((Message("user", "hi"), Message("assistant", "ho")), record.origin)


def test_parallel_blank_pairs_are_left_out_and_half_pairs_are_bad(tmp_path):
    write_lines(tmp_path / "s", ["a", "", "c", "d"])
    write_lines(tmp_path / "t", ["A", " ", "", "D\r"])
    source = {"kind": "parallel", "source_path": str(tmp_path / "s"), "target_path": str(tmp_path / "t")}
    with pytest.raises(DataError, match=r"target is empty.*t:3;"):
        read(data_config(source))
    report = StreamReport()
    found = read(data_config(source, on_bad_record="skip"), report)
    assert [(pair.source, pair.target) for pair in found] == [("a", "A"), ("d", "D")]
    assert (report.records, report.bad_records) == (3, 1)
    (tmp_path / "t").write_bytes(b"A\n\nC\n\xff\n")
    with pytest.raises(DataError, match=r"not UTF-8: byte 0xff.*t:4:1;"):
        read(data_config(source))


DEEP = "[" * 100_000 + "]" * 100_000
JSON_FAULTS = {
    '{"text": "a"': "not valid JSON at column 13",
    '{"text": "a",}': "not valid JSON",
    "text": "not valid JSON at column 1, near 'text'",
    '{"text": "a"} {"text": "b"}': "not valid JSON",
    '"text"': "must hold a JSON object, not a string",
    '["text"]': "must hold a JSON object, not a list",
    "null": "not null",
    "17": "not a number",
    '{"txt": "a", "id": 1}': r"no field 'text'; there are 'txt', 'id'",
    "{}": "there are none",
    '{"text": null}': "must be a string, not null",
    '{"text": true}': "must be a string, not a boolean",
    '{"text": 1.5}': "must be a string, not a number",
    '{"text": ["a"]}': "must be a string, not a list",
    '{"text": {"a": "b"}}': "must be a string, not an object",
    '{"text": "a", "text": "b"}': "key 'text' is given twice",
    '{"text": "\\ud800"}': "half of a surrogate pair",
    '{"text": ' + DEEP + "}": "nested too deeply",
    '{"text": ' + "1" * 5000 + "}": "too many digits",
    '\ufeff{"text": "a"}': "not valid JSON",
}
CHAT_FAULTS = {
    '{"messages": []}': "holds no message",
    '{"messages": "hi"}': "must be a list of messages, not a string",
    '{"messages": ["hi"]}': "must be an object with role and content, not a string",
    '{"messages": [{"role": "user"}]}': "no field 'content'",
    '{"messages": [{"content": "hi"}]}': "no field 'role'",
    '{"messages": [{"role": "human", "content": "hi"}]}': "unknown role 'human'; the roles are system, user, assistant",
    '{"messages": [{"role": "user", "content": 3}]}': "must be a string",
    '{"message": []}': "no field 'messages'",
}
TSV_FAULTS = {"no tab": "1 columns", "\tonly target": "the source is empty", "only source\t ": "the target is empty"}
GOOD = {
    "jsonl": '{"text": "good"}',
    "chat": '{"messages": [{"role": "user", "content": "good"}]}',
    "tsv": "a\tb",
    "jsonl_pairs": '{"source": "a", "target": "b"}',
}
PAIR_FAULTS = {'{"source": "a"}': "no field 'target'", '{"source": "", "target": "b"}': "the source is empty"}
FAULTS = [
    (kind, line, what)
    for kind, faults in (
        ("jsonl", JSON_FAULTS),
        ("chat", CHAT_FAULTS),
        ("tsv", TSV_FAULTS),
        ("jsonl_pairs", PAIR_FAULTS),
    )
    for line, what in faults.items()
]


@pytest.mark.parametrize(("kind", "line", "what"), FAULTS, ids=range(len(FAULTS)))
def test_a_bad_line_is_named_or_skipped(tmp_path, kind, line, what):
    path = write_lines(tmp_path / "x", [*[GOOD[kind]] * 30, line, *[GOOD[kind]] * 30])
    source = {"kind": kind, "path": str(path)}
    with pytest.raises(DataError, match=what) as caught:
        read(data_config(source))
    assert caught.value.where == f"{path}:31"
    assert "on_bad_record: skip" in caught.value.fix
    report = StreamReport()
    assert len(read(data_config(source, on_bad_record="skip"), report)) == 60
    assert (report.records, report.bad_records) == (61, 1)
    assert report.bad_examples[0].startswith(f"{path}:31: ")


@pytest.mark.parametrize(
    ("raw", "byte"), [(b"\xff", 1), (b"ab\xc0\xafc", 3), (b"abc\xe4\xb8", 4), (b"\xed\xa0\x80", 1)]
)
def test_what_is_not_utf8_is_named_by_line_and_byte(tmp_path, raw, byte):
    path = tmp_path / "x.txt"
    path.write_bytes(b"good\nline\n" + raw)
    for documents in ("file", "line", "paragraph", "continuous"):
        data = data_config({"path": str(path), "documents": documents})
        with pytest.raises(DataError, match="not UTF-8: byte 0x") as caught:
            read(data)
        assert caught.value.where == f"{path}:3:{byte}"
        report = StreamReport()
        found = read(
            data_config({"path": str(path), "documents": documents}, on_bad_record="skip", max_bad_fraction=1.0), report
        )
        assert len(found) == (2 if documents == "line" else 0)
        assert report.bad_records == 1


def test_line_numbers_in_compressed_files(tmp_path):
    import gzip

    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"good\n" * 70_000 + b"b\xffd\n"))
    with pytest.raises(DataError) as caught:
        read(data_config({"path": str(path), "documents": "line"}))
    assert caught.value.where == f"{path}:70001:2"


def test_a_line_of_json_that_is_far_too_long_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "MAX_RECORD_BYTES", 10_000)
    path = write_jsonl(tmp_path / "x", [{"text": "a" * 20_000}, {"text": "b" * 9_000}])
    report = StreamReport()
    data = data_config({"kind": "jsonl", "path": str(path)}, on_bad_record="skip", max_bad_fraction=1.0)
    assert [record.text[0] for record in read(data, report)] == ["b"]
    assert "longer than" in report.bad_examples[0]


def test_too_many_bad_records_are_an_error(tmp_path):
    lines = [json.dumps({"text": "good"}) if number % 10 else "bad" for number in range(300)]
    source = {"kind": "jsonl", "path": str(write_lines(tmp_path / "x", lines))}
    with pytest.raises(DataError, match=r"11 of 101 records cannot be used, more than max_bad_fraction 0.05"):
        read(data_config(source, on_bad_record="skip"))
    report = StreamReport()
    assert len(read(data_config(source, on_bad_record="skip", max_bad_fraction=0.11), report)) == 270
    assert len(report.bad_examples) == 5


def test_samples_meet_the_same_policy(tmp_path):
    source = {"kind": "jsonl", "path": str(write_lines(tmp_path / "x", ['{"text": "good"}', "bad"]))}
    with pytest.raises(DataError, match="x:2"):
        list(sample_texts(data_config(source), "all", 1000, seed=0))
    assert list(sample_texts(data_config(source, on_bad_record="skip"), "all", 1000, seed=0)) == ["good"]


def test_pairs_are_pairs(tmp_path):
    path = write_lines(tmp_path / "x", ["a\tb"])
    (pair,) = read(data_config({"kind": "tsv", "path": str(path)}))
    assert pair == PairRecord("a", "b", pair.origin)
    assert str(pair.origin) == f"{path} at byte 0"
