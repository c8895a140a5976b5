"""Corpora as an exact, elastic stream of batches."""

from txtgen.data.bookmarks import Bookmark, merge_bookmarks
from txtgen.data.corpora import require_files
from txtgen.data.objectives import Objective, build_objective
from txtgen.data.report import StreamReport
from txtgen.data.sampling import Side, SourceSummary, describe, sample_texts
from txtgen.data.statistics import SourceStatistics, corpus_statistics
from txtgen.data.stream import train_stream
from txtgen.data.survey import Sample, Survey, survey
from txtgen.data.types import IGNORE, Batch, Example, Origin, StreamOptions
from txtgen.data.validation import (
    ValidationBatches,
    every_batch,
    validation_batches,
    validation_pairs,
    validation_parts,
    validation_records,
)

__all__ = [
    "IGNORE",
    "Batch",
    "Bookmark",
    "Example",
    "Objective",
    "Origin",
    "Sample",
    "Side",
    "SourceStatistics",
    "SourceSummary",
    "StreamOptions",
    "StreamReport",
    "Survey",
    "ValidationBatches",
    "build_objective",
    "corpus_statistics",
    "describe",
    "every_batch",
    "merge_bookmarks",
    "require_files",
    "sample_texts",
    "survey",
    "train_stream",
    "validation_batches",
    "validation_pairs",
    "validation_parts",
    "validation_records",
]
