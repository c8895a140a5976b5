"""Text files, plain or gzip, as bytes that can be read from any place."""

import sys
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Protocol

from txtgen.data.paths import stat_file, unreadable
from txtgen.errors import DataError

HEAD_BYTES = 4096
"""What is read of every file at the start: enough to tell text from what is not."""

INPUT_BYTES = 16 * 1024
"""Compressed bytes that are read at once."""

SNAPSHOT_BYTES = 256 * 1024
"""Text between two places at which reading a compressed file can begin, unless told otherwise."""

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
        """The byte after the last one, as it was when the file was opened; what is appended later is not read."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, fewer at the end of the text only.

        Raises:
            DataError: the file cannot be read any more, or is not what it was.
        """


def open_text(path: str, spacing: int = SNAPSHOT_BYTES) -> TextFile:
    """A file that was looked at: it can be opened, is a regular file and does not look like anything but text.

    A file whose name ends in `.gz` is unpacked once, to learn its size and that all of it is sound. After every
    `spacing` bytes of its text a snapshot of the decompressor is kept, about 50 KB each, where reading can begin.

    Raises:
        DataError: it cannot be read, is damaged, or is not text.
    """
    status = stat_file(path)
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
    return GzipFile(path, head, spacing) if path.endswith(".gz") else PlainFile(path, head, status.st_size)


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

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on."""
        wanted = max(0, min(size, self.size - offset))
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
    """A file that is unpacked as it is read, from the nearest snapshot of the decompressor before the place."""

    def __init__(self, path: str, head: bytes, spacing: int) -> None:
        self.path, self._head, self._spacing = path, head, spacing
        if not head.startswith(b"\x1f\x8b"):
            raise DataError(f"'{path}' is not gzip, though its name ends in .gz", "", "rename it, or compress it again")
        self.start = 0
        place = _Unpacking(path)
        self._snapshots = [place.copy()]
        for text in place.read_to(sys.maxsize):
            if place.position == len(text):
                self.start = _text_start(path, text)
            if place.position >= self._snapshots[-1].position + spacing:
                self._snapshots.append(place.copy())
        self.size = place.position
        self._current = place

    def __reduce__(self) -> tuple[Any, ...]:
        """A decompressor cannot be sent to another process, so a copy there unpacks the file anew."""
        return _opened_again, (self.path, self._head, self._spacing, self.size)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on."""
        stop = min(self.size, offset + size)
        if offset >= stop:
            return b""
        nearest = self._snapshots[bisect_right(self._snapshots, offset, key=lambda place: place.position) - 1]
        # Reading on from where the last call ended saves unpacking the same text again.
        if not nearest.position <= self._current.position <= offset:
            self._current = nearest.copy()
        for _ in self._current.read_to(offset):
            pass
        data = b"".join(self._current.read_to(stop))
        if len(data) < stop - offset:
            raise _changed(self.path)
        return data


def _opened_again(path: str, head: bytes, spacing: int, size: int) -> GzipFile:
    file = GzipFile(path, head, spacing)
    if file.size != size:
        raise _changed(path)
    return file


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
        other.position, other._consumed, other._pending = self.position, self._consumed, self._pending
        other._inflate, other._between_members = self._inflate.copy(), self._between_members
        return other

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
