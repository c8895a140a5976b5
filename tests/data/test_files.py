import builtins
import gzip
import pickle
import random

import pytest
from data_fakes import data_config
from hypothesis import given
from hypothesis import strategies as st

from txtgen.data import blocks, files
from txtgen.data.corpora import open_corpora
from txtgen.data.files import open_text
from txtgen.errors import DataError


@pytest.fixture(scope="module")
def noise():
    """Text that compresses, but not to nothing."""
    draw = random.Random(0)
    return b"".join(draw.choice([b"the ", b"cat ", b"sat\n", bytes([draw.randrange(256)])]) for _ in range(150_000))


def unpack(path):
    """The size of the text of a packed file, all of which is looked at."""
    return open_text(str(path)).size


def test_reading_gzip_from_any_place_gives_what_unpacking_all_gives(tmp_path, noise):
    path = tmp_path / "x.gz"
    members = [noise[:100], b"", noise[100:200_000], noise[200_000:]]
    path.write_bytes(b"".join(gzip.compress(member) for member in members) + b"\0" * 700)
    file = open_text(str(path))
    assert file.size == len(noise)
    draw = random.Random(1)
    for _ in range(100):
        offset, size = draw.randrange(len(noise) + 10), draw.choice([0, 1, 100, 100_000, 10**9])
        assert file.read(offset, size) == noise[offset : offset + size]
    for offset in range(0, len(noise), 50_000):
        assert file.read(offset, 50_000) == noise[offset : offset + 50_000]


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.integers(0, 200), st.integers(0, 200))
def test_many_small_members(tmp_path_factory, members, offset, size):
    path = tmp_path_factory.getbasetemp() / "members.gz"
    path.write_bytes(b"".join(gzip.compress(b"." + member) for member in members))
    text = b"".join(b"." + member for member in members)
    assert open_text(str(path)).read(offset, size) == text[offset : offset + size]


@pytest.mark.parametrize("keep", [3, 10, 0.5, -1])
def test_gzip_cut_off(tmp_path, noise, keep):
    packed = gzip.compress(noise)
    (tmp_path / "x.gz").write_bytes(packed[: int(keep * len(packed)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"x\.gz' is cut off; at byte \d+"):
        unpack(tmp_path / "x.gz")


@pytest.mark.parametrize("place", [0.3, 0.9, -5, -1])
def test_gzip_with_a_flipped_bit(tmp_path, noise, place):
    packed = bytearray(gzip.compress(noise))
    packed[int(place * len(packed)) if isinstance(place, float) else place] ^= 4
    (tmp_path / "x.gz").write_bytes(packed)
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "x.gz")


def test_gzip_with_something_else_behind_it_or_instead_of_it(tmp_path):
    path = tmp_path / "x.gz"
    for content, what in ((gzip.compress(b"a") + b"more", "damaged"), (b"plain", "not gzip"), (b"", "not gzip")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=what):
            unpack(path)


def test_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(80 * 1024 * 1024), 9))
    with pytest.raises(DataError, match="1000 times"):
        unpack(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_byte_order_marks(tmp_path, pack):
    path = tmp_path / ("x.txt" if pack is bytes else "x.gz")
    path.write_bytes(pack("\ufefftext".encode()))
    file = open_text(str(path))
    assert file.read(file.start, 100) == b"text"
    path.write_bytes(pack("text".encode("utf-16")))
    with pytest.raises(DataError, match="looks like UTF-16"):
        open_text(str(path))


@pytest.mark.parametrize("magic", [m for m in files._NOT_TEXT if m[0] not in b"\xff\xfe"])
def test_what_is_no_text_is_named(tmp_path, magic):
    (tmp_path / "x.txt").write_bytes(magic + b"....")
    with pytest.raises(DataError) as caught:
        open_text(str(tmp_path / "x.txt"))
    assert caught.value.fix


def test_a_file_that_changes_while_it_is_in_use(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"0123456789")
    file = open_text(str(path))
    path.write_bytes(b"0123456789 and more")
    assert file.read(8, 100) == b"89"
    path.write_bytes(b"012345")
    assert file.read(0, 5) == b"01234"
    with pytest.raises(DataError, match="shorter"):
        file.read(4, 6)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        file.read(0, 5)


def test_permission_denied(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_bytes(b"x")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(DataError, match="permission denied"):
        open_text(str(tmp_path / "x.txt"))


class Unpacked:
    """Counts the bytes that are unpacked."""

    def __init__(self, monkeypatch):
        self.bytes = 0
        unpack = files._Unpacking._unpack

        def counting(place, limit):
            text = unpack(place, limit)
            self.bytes += len(text)
            return text

        monkeypatch.setattr(files._Unpacking, "_unpack", counting)

    def take(self):
        found, self.bytes = self.bytes, 0
        return found


@pytest.fixture
def unpacked(monkeypatch):
    monkeypatch.setattr(files, "OUTPUT_BYTES", 1024)
    return Unpacked(monkeypatch)


def write_lines(path):
    text = "".join(f"{number} " * (number % 17) + "\n" for number in range(20_000)).encode()
    path.write_bytes(gzip.compress(text))
    return text


@pytest.mark.parametrize("documents", ["line", "continuous"])
def test_a_corpus_is_opened_in_one_pass_and_its_blocks_begin_where_reading_can(
    tmp_path, unpacked, monkeypatch, documents
):
    monkeypatch.setattr(blocks, "MAX_BLOCK_BYTES", 16 * 1024)
    monkeypatch.setattr(blocks, "BLOCKS_PER_CORPUS", 1)
    text = write_lines(tmp_path / "x.gz")
    data = data_config({"path": str(tmp_path / "x.gz"), "documents": documents})
    corpus = open_corpora(data.sources)[0]
    # What decides on the size of blocks is unpacked once more.
    assert unpacked.take() < len(text) + 2 * 16 * 1024
    assert len(corpus.blocks) > 50
    order = random.Random(0).sample(corpus.blocks, len(corpus.blocks))
    for block in order:
        assert corpus.files[0].read(block.start, block.stop - block.start) == text[block.start : block.stop]
    assert unpacked.take() < 1.6 * len(text)
    open_corpora(data.sources)
    assert unpacked.take() < len(text)


@pytest.mark.parametrize("most", [0, 1, 2, 7, 100])
def test_however_few_snapshots_there_may_be(tmp_path, monkeypatch, most):
    monkeypatch.setattr(files, "SNAPSHOT_BYTES", 16)
    text = write_lines(tmp_path / "x.gz")
    file = open_text(str(tmp_path / "x.gz"), most)
    draw = random.Random(most)
    for number in range(60):
        if number == 30:
            file = pickle.loads(pickle.dumps(file))
        offset = draw.randrange(len(text))
        assert file.read(offset, 1000) == text[offset : offset + 1000]
        assert len(file._snapshots) <= max(1, most)


def test_a_copy_in_another_process_unpacks_no_more_than_it_needs(tmp_path, unpacked):
    text = write_lines(tmp_path / "x.gz")
    file = open_text(str(tmp_path / "x.gz"))
    for offset in range(0, len(text), 50_000):
        file.read(offset, 10)
    copy = pickle.loads(pickle.dumps(file))
    unpacked.take()
    assert copy.size == len(text)
    assert copy.read(100_000, 10) == text[100_000:100_010]
    assert unpacked.take() < 102_000
    for offset in range(len(text) // 50_000 * 50_000, 0, -50_000):
        assert copy.read(offset, 10) == text[offset : offset + 10]
    assert unpacked.take() < len(text)


def test_a_file_that_was_opened_before_is_unpacked_again_only_if_it_has_changed(tmp_path, unpacked):
    path = tmp_path / "x.gz"
    text = write_lines(path)
    assert open_text(str(path)).size == open_text(str(path)).size == len(text)
    assert unpacked.take() < 1.1 * len(text)
    (tmp_path / "new").write_bytes(gzip.compress(text[1:] + b"!"))
    (tmp_path / "new").replace(path)
    assert open_text(str(path)).read(0, 10) == text[1:11]


def test_a_packed_file_that_changes_while_it_is_in_use(tmp_path):
    path = tmp_path / "x.gz"
    text = write_lines(path)
    copy = pickle.loads(pickle.dumps(open_text(str(path))))
    copy.read(500_000, 1)
    path.write_bytes(gzip.compress(text[:50_000]))
    with pytest.raises(DataError, match="has changed while it was in use"):
        copy.read(49_000, 2000)
