"""What a stream has met so far, and what it does about records that cannot be used."""

import gzip
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from txtgen.config.data import DataConfig
from txtgen.config.tokenizer import CHAT_ROLES
from txtgen.data.types import BadRecord, ChatRecord, Origin
from txtgen.errors import DataError

MIN_RECORDS = 100
"""Below this many records, the share of bad ones is judged at the end of an epoch only."""

MAX_NAMED = 5
"""How many bad or odd records or changed files are named."""

_log = logging.getLogger(__name__)


@dataclass
class Oddity:
    """How many records have it, and where the first of them are."""

    count: int = 0
    places: list[str] = field(default_factory=list)


@dataclass
class StreamReport:
    """Counts of what one rank has read so far; whatever is read again in a later epoch counts again.

    records: all that were looked at, the bad ones included. bad_records: left out because they could not be used.
    different_bad_records: how many of these are not the same ones again.
    held_out: left out of the training because they validate. cut_examples: shortened because they were too long.
    bad_examples: the first bad records, each with its place and fault. oddities: what is odd about records that are
    learnt from all the same. changed_files: how files differ from what the bookmark says, a line a file. reading: the
    file that was opened last.
    """

    records: int = 0
    bad_records: int = 0
    different_bad_records: int = 0
    held_out: int = 0
    cut_examples: int = 0
    bad_examples: list[str] = field(default_factory=list)
    oddities: dict[str, Oddity] = field(default_factory=dict)
    changed_files: list[str] = field(default_factory=list)
    reading: str = ""


class BadRecordPolicy:
    """Raises for a bad record, or counts it, as the configuration says.

    Args:
        data: its `on_bad_record` and `max_bad_fraction`.
        report: where records are counted.
    """

    def __init__(self, data: DataConfig, report: StreamReport) -> None:
        self.report = report
        self._seen: set[Origin] = set()
        self._skip = data.on_bad_record == "skip"
        self._max_fraction = data.max_bad_fraction

    def refuse(self, bad: BadRecord) -> None:
        """Count a bad record, already counted as a record.

        Raises:
            DataError: bad records are not to be skipped, or too many of them have been.
        """
        if not self._skip:
            fix = "mend the record, or leave out such records with data.on_bad_record: skip"
            raise DataError(bad.what, locate(bad.origin, bad.column), fix) from bad
        self.report.bad_records += 1
        if bad.origin in self._seen:
            return
        self._seen.add(bad.origin)
        self.report.different_bad_records += 1
        if len(self.report.bad_examples) < MAX_NAMED:
            self.report.bad_examples.append(f"{locate(bad.origin, bad.column)}: {bad.what}")
        if self.report.different_bad_records == 1:
            _log.warning("skipping bad records, the first at %s", self.report.bad_examples[0])
        if self.report.records >= MIN_RECORDS:
            self.check()

    def look_over(self, record: ChatRecord) -> None:
        """Count what is odd about a conversation that is used."""
        for what in oddities(record):
            found = self.report.oddities.setdefault(what, Oddity())
            found.count += 1
            if len(found.places) < MAX_NAMED:
                found.places.append(locate(record.origin))

    def check(self) -> None:
        """Judge the share of bad records so far.

        Raises:
            DataError: it exceeds max_bad_fraction.
        """
        bad, records = self.report.different_bad_records, self.report.records
        if bad > self._max_fraction * records:
            raise DataError(
                f"{bad} of {records} records cannot be used, more than max_bad_fraction {self._max_fraction}",
                "; ".join(self.report.bad_examples),
                "mend the corpus, or raise data.max_bad_fraction",
            )


def oddities(record: ChatRecord) -> Iterator[str]:
    """What is odd about a conversation, though it can be learnt from; each once."""
    roles = [message.role for message in record.messages]
    if "system" in roles[1:]:
        yield "a system message after the beginning"
    if "user" in roles and next(role for role in roles if role != "system") == "assistant":
        yield "the assistant speaks first"
    repeated = {role for role, following in pairwise(roles) if role == following}
    empty = {message.role for message in record.messages if not message.content or message.content.isspace()}
    for role in CHAT_ROLES:
        if role in repeated and role != "system":
            yield f"two turns of the {role} in a row"
        if role in empty:
            yield f"an empty turn of the {role}"


def locate(origin: Origin, column: int | None = None) -> str:
    """``file:line``, or ``file:line:byte`` where the byte of the record is known; both count from 1."""
    path, place = origin.path, origin.offset + (column or 0)
    line, last = 1, 0
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            while place and (window := file.read(min(place, 1024 * 1024))):
                newlines = window.count(b"\n")
                last = len(window) - window.rindex(b"\n") - 1 if newlines else last + len(window)
                line, place = line + newlines, place - len(window)
    except (OSError, EOFError, zlib.error):
        return str(origin)
    return f"{path}:{line}" if column is None else f"{path}:{line}:{last + 1}"
