"""The place in a training stream, as plain numbers, names and lists that YAML or JSON can hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from txtgen.data.corpora import Corpus
from txtgen.data.fingerprints import Fingerprint, differences, fingerprints
from txtgen.data.report import MAX_NAMED
from txtgen.errors import CheckpointError, ConfigError, DataError

VERSION = 2
"""Of the bookmark's format."""

Bookmark = dict[str, Any]
"""What travels with a batch: the header, and either `lanes` or `window`, `used` and `places`."""


@dataclass(frozen=True)
class Header:
    """What a stream must have in common with the one that it continues.

    kind: "rows" or "windows". seed: of the order. size: rows of a global batch, or its tokens. corpora: what it reads.
    """

    kind: str
    seed: int
    size: int
    corpora: Sequence[Corpus]

    @cached_property
    def files(self) -> list[list[Fingerprint]]:
        """The fingerprints of the files of each source."""
        return [fingerprints(corpus.files) for corpus in self.corpora]

    def write(self) -> Bookmark:
        """The header as the beginning of a bookmark."""
        return {
            "version": VERSION,
            "kind": self.kind,
            "seed": self.seed,
            "size": self.size,
            "corpora": self.files,
        }

    def check(self, bookmark: Bookmark) -> list[str]:
        """Make sure that a bookmark is of this stream. Returns how files have changed since, a line a file.

        Raises:
            CheckpointError: it is not a bookmark that this version can read.
            ConfigError: seed, batch size, objective or number of sources are others.
            DataError: a file cannot be read any more.
        """
        if bookmark.get("version") != VERSION:
            raise CheckpointError(
                f"the place in the data has format {bookmark.get('version')!r}, this version reads {VERSION}",
                "training.bookmark",
                "continue with the version of txtgen that saved it",
            )
        _require_plain(bookmark)
        names = {
            "data.objective.kind": (bookmark.get("kind"), self.kind),
            "seed": (bookmark.get("seed"), self.seed),
            self._size_name: (bookmark.get("size"), self.size),
            "number of data.sources": (len(bookmark["corpora"]), len(self.corpora)),
        }
        for name, (then, now) in names.items():
            if then != now:
                raise ConfigError(
                    f"the run was at {name} {then}, now it is {now}",
                    "resuming in the middle of the data",
                    "go back to the old value, or start a new run from the checkpoint",
                )
        pairs = zip(bookmark["corpora"], self.files, self.corpora, strict=True)
        return [line for then, now, corpus in pairs for line in differences(then, now, corpus.files)]

    @property
    def _size_name(self) -> str:
        rows = self.kind == "rows"
        return "rows of a batch (train.batch_tokens / sequence_length)" if rows else "train.batch_tokens"


def refuse_changes(changes: Sequence[str]) -> None:
    """Refuse to go on in a corpus whose files have changed.

    Raises:
        DataError: naming them.
    """
    if changes:
        more = f" (and {len(changes) - MAX_NAMED} more)" if len(changes) > MAX_NAMED else ""
        raise DataError(
            "the corpus has changed since the checkpoint",
            "; ".join(changes[:MAX_NAMED]) + more,
            "restore the old files; or go on with the new ones by --accept-changes, which reads some text of this "
            "epoch twice or not at all; or start a new run from the checkpoint",
        )


def _require_plain(bookmark: Bookmark) -> None:
    """A bookmark comes from a file, so its shape is checked before it is used."""
    corpora, lanes = bookmark.get("corpora"), bookmark.get("lanes")
    good = isinstance(corpora, list) and all(_are_fingerprints(corpus) for corpus in corpora)
    if good and bookmark.get("kind") == "windows":
        counts = _are_counts([bookmark.get("window"), bookmark.get("used")], 2)
        good = counts and _are_places(bookmark.get("places"), len(corpora or []))
    elif good:
        good = isinstance(lanes, dict) and all(_is_lane(lane, len(corpora or [])) for lane in lanes.values())
    if not good:
        raise CheckpointError("the place in the data is damaged", "training.bookmark", "use another checkpoint")


def _are_fingerprints(value: object) -> bool:
    """Whether a value is a list of lists of a path and two numbers."""
    return isinstance(value, list) and all(
        isinstance(mark, list) and len(mark) == 3 and type(mark[0]) is str and _are_counts(mark[1:], 2)
        for mark in value
    )


def _are_counts(value: object, size: int) -> bool:
    """Whether a value is a list of `size` ints that are not negative."""
    return isinstance(value, list) and len(value) == size and all(type(part) is int and part >= 0 for part in value)


def _are_places(value: object, size: int) -> bool:
    return isinstance(value, list) and len(value) == size and all(_are_counts(part, 3) for part in value)


def _is_lane(value: object, sources: int) -> bool:
    if not isinstance(value, list) or len(value) != sources + 2 or type(value[0]) is not int:
        return False
    return -1 <= value[0] < sources and _are_counts(value[1:2], 1) and _are_places(value[2:], sources)


def lane_state(bookmark: Bookmark, lane: int) -> list[Any]:
    """The state of one lane.

    Raises:
        CheckpointError: the bookmark lacks it.
    """
    state: list[Any] | None = bookmark["lanes"].get(str(lane))
    if state is None:
        raise CheckpointError(
            f"the place in the data lacks lane {lane}",
            "training.bookmark",
            "merge the bookmarks of all ranks",
        )
    return state


def merge_bookmarks(bookmarks: Sequence[Bookmark]) -> Bookmark:
    """The bookmarks that all ranks have after the same step as one, from which any number of ranks can resume.

    Raises:
        CheckpointError: they are not of the same stream and step.
    """
    first = {key: value for key, value in bookmarks[0].items() if key != "lanes"}
    lanes: dict[str, Any] = {}
    for bookmark in bookmarks:
        if {key: value for key, value in bookmark.items() if key != "lanes"} != first:
            raise CheckpointError("the ranks are not at the same place in the data", "training.bookmark")
        lanes.update(bookmark.get("lanes", {}))
    if "lanes" in bookmarks[0]:
        first["lanes"] = {str(lane): lanes[str(lane)] for lane in sorted(map(int, lanes))}
    return first
