"""A source of the configuration -> its files and blocks, opened and checked once."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from txtgen.config.data import DataConfig
from txtgen.config.sources import ParallelSource, SourceConfig
from txtgen.data.blocks import Block, block_bytes, cut_file, cut_pair
from txtgen.data.files import MAX_SNAPSHOTS, TextFile, open_text
from txtgen.data.order import Use, keyed_share
from txtgen.data.paths import resolve, resolve_one, stat_file
from txtgen.data.records import BlockUnits, read_units, unit_of
from txtgen.data.report import BadRecordPolicy
from txtgen.data.types import BadRecord, ChatRecord, Record
from txtgen.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """One source, cut into blocks. `num_bytes` counts its text, both sides of pairs included."""

    number: int
    source: SourceConfig
    files: Sequence[TextFile]
    blocks: Sequence[Block]
    num_bytes: int

    def units(self, block: int) -> BlockUnits:
        """The documents, lines or pairs of one block.

        Raises:
            DataError: the file cannot be read any more.
        """
        return read_units(self.source, self.number, self.files, self.blocks[block])

    @property
    def name(self) -> str:
        """The kind of the source and the paths that it was given."""
        return _name(self.source)


@dataclass(frozen=True, slots=True)
class Split:
    """Which documents a reader sees: those that are held out (`held`), or the others.

    A keyed hash of the place of a document decides, so nothing is stored, and more text changes nothing for the
    documents before it. Of a document that is cut into blocks, each piece is held out or not.
    """

    seed: int
    fraction: float
    held: bool

    def keeps(self, source: int, file: int, offset: int) -> bool:
        """Whether the document at this place is seen."""
        return (keyed_share(Use.HOLD_OUT, self.seed, source, file, offset) < self.fraction) == self.held


def records_of(
    units: BlockUnits, chosen: Sequence[int], split: Split | None, policy: BadRecordPolicy
) -> tuple[Sequence[Record], list[int]]:
    """The `usable_records` of some units, and the place in `chosen` of the unit of each.

    Raises:
        DataError: one is bad, and bad records are not to be skipped.
    """
    if units.source.kind != "text":
        found = [usable_records(units, unit, split, policy) for unit in chosen]
        return [*chain.from_iterable(found)], [place for place, its in enumerate(found) for _ in its]
    places: list[int] = []
    texts: list[str] = []
    for place, unit in enumerate(chosen):
        if split and not _is_seen(units, unit, split, policy):
            continue
        try:
            text = units.document(unit)
        except BadRecord as bad:
            _refuse(bad, policy)
            continue
        if text:
            policy.report.records += 1
            places.append(place)
            texts.append(text)
    return units.documents([chosen[place] for place in places], texts), places


def usable_records(units: BlockUnits, unit: int, split: Split | None, policy: BadRecordPolicy) -> list[Record]:
    """The records of a unit: none if it is blank, on the other side of the split, or bad and skipped.

    Raises:
        DataError: it is bad, and bad records are not to be skipped.
    """
    if split and not _is_seen(units, unit, split, policy):
        return []
    try:
        records = units.records(unit)
    except BadRecord as bad:
        _refuse(bad, policy)
        return []
    policy.report.records += len(records)
    for record in records:
        if isinstance(record, ChatRecord):
            policy.look_over(record)
    return records


def _is_seen(units: BlockUnits, unit: int, split: Split, policy: BadRecordPolicy) -> bool:
    seen = split.keeps(units.number, units.block.file, units.offset(unit))
    policy.report.held_out += not seen and not split.held
    return seen


def _refuse(bad: BadRecord, policy: BadRecordPolicy) -> None:
    policy.report.records += 1
    policy.refuse(bad)


def require_files(data: DataConfig) -> None:
    """Refuse sources whose files are not there, before anything is made of the others.

    Raises:
        DataError: naming the source by its dotted key.
    """
    for group, sources in data.groups.items():
        for number, source in enumerate(sources):
            try:
                sizes = [stat_file(path).st_size for path in _paths(source)]
                if not any(sizes):
                    raise DataError(f"all {len(sizes)} files are empty" if len(sizes) > 1 else "the file is empty")
            except DataError as error:
                told = [f"{group}.{number}: {_name(source)}", error.where]
                raise DataError(error.what, ", ".join(filter(None, told)), error.fix or "check the path") from error


def open_corpora(sources: Sequence[SourceConfig]) -> list[Corpus]:
    """Every source, its files found, opened and cut into blocks.

    Raises:
        DataError: a file is missing, unreadable, damaged or not text, or a source holds no text.
    """
    return [open_corpus(number, source) for number, source in enumerate(sources)]


def open_corpus(number: int, source: SourceConfig) -> Corpus:
    """One source; see `open_corpora`."""
    paths = _paths(source)
    packed = {path: stat_file(path).st_size for path in paths if path.endswith(".gz")}
    most = {path: MAX_SNAPSHOTS * size // max(1, sum(packed.values())) for path, size in packed.items()}
    files = [open_text(path, most.get(path, 0)) for path in paths]
    size = block_bytes(files)
    if isinstance(source, ParallelSource):
        blocks = list(cut_pair(files[0], files[1], size))
    else:
        blocks = [block for i, file in enumerate(files) for block in cut_file(i, file, size, unit_of(source))]
    num_bytes = sum(file.size - file.start for file in files)
    empty = [file.path for file in files if file.size <= file.start]
    if not num_bytes:
        raise DataError(f"all {len(files)} files are empty", ", ".join(empty[:3]), "check the files")
    if empty:
        _log.warning("%d of %d files are empty, the first is %s", len(empty), len(files), empty[0])
    return Corpus(number, source, files, blocks, num_bytes)


def _paths(source: SourceConfig) -> list[str]:
    """The files of a source: all of one kind, or the two of a pair."""
    if isinstance(source, ParallelSource):
        return [resolve_one(source.source_path), resolve_one(source.target_path)]
    return resolve(source.path)


def _name(source: SourceConfig) -> str:
    paths = [source.source_path, source.target_path] if isinstance(source, ParallelSource) else source.path
    return f"{source.kind} {paths if isinstance(paths, str) else ', '.join(paths)}"
