"""What generated texts are like: how varied, how repetitive, whether they end, how much of them stands in a corpus."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from txtgen.data.types import ChatRecord, Message, PairRecord, PreferenceRecord, Record, TextRecord
from txtgen.generator import Generation, Prompt

HAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of scripts without spaces, each a word of its own here."""

_WORDS = re.compile(rf"[{HAN}]|[^\W{HAN}]+(?:['’][^\W{HAN}]+)*")


OPENING = 100
"""Characters of a held-out text that a model goes on from."""


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """What texts are like, all as shares of one.

    ended: texts that an end token or a stop string ended. distinct_1, distinct_2: different words, and pairs of
    words, among all. repeated_4: runs of four words that stood earlier in the same text. words: of a text, on average.
    """

    texts: int
    ended: float
    distinct_1: float
    distinct_2: float
    repeated_4: float
    words: float


def _turns(messages: Sequence[Message]) -> Prompt:
    return [{"role": message.role, "content": message.content} for message in messages]


def openings(records: Iterable[Record]) -> Iterator[Prompt]:
    """What a model can go on from as the records do: the turns before the last of the assistant, the source of a pair,
    the first words of a text. Records that have no such thing are left out."""
    for record in records:
        match record:
            case ChatRecord(messages):
                said = [number for number, message in enumerate(messages) if message.role == "assistant" and number]
                if said:
                    yield _turns(messages[: said[-1]])
            case PairRecord(source):
                yield source
            case PreferenceRecord(prompt):
                yield prompt if isinstance(prompt, str) else _turns(prompt)
            case TextRecord(text) if len(begun := text.lstrip()) > OPENING:
                yield begun[:OPENING].rsplit(maxsplit=1)[0]
            case TextRecord():
                pass
            case _:
                assert_never(record)


def describe(generations: Sequence[Generation]) -> TextMetrics:
    """What the results of a model are like; of at least one."""
    texts = [words(each.text) for each in generations]
    return TextMetrics(
        texts=len(texts),
        ended=sum(each.finish_reason in ("eos", "stop") for each in generations) / len(texts),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        repeated_4=repeated(texts, 4),
        words=sum(map(len, texts)) / len(texts),
    )


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; of Chinese and Japanese, the characters."""
    return _WORDS.findall(text.lower())


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Different n-grams of all texts as a share of their n-grams. Source: Li et al. 2016, arXiv 1510.03055."""
    counts = Counter(ngram for text in texts for ngram in _ngrams(text, n))
    return len(counts) / max(1, counts.total())


def repeated(texts: Iterable[Sequence[str]], n: int) -> float:
    """N-grams that stood earlier in the same text, as a share of all. Source: Welleck et al. 2019, arXiv 1908.04319."""
    counts = [Counter(_ngrams(text, n)) for text in texts]
    total = sum(count.total() for count in counts)
    return sum(count.total() - len(count) for count in counts) / max(1, total)


def memorised(texts: Iterable[Sequence[str]], corpus: Iterable[Sequence[str]], n: int = 8) -> float:
    """N-grams of the texts that stand in a corpus too, as a share of all of them."""
    wanted = Counter(ngram for text in texts for ngram in _ngrams(text, n))
    found = {ngram for text in corpus for ngram in _ngrams(text, n) if ngram in wanted}
    return sum(wanted[ngram] for ngram in found) / max(1, wanted.total())


def _ngrams(text: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(text[start : start + n]) for start in range(len(text) - n + 1))
