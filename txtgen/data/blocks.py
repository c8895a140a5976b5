"""Files -> blocks: ranges of a file that are read at once, cut where a document ends if there is such a place."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from txtgen.data.files import TextFile
from txtgen.errors import DataError

MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 4 * 1024, 256 * 1024
"""Sizes of a block. Small corpora have small blocks, so that their text is well shuffled."""

BLOCKS_PER_CORPUS = 512
"""How many blocks a corpus is cut into, as far as their sizes allow."""

Unit = Literal["file", "line", "paragraph", "continuous", "record"]
"""What a block is made of. A `record` is a line that must not be cut, however long it is."""

_SCAN_BYTES = 8 * 1024
_PASS_BYTES = 64 * 1024
_WINDOW_BYTES = 1024 * 1024
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
_ENDS_BLANK = re.compile(rb"\n[ \t\r]*\n\Z")
_LAST_SPACE = re.compile(rb"[ \t\r\v\f](?=[^ \t\r\v\f]*\Z)")


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes start up to stop of a file.

    begins, ends: whether its borders are borders between documents too. target_start, target_stop: the lines of a
    second file that belong to those of the first.
    """

    file: int
    start: int
    stop: int
    begins: bool = True
    ends: bool = True
    target_start: int = 0
    target_stop: int = 0


def block_bytes(files: Sequence[TextFile]) -> int:
    """The size of the blocks of a corpus.

    It depends on nothing but the bytes of text: a piece of a long document that is held out in training must be the
    same piece when the model is evaluated with another batch size.
    """
    total, enough = 0, BLOCKS_PER_CORPUS * MAX_BLOCK_BYTES
    for file in files:
        if file.reaches(file.start + enough - total):
            return MAX_BLOCK_BYTES
        total += file.size - file.start
    return max(MIN_BLOCK_BYTES, total // BLOCKS_PER_CORPUS)


def cut_file(number: int, file: TextFile, size: int, unit: Unit) -> Iterator[Block]:
    """Blocks of about `size` bytes that cover the file. Only a few KB of each are read.

    They are read in order, and the end is where reading meets it: a compressed file is unpacked once.
    """
    cuts: list[tuple[int, int, bool]] = []
    start, begins = file.start, True
    while (cut := _next_cut(file, start + size, size, unit)) is not None:
        cuts.append((start + size, *cut))
        start = cut[0]
    start = file.start
    for goal, stop, ends in cuts:
        # A rest too small for a block of its own stays with the one before.
        if goal + size // 2 >= file.size:
            break
        yield Block(number, start, stop, begins, ends)
        start, begins = stop, ends
    if start < file.size:
        yield Block(number, start, file.size, begins, True)


def cut_pair(source: TextFile, target: TextFile, size: int) -> Iterator[Block]:
    """Blocks of about `size` bytes of whole lines of both files. Both are read once, to count their lines.

    Raises:
        DataError: the files have different numbers of lines.
    """
    share = (source.size - source.start) / max(1, source.size - source.start + target.size - target.start)
    target_lines = _LinePlaces(target)
    start, target_start = source.start, target.start
    for stop, lines in _line_marks(source, max(1, round(size * share))):
        target_stop = target_lines.after(lines)
        if target_stop is None:
            break
        yield Block(0, start, stop, True, True, target_start, target_stop)
        start, target_start = stop, target_stop
    if start < source.size or target_start < target.size:
        counts = [sum(map(len, _line_ends(file))) for file in (source, target)]
        raise DataError(
            f"parallel files have different numbers of lines: {counts[0]} and {counts[1]}",
            f"{source.path}, {target.path}",
            "line i of the one must belong to line i of the other",
        )


def _next_cut(file: TextFile, goal: int, size: int, unit: Unit) -> tuple[int, bool] | None:
    """Where a block that is to have its end at `goal` stops, and whether that is a border between documents; None if
    the text ends before."""
    border = _next_border(file, goal, goal + size, unit)
    if border is not None:
        return border, True
    return None if unit == "record" else _cut_inside(file, goal, min(4096, size // 2), unit)


def _next_border(file: TextFile, goal: int, limit: int, unit: Unit) -> int | None:
    """The first border between documents from `goal` on; before `limit`, unless records cannot be cut."""
    match unit:
        case "file" | "continuous":
            return None
        case "paragraph":
            for size in (_SCAN_BYTES, limit - goal):
                found = _BLANK_LINE.search(file.read(goal, size))
                if found:
                    return goal + found.end()
            return None
        case "line" | "record":
            place, size = goal - 1, _SCAN_BYTES
            while (unit == "record" or place < limit) and (window := file.read(place, size)):
                found_at = window.find(b"\n")
                if found_at >= 0:
                    return place + found_at + 1
                place, size = place + len(window), _WINDOW_BYTES
            return None


def _cut_inside(file: TextFile, goal: int, reach: int, unit: Unit) -> tuple[int, bool] | None:
    """A place to cut a long document, and whether it is a border after all; None if the text ends before.

    At most `reach` bytes before `goal`: after the last line there, or before the last white space, or, in a text
    without any, at a character.
    """
    window = file.read(goal - reach, reach)
    if len(window) < reach:
        return None
    line = window.rfind(b"\n") + 1
    if line:
        ends = unit == "line" or (unit == "paragraph" and _ENDS_BLANK.search(window[:line]) is not None)
        return goal - reach + line, ends
    space = _LAST_SPACE.search(window)
    if space and space.start():
        return goal - reach + space.start(), False
    # Only the bytes inside of a character look like 10xxxxxx; the last character begins the next block.
    starts = [place for place in range(reach - 4, reach) if window[place] & 0b1100_0000 != 0b1000_0000]
    return goal - reach + (starts[-1] if starts else reach), False


def _line_ends(file: TextFile) -> Iterator[NDArray[np.int64]]:
    """The places after each line, in arrays; the last line counts without a newline too."""
    place, end = file.start, file.start
    while place < file.size:
        window = file.read(place, _PASS_BYTES)
        ends = np.flatnonzero(np.frombuffer(window, np.uint8) == ord("\n")) + place + 1
        place += len(window)
        if len(ends):
            end = int(ends[-1])
            yield ends
    if end < file.size:
        yield np.array([file.size])


def _line_marks(file: TextFile, size: int) -> Iterator[tuple[int, int]]:
    """Ends of lines that are about `size` bytes apart, the last one included, each with the lines before it."""
    lines, last, end = 0, file.start, file.start
    for ends in _line_ends(file):
        end = int(ends[-1])
        while end >= last + size:
            index = int(np.searchsorted(ends, last + size))
            last = int(ends[index])
            yield last, lines + index + 1
        lines += len(ends)
    if last < end:
        yield end, lines


class _LinePlaces:
    """The places after lines of a file, asked for in ascending order, so that it is read only once."""

    def __init__(self, file: TextFile) -> None:
        self._windows = _line_ends(file)
        self._ends = np.zeros(0, np.int64)
        self._before = 0

    def after(self, lines: int) -> int | None:
        """The place after so many lines of the file; None if it has fewer."""
        while self._before + len(self._ends) < lines:
            self._before += len(self._ends)
            ends = next(self._windows, None)
            if ends is None:
                return None
            self._ends = ends
        return int(self._ends[lines - self._before - 1])
