"""A file of results that appears when it is whole, and goes on where it was if the process was killed before.

Results are kept in a folder beside the file, `FILE.partial`, in the order in which they come: a line that says what the
job is, and then one for each batch. A line that a kill cut off is dropped.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from txtgen.commands.running.locking import hold, is_of_hold
from txtgen.errors import BusyError
from txtgen.files import flush, replace_file, write_error

Facts = dict[str, Any]
"""What a job is; if any of them changes, its results may."""


class ResultFile:
    """Texts by number on their way into a file. Holds its folder while it is open.

    Args:
        path: of the file.
        overwrite: whether a file that is there is replaced, and results of another job thrown away.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self.folder = path.with_name(f"{path.name}.partial")
        self.texts: dict[int, str] = {}
        """What is there already."""
        self._journal = self.folder / "results.jsonl"
        self._handle: IO[bytes] | None = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Take hold of the place.

        Raises:
            BusyError: the file is there already, another process is writing it, or its folder is somebody else's.
            ResourceError: the place cannot be written.
        """
        if self.path.exists() and not self.path.is_file():
            raise BusyError("the output is no file", str(self.path), "choose another --output")
        if self.path.exists() and not (self.overwrite or self._journal.exists()):
            raise self._occupied()
        try:
            self.folder.mkdir(exist_ok=True)
            self._refuse_foreign()
            fix = "wait for it, or choose another --output"
            self._held.enter_context(hold(self.folder, "the output", fix, temporary=True))
        except OSError as error:
            raise write_error(self.folder, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the place, and leave nothing there that is of no use."""
        if self._handle is not None:
            with suppress(OSError):  # what could not be written was told
                self._handle.close()
            if not self.texts:
                with suppress(OSError):
                    self._journal.unlink()
        self._held.close()

    def begin(self, job: Facts, count: int) -> None:
        """Read what there is of a job with so many texts, or begin it.

        Raises:
            BusyError: there are results of another job, or a whole file.
            ResourceError: the place cannot be written.
        """
        try:
            usable = self._read(job, count)
            if self.path.exists() and not self.overwrite and len(self.texts) < count:
                raise self._occupied()
            self._handle = open(self._journal, "r+b" if usable else "wb")  # noqa: SIM115
            self._handle.truncate(usable)
            self._handle.seek(usable)
            if not usable:
                self._append(job)
                flush(self.folder)
        except OSError as error:
            raise write_error(self._journal, error) from error

    def add(self, texts: Mapping[int, str]) -> None:
        """Keep texts durably.

        Raises:
            ResourceError: the disk is full or fails; what was kept before stays.
        """
        try:
            self._append({str(number): text for number, text in texts.items()})
        except OSError as error:
            raise write_error(self._journal, error) from error
        self.texts.update(texts)

    def finish(self, count: int) -> None:
        """Write all texts into the file, in order, and remove the folder.

        Raises:
            BusyError: somebody else has written the file meanwhile.
            ResourceError: the disk is full or fails; the texts are kept.
        """
        content = "".join(self.texts[number] for number in range(count)).encode()
        if self.path.exists() and not self.overwrite and self.path.read_bytes() != content:
            raise self._occupied()
        with replace_file(self.path, needs=len(content)) as handle:
            handle.write(content)
        if self._handle is not None:
            self._handle.close()
        self._journal.unlink()

    def _append(self, line: Facts) -> None:
        assert self._handle is not None
        self._handle.write(json.dumps(line).encode() + b"\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def _read(self, job: Facts, count: int) -> int:
        """Take up the texts of a job. Returns how many bytes of the journal are of use."""
        if not self._journal.exists():
            return 0
        usable = 0
        with open(self._journal, "rb") as handle:
            lines = _objects(handle)
            size, theirs = next(lines, (0, job))
            if theirs != job:
                if self.overwrite or next(lines, None) is None:
                    return 0
                raise self._other_job(theirs, job)
            usable += size
            for size, found in lines:
                texts = _numbered(found, count)
                if texts is None:
                    break
                self.texts.update(texts)
                usable += size
        return usable

    def _refuse_foreign(self) -> None:
        foreign = min((path.name for path in self.folder.iterdir() if not self._is_ours(path)), default=None)
        if foreign is not None:
            what = f"results are kept here until they are whole, but there is something else, such as {foreign}"
            raise BusyError(what, str(self.folder), "move it away, or choose another --output")

    def _is_ours(self, path: Path) -> bool:
        return path == self._journal or is_of_hold(path)

    def _occupied(self) -> BusyError:
        return BusyError("the output is there already", str(self.path), "choose another --output, or give --overwrite")

    def _other_job(self, theirs: Facts, ours: Facts) -> BusyError:
        changed = [key for key in ours if theirs.get(key) != ours[key]]
        told = ", ".join(f"{key} was {_short(theirs.get(key))}, now {_short(ours[key])}" for key in changed)
        what = f"results of another job are kept here: {told or 'it was told more'}"
        return BusyError(what, str(self.folder), "give --overwrite to throw them away, or choose another --output")


def _objects(handle: IO[bytes]) -> Iterator[tuple[int, Facts]]:
    """The JSON objects of whole lines and their sizes in bytes, up to the first that is none."""
    for line in handle:
        try:
            found = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            return
        if not isinstance(found, dict):
            return
        yield len(line), found


def _numbered(found: Facts, count: int) -> dict[int, str] | None:
    """The texts of a line by their numbers; None if it is not one of ours."""
    numbers = [int(key) for key in found if key.isascii() and key.isdigit() and len(key) < 19]
    if len(numbers) < len(found) or max(numbers, default=0) >= count:
        return None
    if not all(isinstance(text, str) for text in found.values()):
        return None
    return dict(zip(numbers, found.values(), strict=True))


def _short(value: Any) -> str:
    """A value on one line, not too long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
