"""Minimum Bayes risk: of many samples, those that are most like all the others.

Source: Eikema and Aziz 2020, arXiv 2005.10283. The likeness is chrF of single texts. Source: Popović 2015.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from txtgen.generator.types import Generation

MAX_ORDER = 6
"""Characters of the longest n-grams."""

RECALL_WEIGHT = 4.0
"""Of the F-score: the square of 2, by which recall counts more than precision."""


class CharacterNgrams:
    """The n-grams of a text, white space aside: of each order how often each occurs, and how many there are."""

    def __init__(self, text: str) -> None:
        letters = "".join(text.split())
        self.text = text
        self.sizes = [max(0, len(letters) - order) for order in range(MAX_ORDER)]
        self.counts = [
            Counter(letters[start : start + order + 1] for start in range(size))
            for order, size in enumerate(self.sizes)
        ]

    def matches(self, other: "CharacterNgrams") -> list[int]:
        """Of each order, how many n-grams the two share."""
        pairs = zip(self.counts, other.counts, strict=True)
        return [sum(min(count, theirs[ngram]) for ngram, count in ours.items()) for ours, theirs in pairs]


def chrf(hypothesis: CharacterNgrams, reference: CharacterNgrams) -> float:
    """How like a reference a text is, 0 to 100: the F-score of the mean precision and recall of n-grams.

    Orders of which either text has none are left out. Equal texts have 100, empty ones too.
    """
    if hypothesis.text == reference.text:
        return 100.0
    counts = zip(hypothesis.matches(reference), hypothesis.sizes, reference.sizes, strict=True)
    shares = [(match / ours, match / theirs) for match, ours, theirs in counts if ours and theirs]
    if not shares:
        return 0.0
    precision = sum(precision for precision, _ in shares) / len(shares)
    recall = sum(recall for _, recall in shares) / len(shares)
    if not precision:
        return 0.0
    return 100.0 * (1.0 + RECALL_WEIGHT) * precision * recall / (RECALL_WEIGHT * precision + recall)


def most_alike(samples: Sequence[Generation], count: int) -> list[Generation]:
    """The samples of a prompt that are most like all of them, best first; of equals the first.

    The score of each is its mean likeness to all samples, itself among them.
    """
    texts = [CharacterNgrams(sample.text) for sample in samples]
    scored = [
        replace(sample, score=sum(chrf(text, other) for other in texts) / len(texts))
        for sample, text in zip(samples, texts, strict=True)
    ]
    best = sorted(scored, key=lambda sample: -sample.score)[:count]
    return [replace(sample, index=index) for index, sample in enumerate(best)]
