"""The place in a training stream, as plain ints and short lists that YAML or JSON can hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from txtgen.data.corpora import Corpus
from txtgen.errors import CheckpointError, ConfigError, DataError

VERSION = 1
"""Of the bookmark's format."""

Bookmark = dict[str, Any]
"""What travels with a batch: the header, and either `lanes` or `window`, `used` and `places`."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a stream must have in common with the one that it continues.

    kind: "rows" or "windows". seed: of the order. size: rows of a global batch, or its tokens. corpora: the
    fingerprint of each source.
    """

    kind: str
    seed: int
    size: int
    corpora: Sequence[Corpus]

    def write(self) -> Bookmark:
        """The header as the beginning of a bookmark."""
        fingerprints = [corpus.fingerprint() for corpus in self.corpora]
        return {
            "version": VERSION,
            "kind": self.kind,
            "seed": self.seed,
            "size": self.size,
            "corpora": fingerprints,
        }

    def check(self, bookmark: Bookmark) -> None:
        """Make sure that a bookmark is of this stream.

        Raises:
            CheckpointError: it is not a bookmark that this version can read.
            ConfigError: seed, batch size or objective are others.
            DataError: the corpus is another.
        """
        if bookmark.get("version") != VERSION:
            raise CheckpointError(
                f"the place in the data has format {bookmark.get('version')!r}, this version reads {VERSION}",
                "training.bookmark",
                "continue with the version of txtgen that saved it",
            )
        _require_plain(bookmark)
        ours = self.write()
        names = {"kind": "data.objective.kind", "seed": "seed", "size": "train.batch_tokens"}
        if self.kind == "rows":
            names["size"] = "rows of a batch (train.batch_tokens / sequence_length)"
        for key, name in names.items():
            if bookmark.get(key) != ours[key]:
                raise ConfigError(
                    f"the run was at {name} {bookmark.get(key)}, now it is {ours[key]}",
                    "resuming in the middle of the data",
                    "go back to the old value, or start a new run from the checkpoint",
                )
        self._check_corpora(bookmark["corpora"], ours["corpora"])

    def _check_corpora(self, then: list[list[int]], now: list[list[int]]) -> None:
        if len(then) != len(now):
            raise DataError(
                f"the run had {len(then)} sources, now there are {len(now)}",
                "data.sources",
                "restore the old sources",
            )
        for corpus, old, new in zip(self.corpora, then, now, strict=True):
            if old != new:
                raise DataError(
                    f"the corpus has changed since the checkpoint: {old[0]} files of {old[1]} bytes then, "
                    f"{new[0]} files of {new[1]} bytes now" + (", of other content" if old[:2] == new[:2] else ""),
                    corpus.name,
                    "restore the old files, or start a new run from the checkpoint",
                )


def _require_plain(bookmark: Bookmark) -> None:
    """A bookmark comes from a file, so its shape is checked before it is used."""
    corpora, lanes = bookmark.get("corpora"), bookmark.get("lanes")
    good = isinstance(corpora, list) and _are_places(corpora, len(corpora))
    if good and bookmark.get("kind") == "windows":
        counts = _are_counts([bookmark.get("window"), bookmark.get("used")], 2)
        good = counts and _are_places(bookmark.get("places"), len(corpora or []))
    elif good:
        good = isinstance(lanes, dict) and all(_is_lane(lane, len(corpora or [])) for lane in lanes.values())
    if not good:
        raise CheckpointError("the place in the data is damaged", "training.bookmark", "use another checkpoint")


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
