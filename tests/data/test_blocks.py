import gzip
import os
import re
import tracemalloc

import pytest
from data_fakes import data_config
from hypothesis import given
from hypothesis import strategies as st

from txtgen.config.sources import ParallelSource, TextSource
from txtgen.data.blocks import cut_file, cut_pair
from txtgen.data.corpora import open_corpora, open_corpus
from txtgen.data.files import open_text
from txtgen.data.records import read_units
from txtgen.errors import DataError

TEXTS = st.text(st.sampled_from("ab é\u2028世\n\n\r\t\x0b\x1c\x85"), min_size=1, max_size=300)


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """Writes bytes to one file again and again."""
    path = tmp_path_factory.mktemp("blocks") / "x.txt"

    def write(data: bytes):
        path.write_bytes(data)
        return open_text(str(path))

    return write


def records_of(file, unit, size):
    source = TextSource(path=file.path, documents=unit)
    found = []
    for block in cut_file(0, file, size, unit):
        units = read_units(source, 0, [file], block)
        found += [record for unit in range(len(units)) for record in units.records(unit)]
    return found


def joined(records):
    """Pieces put together again: the documents, each with the byte where it begins."""
    documents = []
    for record in records:
        if record.begins:
            documents.append((record.origin.offset, record.text))
        else:
            documents[-1] = (documents[-1][0], documents[-1][1] + record.text)
    return documents


def documents_by_hand(data, unit):
    """The documents of a text, each with the byte where it begins, by slow and simple means."""
    lines, documents, offset, inside = data.split("\n"), [], 0, False
    if unit == "file":
        return [(0, data.replace("\r\n", "\n"))] if data.strip() else []
    for line in lines:
        blank = not line.strip(" \t\r")
        if unit == "line":
            if line.removesuffix("\r").strip():
                documents.append((offset, line.removesuffix("\r")))
        elif blank:
            inside = False
        elif inside:
            documents[-1] = (documents[-1][0], documents[-1][1] + "\n" + line)
        else:
            documents.append((offset, line))
            inside = True
        offset += len(line.encode()) + 1
    if unit == "paragraph":
        documents = [
            (offset, text.replace("\r\n", "\n").removesuffix("\r")) for offset, text in documents if text.strip()
        ]
    return documents


@pytest.mark.parametrize("unit", ["file", "line", "paragraph", "continuous"])
@given(text=TEXTS, size=st.integers(16, 64))
def test_blocks_cover_a_file_and_are_cut_at_characters(file_of, unit, text, size):
    data = text.encode()
    file = file_of(data)
    blocks = list(cut_file(0, file, size, unit))
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]
    assert (blocks[0].start, blocks[-1].stop) == (0, len(data))
    assert blocks[0].begins
    assert blocks[-1].ends
    assert [block.begins for block in blocks[1:]] == [block.ends for block in blocks[:-1]]
    for block in blocks:
        assert block.stop - block.start < 3 * size
        data[block.start : block.stop].decode()


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@given(text=TEXTS)
def test_documents_are_those_of_the_whole_text(file_of, unit, text):
    assert joined(records_of(file_of(text.encode()), unit, 10_000)) == documents_by_hand(text, unit)


@given(text=st.text(st.sampled_from("ab é世\n"), min_size=1, max_size=300), size=st.integers(16, 64))
def test_lines_are_the_same_however_blocks_are_cut(file_of, text, size):
    expected = [document for document in documents_by_hand(text, "line")]
    found = joined(records_of(file_of(text.encode()), "line", size))
    assert [(offset, text.strip()) for offset, text in found] == [(offset, text.strip()) for offset, text in expected]


def test_paragraphs_are_the_same_however_blocks_are_cut(file_of):
    text = "".join(
        f"paragraph {i}\nof two lines{' ' * (i % 3)}\n{' ' * (i % 2)}\n{chr(10) * (i % 4)}" for i in range(90)
    )
    expected = documents_by_hand(text, "paragraph")
    assert len(expected) == 90
    for size in (16, 20, 40, 64, 100, 1000):
        found = joined(records_of(file_of(text.encode()), "paragraph", size))
        assert [(offset, text.rstrip()) for offset, text in found] == [(o, text.rstrip()) for o, text in expected]


def test_long_documents_are_cut_after_lines_before_words_or_between_characters(file_of):
    for text, border in (
        ("some words in a line\n" * 100, re.compile(r".*\n\Z", re.S)),
        ("some words " * 200, re.compile(r".*\S\Z", re.S)),
        ("世界" * 300, re.compile(r".*", re.S)),
    ):
        file = file_of(text.encode())
        records = records_of(file, "file", 100)
        assert "".join(record.text for record in records) == text
        assert all(border.match(record.text) for record in records[:-1])
        assert [record.begins for record in records] == [True] + [False] * (len(records) - 1)
        assert [record.ends for record in records] == [False] * (len(records) - 1) + [True]
        assert all(not record.begins and not record.ends for record in records_of(file, "continuous", 100))


def test_line_ends(file_of):
    unix = records_of(file_of(b"one\ntwo \r x\n\nthree\n"), "line", 1000)
    dos = records_of(file_of(b"one\r\ntwo \r x\r\n\r\nthree"), "line", 1000)
    assert [record.text for record in unix] == [record.text for record in dos] == ["one", "two \r x", "three"]
    for unit in ("file", "paragraph", "continuous"):
        dos = records_of(file_of(b"one\r\ntwo\r\n\r\nthree"), unit, 1000)
        unix = records_of(file_of(b"one\ntwo\n\nthree"), unit, 1000)
        assert [record.text for record in dos] == [record.text for record in unix]


def test_only_a_newline_ends_a_line(file_of):
    text = "nul \0 esc \x1b line\u2028sep par\u2029sep vt\x0b fs\x1c nel\x85 ff\x0c end"
    assert [record.text for record in records_of(file_of(text.encode() + b"\nb"), "line", 1000)] == [text, "b"]


def test_text_starts_after_a_byte_order_mark(file_of):
    assert [record.text for record in records_of(file_of("\ufeffone\ntwo".encode()), "line", 1000)] == ["one", "two"]


@pytest.mark.parametrize("final", ["", "\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_parallel_lines_stay_together(tmp_path, final, pack):
    lines = [(f"source {i} " * (i % 9 + 1), f"target {i} " * (i * 7 % 30 + 1)) for i in range(500)]
    suffix = ".txt" if pack is bytes else ".gz"
    paths = [tmp_path / f"{side}{suffix}" for side in ("source", "target")]
    for side, path in enumerate(paths):
        path.write_bytes(pack(("\n".join(pair[side] for pair in lines) + final * side).encode()))
    corpus = open_corpus(0, ParallelSource(source_path=str(paths[0]), target_path=str(paths[1])))
    assert len(corpus.blocks) > 5
    found = []
    for block in range(len(corpus.blocks)):
        units = corpus.units(block)
        found += [(pair.source, pair.target) for unit in range(len(units)) for pair in units.records(unit)]
    assert found == lines


@pytest.mark.parametrize("counts", [(3, 2), (2, 3), (900, 901), (901, 900), (0, 1), (2, 0)])
def test_parallel_files_of_different_length(file_of, tmp_path, counts):
    for side, count in zip(("s", "t"), counts, strict=True):
        (tmp_path / side).write_text("a line\n" * count)
    source, target = (open_text(str(tmp_path / side)) for side in ("s", "t"))
    with pytest.raises(DataError, match=f"numbers of lines: {counts[0]} and {counts[1]}"):
        list(cut_pair(source, target, 100))


@pytest.mark.parametrize("size", [2**27, pytest.param(2**30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", [{"documents": "line"}, {"documents": "file"}, {"kind": "jsonl"}])
def test_a_gigabyte_without_a_newline_is_read_in_small_pieces(tmp_path, source, size):
    path = tmp_path / "x.txt"
    with path.open("wb") as file:
        file.truncate(size)
    data = data_config({"path": str(path), **source})
    tracemalloc.start()
    try:
        corpus = open_corpora(data.sources)[0]
        if source.get("kind") != "jsonl":
            assert len(corpus.blocks) > 256
            assert len(corpus.units(100).records(0)[0].text) < 600_000
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_more_files_than_may_be_open(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))
    try:
        corpus = open_corpora(data_config({"path": str(tmp_path)}).sources)[0]
        texts = [corpus.units(block).records(0)[0].text for block in range(200)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(texts) == sorted(f"text {number}" for number in range(200))


def test_a_hundred_empty_files_among_one_that_is_not(tmp_path, caplog):
    for number in range(100):
        (tmp_path / f"{number}.txt").touch()
    data = data_config({"path": str(tmp_path)})
    with pytest.raises(DataError, match="all 100 files are empty"):
        open_corpora(data.sources)
    (tmp_path / "x.txt").write_text("text")
    assert open_corpora(data.sources)[0].num_bytes == 4
    assert "100 of 101 files are empty" in caplog.text
