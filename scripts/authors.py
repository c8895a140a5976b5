"""Who wrote a text: a plain classifier of the authors of ten novels, for scripts/applications.py."""

import re
from collections.abc import Mapping

import numpy as np
from application_data import OUT

AUTHORS = {
    "anna_karenina": "Tolstoy", "war_and_peace": "Tolstoy", "bleak_house": "Dickens", "david_copperfield": "Dickens",
    "great_expectations": "Dickens", "don_quixote": "Cervantes", "middlemarch": "Eliot",
    "moby_dick_or_the_whale": "Melville", "the_adventures_of_sherlock_holmes": "Doyle",
    "the_brothers_karamazov": "Dostoevsky",
}  # fmt: skip
VOICE = "Cervantes"
"""The author of configs/voice.yaml."""

PIECE = 400
"""Characters of a text that its author is told by."""
LEARNT = 150_000
"""Characters that are learnt of each author, at most, or whoever wrote most would be the likeliest."""
BUCKETS = 262_139
"""A prime number, so that all characters of an n-gram count."""
SMOOTHING = 100_000


class Authors:
    """Naive Bayes over runs of three to five characters, smoothed by their shares in the texts of all authors."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.names = list(texts)
        runs = [ngrams(text[:LEARNT]) for text in texts.values()]
        counts = np.stack([np.bincount(each, minlength=BUCKETS) for each in runs]).astype(float)
        totals = counts.sum(axis=1, keepdims=True)
        everywhere = (counts / totals).mean(axis=0) + 1e-7
        self.logprobs = np.log((counts + SMOOTHING * everywhere) / (totals + SMOOTHING * everywhere.sum()))

    def likeliest(self, text: str) -> str:
        """The author under whom the beginning of a text is likeliest, all being as likely before it is read."""
        return self.names[int(self.logprobs[:, ngrams(text[:PIECE])].sum(axis=1).argmax())]


def author_texts(part: str) -> dict[str, str]:
    """All that each author wrote in a part of the books: train, classifier or test."""
    texts: dict[str, str] = {}
    for path in sorted((OUT / "books" / part).glob("*.txt")):
        author = AUTHORS[path.stem]
        texts[author] = texts.get(author, "") + path.read_text(encoding="utf-8")
    return texts


def pieces(text: str) -> list[str]:
    """A text in pieces of equal length."""
    return [text[start : start + PIECE] for start in range(0, len(text) - PIECE, PIECE)]


def ngrams(text: str) -> list[int]:
    """Runs of three to five characters as numbers of buckets; names and all else that is capitalised do not count."""
    text = " ".join(re.sub(r"\b[A-Z]\w*", "*", text).split())
    return [bucket(text[start : start + n]) for n in (3, 4, 5) for start in range(len(text) - n + 1)]


def bucket(ngram: str) -> int:
    """The same in every process, which Python's own hash is not."""
    return int.from_bytes(ngram.encode(), "big") % BUCKETS
