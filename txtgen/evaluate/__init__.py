"""Measuring a model: loss on text, and scores of what it generates."""

from txtgen.evaluate.loss import LossMetrics, evaluate_loss, weighted_loss
from txtgen.evaluate.texts import TextMetrics, describe, openings
from txtgen.evaluate.translation import (
    TranslationMetrics,
    score_translations,
    shortlist_coverage,
    translate_pairs,
)

__all__ = [
    "LossMetrics",
    "TextMetrics",
    "TranslationMetrics",
    "describe",
    "evaluate_loss",
    "openings",
    "score_translations",
    "shortlist_coverage",
    "translate_pairs",
    "weighted_loss",
]
