"""Text files, plain or gzip, as bytes that can be read from any place."""

import sys
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Protocol

from txtgen.data.paths import stat_file, unreadable
from txtgen.errors import DataError

HEAD_BYTES = 4096
"""What is read of every file at the start: enough to tell text from what is not."""

INPUT_BYTES = 16 * 1024
"""Compressed bytes that are read at once."""

MAX_SNAPSHOTS = 2560
"""Of a compressed file, unless told otherwise; each holds 40 KB of memory."""

SNAPSHOT_BYTES = 4 * 1024
"""Text between two snapshots at least; more once there would be too many."""

MAX_OPEN = 1024
"""So many compressed files are not unpacked again when they are opened again."""

OUTPUT_BYTES = 64 * 1024
"""Text that is unpacked at once, at most."""

BOMB_BYTES, BOMB_RATIO = 64 * 1024 * 1024, 1000
"""A compressed file that has given more than so much text may not grow by more than so many times."""

_UTF8_BOM = b"\xef\xbb\xbf"

_NOT_TEXT = {
    b"\xff\xfe": ("looks like UTF-16", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("looks like UTF-16", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8"),
    b"\x1f\x8b": ("is gzip, but is not named so", "give it a name that ends in .gz"),
    b"\x28\xb5\x2f\xfd": ("is compressed by Zstandard", "unpack it, or compress it by gzip"),
    b"\xfd7zXZ\x00": ("is compressed by xz", "unpack it, or compress it by gzip"),
    b"BZh": ("is compressed by bzip2", "unpack it, or compress it by gzip"),
    b"PK\x03\x04": ("is a zip archive or an office document", "save its content as plain text"),
    b"%PDF-": ("is a PDF", "save its content as plain text"),
}


class TextFile(Protocol):
    """The bytes of a text, whatever they are stored in. `start` is where the text begins: after a byte order mark."""

    @property
    def path(self) -> str:
        """The file's name."""

    @property
    def start(self) -> int:
        """The first byte of the text."""

    @property
    def size(self) -> int:
        """The byte after the last one, as it was when the file was opened; what is appended later is not read.

        Raises:
            DataError: the file is damaged.
        """

    def reaches(self, offset: int) -> bool:
        """Whether `size` is at least so much, which may be known much earlier.

        Raises:
            DataError: the file is damaged before.
        """

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, fewer at the end of the text only.

        Raises:
            DataError: the file cannot be read any more, or is not what it was.
        """


def open_text(path: str, max_snapshots: int = MAX_SNAPSHOTS) -> TextFile:
    """A file that was looked at: it can be opened, is a regular file and does not look like anything but text.

    A file whose name ends in `.gz` is unpacked as far as it is read; its size is known, and that all of it is sound,
    when its end was met. As long as it stays the same, what is known of it is kept, together with up to
    `max_snapshots` of the decompressor.

    Raises:
        DataError: it cannot be read, is damaged, or is not text.
    """
    status = stat_file(path)
    if path.endswith(".gz"):
        return _open_gzip(path, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns), max_snapshots)
    return PlainFile(path, _head(path), status.st_size)


@lru_cache(MAX_OPEN)
def _open_gzip(path: str, _stamp: tuple[int, ...], max_snapshots: int) -> "GzipFile":
    """One that was opened before is given again, unless it has another stamp."""
    return GzipFile(path, max_snapshots)


def _head(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error


def _text_start(path: str, head: bytes) -> int:
    """Where text begins in a file that begins with `head`: after a UTF-8 byte order mark."""
    for magic, (what, fix) in _NOT_TEXT.items():
        if head.startswith(magic):
            raise DataError(f"'{path}' {what}", "", fix)
    return len(_UTF8_BOM) if head.startswith(_UTF8_BOM) else 0


class PlainFile:
    """A file that is text as it stands."""

    def __init__(self, path: str, head: bytes, size: int) -> None:
        self.path, self.size = path, size
        self.start = _text_start(path, head)

    def reaches(self, offset: int) -> bool:
        """Whether there are so many bytes."""
        return offset <= self.size

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on."""
        wanted = min(size, self.size - offset)
        if wanted <= 0:
            return b""
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                data = file.read(wanted)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if len(data) < wanted:
            raise DataError(
                f"'{self.path}' has become shorter: it had {self.size} bytes, now {offset + len(data)}",
                "",
                "leave the corpus alone while it is in use; start again, or restore the file and resume",
            )
        return data


class GzipFile:
    """A file that is unpacked as it is read, from the nearest snapshot of the decompressor before the place.

    A snapshot is taken wherever reading begins, unless there is one near it.

    Args:
        path: of the file.
        max_snapshots: when there are more, those nearest to others are given up.
        size: of the text, if it is known.
        places: where to take snapshots when they are passed, in ascending order.
    """

    def __init__(self, path: str, max_snapshots: int, size: int | None = None, places: Iterable[int] = ()) -> None:
        self.path, self._max_snapshots, self._size = path, max_snapshots, size
        if not _head(path).startswith(b"\x1f\x8b"):
            raise DataError(f"'{path}' is not gzip, though its name ends in .gz", "", "rename it, or compress it again")
        self._current = _Unpacking(path)
        self._snapshots = [self._current.copy()]
        self._spacing = SNAPSHOT_BYTES
        self._places = deque(places)
        self.start = _text_start(path, next(self._current.read_to(HEAD_BYTES), b""))

    def __reduce__(self) -> tuple[Any, ...]:
        """A decompressor cannot be sent to another process, so a copy there unpacks the file anew."""
        return GzipFile, (self.path, self._max_snapshots, self.size, [place.position for place in self._snapshots[1:]])

    @property
    def size(self) -> int:
        """The byte after the last one; the file is unpacked up to there, unless it was already."""
        if self._size is None:
            self._size = self._unpacked_to(sys.maxsize).position
        return self._size

    def reaches(self, offset: int) -> bool:
        """Whether there are so many bytes; the file is unpacked up to there if it is not known."""
        return offset <= (self._unpacked_to(offset).position if self._size is None else self._size)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on."""
        stop = offset + size if self._size is None else min(self._size, offset + size)
        if offset >= stop:
            return b""
        place = self._unpacked_to(offset)
        self._keep(place)
        data = b"".join(place.read_to(stop))
        if place.position < stop:
            if self._size is not None:
                raise _changed(self.path)
            self._size = place.position
        return data

    def _unpacked_to(self, offset: int) -> "_Unpacking":
        """The place at `offset`, or at the end of the text."""
        nearest = self._snapshots[self._after(offset) - 1]
        # Reading on from where the last call ended saves unpacking the same text again.
        if not nearest.position <= self._current.position <= offset:
            self._current = nearest.copy()
        while self._places and self._places[0] <= offset:
            self._keep(self._current.at(self._places.popleft()))
        return self._current.at(offset)

    def _after(self, offset: int) -> int:
        """The number of the first snapshot after `offset`."""
        return bisect_right(self._snapshots, offset, key=lambda place: place.position)

    def _keep(self, place: "_Unpacking") -> None:
        """Take a snapshot of a place, unless one is near, and give up others if there are too many."""
        after = self._after(place.position)
        near = self._snapshots[after - 1 : after + 1]
        if any(abs(place.position - other.position) < self._spacing for other in near):
            return
        self._snapshots.insert(after, place.copy())
        while len(self._snapshots) > max(1, self._max_snapshots):
            self._spacing *= 2
            places, self._snapshots = self._snapshots, []
            for other in places:
                if not self._snapshots or other.position >= self._snapshots[-1].position + self._spacing:
                    self._snapshots.append(other)


def _changed(path: str) -> DataError:
    return DataError(f"'{path}' has changed while it was in use", "", "leave the corpus alone, and resume")


class _Unpacking:
    """A place in a gzip file, from which unpacking goes on. `position`: bytes of text before it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.position = 0
        self._consumed = 0
        self._pending = b""
        self._inflate = zlib.decompressobj(wbits=31)
        self._between_members = True

    def copy(self) -> "_Unpacking":
        """The same place, to go on from independently."""
        other = _Unpacking(self.path)
        other.position, other._consumed = self.position, self._consumed - len(self._pending)
        other._inflate, other._between_members = self._inflate.copy(), self._between_members
        return other

    def at(self, offset: int) -> "_Unpacking":
        """This place, moved on to `offset` or the end of the text."""
        for _ in self.read_to(offset):
            pass
        return self

    def read_to(self, stop: int) -> Iterator[bytes]:
        """The text from here up to `stop` or its end, in pieces.

        Raises:
            DataError: the file is cut off, damaged, or grows beyond all reason.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self._consumed)
                while self.position < stop:
                    if not self._pending:
                        self._pending = file.read(INPUT_BYTES)
                        self._consumed += len(self._pending)
                        if not self._pending and self._between_members:
                            return
                    text = self._unpack(min(OUTPUT_BYTES, stop - self.position))
                    if text:
                        yield text
        except zlib.error as error:
            raise self._fault("is damaged") from error
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _unpack(self, limit: int) -> bytes:
        """Up to `limit` bytes of text from the pending input."""
        if self._between_members:
            # Zeros may pad the end of a file.
            self._pending = self._pending.lstrip(b"\0")
            if not self._pending:
                return b""
            self._between_members = False
        starved = not self._pending
        text = self._inflate.decompress(self._pending, limit)
        self.position += len(text)
        if self._inflate.eof:
            self._pending = self._inflate.unused_data
            self._inflate, self._between_members = zlib.decompressobj(wbits=31), True
        else:
            self._pending = self._inflate.unconsumed_tail
            if starved and not text:
                raise self._fault("is cut off")
        if self.position > max(BOMB_BYTES, BOMB_RATIO * self._consumed):
            raise self._fault(f"unpacks to more than {BOMB_RATIO} times its size")
        return text

    def _fault(self, what: str) -> DataError:
        return DataError(
            f"'{self.path}' {what}",
            f"at byte {self._consumed - len(self._pending)} of the file, {self.position} of its text",
            "fetch it again, or leave it out",
        )
