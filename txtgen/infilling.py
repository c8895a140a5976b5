"""Texts with gaps: how a model that was taught to fill them reads them, and what they are with its words in them.

What a model was taught shows in the tokens that it has for gaps: those of fill_in_middle, of span_corruption, or the
mask of denoising.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from txtgen.config.objectives import FILL_IN_MIDDLE, MASK, SENTINEL
from txtgen.errors import UsageError

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Gaps:
    """A prompt with gaps, as tokens.

    kind: how the model fills them: a `middle` between two sides, `spans` of which each is named by its sentinel, or
    the `whole` text anew. parts: the tokens before, between and behind the gaps. marks: what stands for each gap; of
    spans all sentinels that there are, because a model may write on with the next.
    """

    kind: Literal["middle", "spans", "whole"]
    parts: tuple[Tokens, ...]
    marks: Tokens

    @property
    def token_ids(self) -> list[int]:
        """What the model reads, without the tokens around it."""
        if self.kind == "middle":
            before, behind, between = self.marks
            prefix, suffix = self.parts
            return [before, *prefix, behind, *suffix, between]
        return self._joined([(mark,) for mark in self.marks[: len(self.parts) - 1]])

    def fills(self, token_ids: Sequence[int]) -> list[Tokens]:
        """The tokens for each gap in what a model wrote; none where it wrote none."""
        if self.kind != "spans":
            return [tuple(token_ids)]
        spans: dict[int, list[int]] = {}
        current: list[int] = []  # what stands before the first sentinel is for no gap
        for token in token_ids:
            if token in self.marks:
                current = []
                spans.setdefault(token, current)
            else:
                current.append(token)
        return [tuple(spans.get(mark, ())) for mark in self.marks[: len(self.parts) - 1]]

    def filled(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens of the whole text."""
        if self.kind == "whole":
            return list(token_ids)
        return self._joined(self.fills(token_ids))

    def _joined(self, between: Sequence[Tokens]) -> list[int]:
        *before, last = self.parts
        pairs = zip(before, between, strict=True)
        return [*chain.from_iterable((*part, *gap) for part, gap in pairs), *last]


def gap_marks(control_ids: Mapping[str, int]) -> list[int]:
    """The ids of the sentinels that a tokenizer has, in order; a model that fills gaps writes them itself."""
    found: list[int] = []
    while (name := SENTINEL.format(len(found))) in control_ids:
        found.append(control_ids[name])
    return found


def with_gaps(
    text: str,
    gap: str,
    encode: Callable[[str], list[int]],
    control_ids: Mapping[str, int],
    *,
    has_encoder: bool,
    leading_space: bool,
    where: str,
) -> Gaps:
    """A text in which `gap` stands for what is to be filled in.

    A single gap is a middle, if the model is a decoder that knows of such.

    Args:
        text: the prompt.
        gap: stands for a gap in it.
        encode: gives the tokens of a text.
        control_ids: of the tokenizer.
        has_encoder: whether an encoder reads it.
        leading_space: whether the tokenizer puts a space before every text.
        where: names the prompt in an error.

    Raises:
        UsageError: there is no gap, or the model has no tokens for as many.
    """
    parts = text.split(gap) if gap else [text]
    if len(parts) == 1:
        raise UsageError(f"the prompt has no gap {gap!r}", where, "put it where text is to be filled in")
    if not has_encoder and len(parts) == 2 and control_ids.keys() >= {*FILL_IN_MIDDLE}:
        marks = tuple(control_ids[name] for name in FILL_IN_MIDDLE)
        return Gaps("middle", tuple(tuple(encode(part)) for part in parts), marks)
    # A word brings the space before it along.
    before = parts[:-1] if leading_space else [part.removesuffix(" ") for part in parts[:-1]]
    tokens = tuple(tuple(encode(part)) if part else () for part in [*before, parts[-1]])
    sentinels = gap_marks(control_ids)
    if sentinels and len(parts) - 1 <= len(sentinels):
        return Gaps("spans", tokens, tuple(sentinels))
    if not sentinels and has_encoder and MASK in control_ids:
        return Gaps("whole", tokens, (control_ids[MASK],) * (len(parts) - 1))
    limit = len(sentinels) or int(not has_encoder and control_ids.keys() >= {*FILL_IN_MIDDLE})
    raise UsageError(
        f"the prompt has {len(parts) - 1} gaps, and the model has tokens for {limit}",
        where,
        "leave fewer gaps" if limit else "use a model that learnt span_corruption, fill_in_middle or denoising",
    )
