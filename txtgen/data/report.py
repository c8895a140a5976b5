"""What a stream has met so far, and what it does about records that cannot be used."""

import gzip
import logging
import zlib
from dataclasses import dataclass, field

from txtgen.config.data import DataConfig
from txtgen.data.types import BadRecord
from txtgen.errors import DataError

MIN_RECORDS = 100
"""Below this many records, the share of bad ones is judged at the end of an epoch only."""

MAX_NAMED = 5
"""How many bad records or changed files are named."""

_log = logging.getLogger(__name__)


@dataclass
class StreamReport:
    """Counts of what one rank has read so far; whatever is read again in a later epoch counts again.

    records: all that were looked at, the bad ones included. bad_records: left out because they could not be used.
    held_out: left out of the training because they validate. cut_examples: shortened because they were too long.
    bad_examples: the first bad records, each with its place and fault. changed_files: how files differ from what the
    bookmark says, a line a file. reading: the file that was opened last.
    """

    records: int = 0
    bad_records: int = 0
    held_out: int = 0
    cut_examples: int = 0
    bad_examples: list[str] = field(default_factory=list)
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
        self._skip = data.on_bad_record == "skip"
        self._max_fraction = data.max_bad_fraction

    def refuse(self, bad: BadRecord) -> None:
        """Count a bad record, already counted as a record.

        Raises:
            DataError: bad records are not to be skipped, or too many of them have been.
        """
        if not self._skip:
            fix = "mend the record, or leave out such records with data.on_bad_record: skip"
            raise DataError(bad.what, locate(bad), fix) from bad
        self.report.bad_records += 1
        if len(self.report.bad_examples) < MAX_NAMED:
            self.report.bad_examples.append(f"{locate(bad)}: {bad.what}")
        if self.report.bad_records == 1:
            _log.warning("skipping bad records, the first at %s", self.report.bad_examples[0])
        if self.report.records >= MIN_RECORDS:
            self.check()

    def check(self) -> None:
        """Judge the share of bad records so far.

        Raises:
            DataError: it exceeds max_bad_fraction.
        """
        bad, records = self.report.bad_records, self.report.records
        if bad > self._max_fraction * records:
            raise DataError(
                f"{bad} of {records} records cannot be used, more than max_bad_fraction {self._max_fraction}",
                "; ".join(self.report.bad_examples),
                "mend the corpus, or raise data.max_bad_fraction",
            )


def locate(bad: BadRecord) -> str:
    """``file:line``, or ``file:line:byte`` where the byte is known; both count from 1."""
    path, place = bad.origin.path, bad.origin.offset + (bad.column or 0)
    line, last = 1, 0
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            while place and (window := file.read(min(place, 1024 * 1024))):
                newlines = window.count(b"\n")
                last = len(window) - window.rindex(b"\n") - 1 if newlines else last + len(window)
                line, place = line + newlines, place - len(window)
    except (OSError, EOFError, zlib.error):
        return str(bad.origin)
    return f"{path}:{line}" if bad.column is None else f"{path}:{line}:{last + 1}"
