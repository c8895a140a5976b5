"""Files that are not what they were."""

import gzip
import json
import os
import random
from itertools import islice

import pytest
from data_fakes import data_config, objective_of, plain, write_lines

from txtgen.data import StreamReport, train_stream
from txtgen.data.files import open_text
from txtgen.data.fingerprints import SAMPLE_BYTES, SAMPLES, fingerprints
from txtgen.errors import DataError

WHOLE = SAMPLES * SAMPLE_BYTES


def stream(data, bookmark=None, accept_changes=False, report=None):
    bookmark = json.loads(json.dumps(bookmark))
    options = {"batch_tokens": 128, "length": 64, "seed": 5}
    return train_stream(
        data, objective_of(data), **options, bookmark=bookmark, accept_changes=accept_changes, report=report
    )


@pytest.fixture
def folder(tmp_path):
    """Three files of lines, and a bookmark in the middle of them."""
    for name in "abc":
        write_lines(tmp_path / f"{name}.txt", [f"{name} {number}" for number in range(200)])
    return tmp_path


def config_of(folder):
    return data_config({"path": str(folder / "*"), "documents": "line"})


def rewrite(path, old, new):
    path.write_text(path.read_text().replace(old, new))


CHANGES = {
    "grown": (
        lambda folder: rewrite(folder / "b.txt", "b 199\n", "b 199\nb 200\n"),
        "b.txt has grown from 1,090 to 1,096 bytes: text was added at its end",
    ),
    "grown and changed": (
        lambda folder: rewrite(folder / "b.txt", "b 17\n", "b 17 and more\n"),
        "b.txt has grown from 1,090 to 1,099 bytes: and what was there has changed",
    ),
    "shorter": (
        lambda folder: os.truncate(folder / "b.txt", 500),
        "b.txt has become shorter, from 1,090 to 500 bytes",
    ),
    "other content": (
        lambda folder: rewrite(folder / "b.txt", "b 17\n", "b 71\n"),
        "b.txt has other content, of the same 1,090 bytes",
    ),
    "gone": (lambda folder: (folder / "b.txt").unlink(), "b.txt is gone"),
    "new": (lambda folder: (folder / "d.txt").write_text("d"), "d.txt is new"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_named_and_can_be_accepted(folder, change):
    bookmark = list(islice(stream(config_of(folder)), 5))[-1].bookmark
    act, told = CHANGES[change]
    act(folder)
    with pytest.raises(DataError, match="the corpus has changed since the checkpoint") as caught:
        stream(config_of(folder), bookmark)
    assert caught.value.where == f"{folder}/{told}"
    report = StreamReport()
    batches = list(islice(stream(config_of(folder), bookmark, accept_changes=True, report=report), 60))
    assert report.changed_files == [f"{folder}/{told}"]
    # From then on the new text is the run's own.
    again = [plain(batch) for batch in islice(stream(config_of(folder), batches[9].bookmark), 50)]
    assert again == [plain(batch) for batch in batches[10:]]


def test_files_may_move(folder, tmp_path_factory):
    batches = list(islice(stream(config_of(folder)), 8))
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    folder.rename(elsewhere)
    moved = list(islice(stream(config_of(elsewhere), batches[2].bookmark), 5))
    assert [batch.input_ids.tolist() for batch in moved] == [batch.input_ids.tolist() for batch in batches[3:]]


def test_a_packed_file_counts_by_its_text(folder):
    """Compressed again, by another level, it is the same; with other text it is not."""
    path = folder / "b.txt"
    text = path.read_bytes()
    path.unlink()
    packed = folder / "b.txt.gz"
    packed.write_bytes(gzip.compress(text, 9))
    bookmark = next(stream(config_of(folder))).bookmark
    packed.write_bytes(gzip.compress(text, 1))
    stream(config_of(folder), bookmark)
    packed.write_bytes(gzip.compress(text.replace(b"b 17\n", b"b 71\n")))
    with pytest.raises(DataError, match="other content"):
        stream(config_of(folder), bookmark)


@pytest.mark.parametrize("extra", [0, 1, 5 * WHOLE])
def test_what_a_fingerprint_sees(tmp_path, extra):
    """Any byte of a small file; of a large one any change of size, and any byte of the samples."""
    path = tmp_path / "x.txt"
    content = bytearray(random.Random(0).randbytes(WHOLE + extra).replace(b"\0", b"1"))
    content[:2] = b"12"

    def mark():
        path.write_bytes(content)
        return fingerprints([open_text(str(path))])[0][1:]

    before = mark()
    assert mark() == before
    places = range(0, len(content), 97_003) if len(content) <= WHOLE + 1 else (0, SAMPLE_BYTES - 1, len(content) - 1)
    for place in places:
        content[place] ^= 1
        assert mark() != before, place
        content[place] ^= 1
    assert mark() == before
    content.insert(len(content) // 2, 65)
    assert mark() != before


def test_a_growing_file_is_read_up_to_its_length_at_the_start(folder):
    straight = [plain(batch) for batch in islice(stream(config_of(folder)), 100)]
    batches = stream(config_of(folder))
    found = [plain(next(batches))]
    for number in range(99):
        with open(folder / "b.txt", "a") as file:
            file.write(f"added {number}\n")
        found.append(plain(next(batches)))
    assert found == straight


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda path: path.unlink(), r"cannot read '.*b.txt': it does not exist \(any more\)"),
        (lambda path: os.truncate(path, 500), r"'.*b.txt' has become shorter: it had 1090 bytes, now 500"),
    ],
)
def test_a_file_that_is_lost_on_the_way_is_an_error_that_names_it(folder, act, told):
    batches = stream(config_of(folder))
    next(batches)
    act(folder / "b.txt")
    with pytest.raises(DataError, match=told):
        list(islice(batches, 100))


def test_many_small_files_keep_no_file_open(tmp_path):
    for number in range(3000):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    batches = stream(data_config({"path": str(tmp_path)}))
    read = list(islice(batches, 20))
    assert len(read[0].bookmark["corpora"][0]) == 3000
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1
