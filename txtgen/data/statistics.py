"""What a corpus is like, told from a small sample of it."""

from dataclasses import dataclass

from txtgen.config.data import DataConfig
from txtgen.data.corpora import Corpus, open_corpora
from txtgen.data.order import Use, keyed_permutation
from txtgen.data.records import BlockUnits
from txtgen.data.sampling import sides
from txtgen.data.types import BadRecord, Record
from txtgen.tokenizer import Tokenizer

SAMPLE_BYTES = 1 << 20
"""Text that is tokenised, of all sources together: enough to know a rate, and a few hundredths of a second."""

BLOCK_SAMPLE_BYTES = 1 << 15
"""Of each block that is sampled: many places say more than much text."""


@dataclass
class SourceStatistics:
    """One source, and counts of a sample of it.

    name: kind and paths. num_bytes: of its text as it is stored, both sides of pairs included. sampled_bytes: those
    that the sample was read from. text_bytes: what of them is text to learn from. tokens: of that text; byte_tokens:
    those of them that stand for single bytes. bad_records: records of the sample that cannot be used.
    """

    name: str
    files: int
    num_bytes: int
    sampled_bytes: int = 0
    text_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    byte_tokens: int = 0
    unknown_tokens: int = 0
    bad_records: int = 0

    @property
    def estimated_tokens(self) -> int:
        """Tokens of the whole source, without beginnings and ends of documents."""
        return round(self.tokens * self.num_bytes / max(1, self.sampled_bytes))

    @property
    def estimated_documents(self) -> int:
        """Documents, pairs or conversations of the whole source, or pieces of long ones."""
        return round(self.documents * self.num_bytes / max(1, self.sampled_bytes))

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text to a token."""
        return self.text_bytes / max(1, self.tokens)

    @property
    def byte_fallback_rate(self) -> float:
        """Share of the tokens that stand for single bytes: a high one tells of a tokenizer made for other text."""
        return self.byte_tokens / max(1, self.tokens)

    def facts(self) -> dict[str, str | int | float]:
        """Everything as plain values, what is derived included."""
        counts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        derived = ("estimated_tokens", "estimated_documents", "bytes_per_token", "byte_fallback_rate")
        return {**counts, **{name: getattr(self, name) for name in derived}}


def corpus_statistics(
    data: DataConfig, tokenizer: Tokenizer, source_tokenizer: Tokenizer | None = None, *, seed: int = 0
) -> list[SourceStatistics]:
    """Statistics of each training source.

    Args:
        data: the corpus; what of it is held out counts as well.
        tokenizer: of text, and of the target of pairs.
        source_tokenizer: of the source of pairs; None: the same.
        seed: decides which blocks are sampled.

    Raises:
        DataError: a source cannot be read or holds no text.
    """
    corpora = open_corpora(data.training_sources)
    total = sum(corpus.num_bytes for corpus in corpora)
    return [
        _sampled(corpus, tokenizer, source_tokenizer, seed, SAMPLE_BYTES * corpus.num_bytes // total)
        for corpus in corpora
    ]


def _sampled(
    corpus: Corpus, tokenizer: Tokenizer, source_tokenizer: Tokenizer | None, seed: int, budget: int
) -> SourceStatistics:
    found = SourceStatistics(corpus.name, len(corpus.files), corpus.num_bytes)
    for block in keyed_permutation(len(corpus.blocks), Use.SAMPLE, seed, corpus.number):
        records = _beginning(corpus.units(int(block)), found)
        found.documents += len(records)
        if source_tokenizer is None:
            _count(found, tokenizer, [text for record in records for text in sides(record, "all")])
        else:
            _count(found, source_tokenizer, [text for record in records for text in sides(record, "source")])
            _count(found, tokenizer, [text for record in records for text in sides(record, "target")])
        if found.sampled_bytes >= budget:
            break
    return found


def _beginning(units: BlockUnits, found: SourceStatistics) -> list[Record]:
    """The records of the first units of a block; the bytes that they stand in are counted."""
    records: list[Record] = []
    unit = stop = target_stop = 0
    while unit < len(units) and stop + target_stop < BLOCK_SAMPLE_BYTES:
        try:
            records += units.records(unit)
        except BadRecord:
            found.bad_records += 1
        stop = units.spans.stops[unit] + 1
        target_stop = units.target_spans.stops[unit] + 1 if units.target_data else 0
        unit += 1
    found.sampled_bytes += min(stop, len(units.data)) + min(target_stop, len(units.target_data))
    return records


def _count(found: SourceStatistics, tokenizer: Tokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        found.text_bytes += len(text.encode())
        found.tokens += len(ids)
        found.byte_tokens += sum(map(tokenizer.byte_ids.__contains__, ids.tolist()))
        found.unknown_tokens += int((ids == tokenizer.special.unk_id).sum())
