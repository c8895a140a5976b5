"""Where a text spells special tokens."""

import re
from collections.abc import Iterable, Iterator


class Spellings:
    """Finds the spellings of tokens in texts, as fast for thousands of tokens as for one.

    Only where a character begins a spelling, the lengths that spellings have are tried.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name for name in names if name)
        self._lengths = sorted({*map(len, self._names)}, reverse=True)
        self._first = re.compile("|".join(re.escape(first) for first in sorted({name[0] for name in self._names})))

    def places(self, text: str) -> list[tuple[int, int]]:
        """Beginning and end of the longest spelling at each place where one begins, overlapping ones too."""
        found: list[tuple[int, int]] = []
        for match in self._first.finditer(text) if self._names else ():
            start = match.start()
            for length in self._lengths:
                if text[start : start + length] in self._names:
                    found.append((start, min(start + length, len(text))))
                    break
        return found

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text in parts, and whether each is a spelling; of overlapping ones the first counts."""
        done = 0
        for start, end in self.places(text):
            if start >= done:
                yield text[done:start], False
                yield text[start:end], True
                done = end
        yield text[done:], False
