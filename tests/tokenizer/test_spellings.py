"""Spellings: every place, the longest first, and as fast for thousands of names."""

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from txtgen.tokenizer.spellings import Spellings

NAMES = st.sets(st.text("ab<", min_size=1, max_size=4), max_size=6)


@given(NAMES, st.text("ab<", max_size=30))
def test_places_and_parts_are_those_of_a_pattern(names: set[str], text: str) -> None:
    spellings = Spellings([*names, ""])
    ends = {
        start: max((start + len(name) for name in names if text.startswith(name, start)), default=start)
        for start in range(len(text))
    }
    assert spellings.places(text) == [(start, end) for start, end in ends.items() if end > start]
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"
    expected = re.split(f"({pattern})", text)
    assert [part for part, _ in spellings.split(text)] == expected
    assert [spelled for _, spelled in spellings.split(text)] == [bool(number % 2) for number in range(len(expected))]


def test_thousands_of_names_are_no_slower() -> None:
    spellings = Spellings(f"<|reserved_{number}|>" for number in range(10_000))
    text = "<p>a<|reserved_7|>" * 20_000
    began = time.process_time()
    assert len(spellings.places(text)) == 20_000
    assert time.process_time() - began < 2, "a fraction of a second and what a busy machine adds"
