"""Measuring a model: loss on text, and scores of what it generates."""

from txtgen.evaluate.loss import LossMetrics, evaluate_loss
from txtgen.evaluate.translation import TranslationMetrics, clip, score_translations

__all__ = ["LossMetrics", "TranslationMetrics", "clip", "evaluate_loss", "score_translations"]
