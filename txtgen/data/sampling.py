"""A bounded sample of a corpus, for training a tokenizer, and what a corpus consists of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never

from txtgen.config.data import DataConfig
from txtgen.data.corpora import Corpus, Split, open_corpora, usable_records
from txtgen.data.order import Use, keyed_permutation
from txtgen.data.report import BadRecordPolicy, StreamReport
from txtgen.data.types import ChatRecord, PairRecord, PreferenceRecord, Record, TextRecord

Side = Literal["all", "source", "target"]
"""Which side of pairs is meant. Of a conversation the assistant's turns are the target, all others the source; of a
preference both answers are."""


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """One source: its kind and paths, and its numbers of files, bytes of text and blocks."""

    name: str
    files: int
    num_bytes: int
    blocks: int


def describe(data: DataConfig) -> list[SourceSummary]:
    """What each training source consists of.

    Raises:
        DataError: a source cannot be read or holds no text.
    """
    return [
        SourceSummary(corpus.name, len(corpus.files), corpus.num_bytes, len(corpus.blocks))
        for corpus in open_corpora(data.training_sources)
    ]


def sample_texts(
    data: DataConfig, which: Side, max_bytes: int, seed: int, report: StreamReport | None = None
) -> Iterator[str]:
    """Texts of the training corpus, up to max_bytes of UTF-8, from blocks spread over all of it.

    Each source gives its share by weight while it lasts. Held-out documents are left out. One block is in memory at a
    time.

    Raises:
        DataError: the corpus cannot be read.
    """
    policy = BadRecordPolicy(data, report or StreamReport())
    split = Split(seed, data.validation.fraction, held=False) if data.validation.fraction else None
    corpora = open_corpora(data.sources)
    return _sample(corpora, split, policy, which, max_bytes, seed)


def _sample(
    corpora: list[Corpus],
    split: Split | None,
    policy: BadRecordPolicy,
    which: Side,
    max_bytes: int,
    seed: int,
) -> Iterator[str]:
    texts = [_texts(corpus, split, policy, which, seed) for corpus in corpora]
    weights = [corpus.source.weight or float(corpus.num_bytes) for corpus in corpora]
    taken = [0] * len(corpora)
    open_sources = list(range(len(corpora)))
    while open_sources and max_bytes > 0:
        source = min(open_sources, key=lambda number: taken[number] / weights[number])
        text = next(texts[source], None)
        if text is None:
            open_sources.remove(source)
            continue
        encoded = text.encode()
        if len(encoded) > max_bytes:
            text = encoded[:max_bytes].decode(errors="ignore")
        taken[source] += len(encoded)
        max_bytes -= len(encoded)
        if text:
            yield text


def _texts(corpus: Corpus, split: Split | None, policy: BadRecordPolicy, which: Side, seed: int) -> Iterator[str]:
    """The texts of one source, its blocks in a keyed order."""
    for block in keyed_permutation(len(corpus.blocks), Use.SAMPLE, seed, corpus.number):
        units = corpus.units(int(block))
        for unit in range(len(units)):
            for record in usable_records(units, unit, split, policy):
                yield from (text for text in sides(record, which) if text)


def sides(record: Record, which: Side) -> list[str]:
    """The texts of one side of a record."""
    match record:
        case TextRecord():
            return [record.text]
        case PairRecord():
            return [record.source] * (which != "target") + [record.target] * (which != "source")
        case ChatRecord():
            wanted = {"all": (True, False), "source": (False,), "target": (True,)}[which]
            return [message.content for message in record.messages if (message.role == "assistant") in wanted]
        case PreferenceRecord(prompt, chosen, rejected):
            asked = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
            return asked * (which != "target") + [chosen, rejected] * (which != "source")
        case _:
            assert_never(record)
