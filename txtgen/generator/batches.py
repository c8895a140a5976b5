"""Which prompts are generated together, and how their results come back in order."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from txtgen.config.decoding import DecodingConfig, SampleConfig
from txtgen.generator.types import EncodedPrompt

BATCHES_PER_WINDOW = 32
"""Prompts are sorted by length over this many batches: little padding, and yet early first results."""

Batch = tuple[EncodedPrompt, ...]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be generated: batches of prompts of similar length, and how to go on from them.

    A batch is the same whatever else was generated before it: to leave some out changes no other result.
    """

    batches: tuple[Batch, ...]
    decoding: DecodingConfig

    @property
    def steps(self) -> int:
        """Of a search over each batch, one after the other, at most."""
        return sum(max(prompt.limit for prompt in batch) for batch in self.batches)

    def without(self, done: Collection[int]) -> "Plan":
        """The batches that have a prompt whose number is not among those."""
        left = tuple(batch for batch in self.batches if any(prompt.number not in done for prompt in batch))
        return replace(self, batches=left)


def make_plan(
    prompts: Sequence[EncodedPrompt], decoding: DecodingConfig, batch_size: int, batch_tokens: int | None
) -> Plan:
    """Batches of at most so many prompts (or samples) and tokens: prompt and new ones, padding counted.

    In each window the longest come first. A prompt that alone exceeds a limit has a batch of its own.
    """
    copies = decoding.num_samples if isinstance(decoding, SampleConfig) else 1
    size = max(1, batch_size // copies)
    most = None if batch_tokens is None else batch_tokens // copies
    batches: list[Batch] = []
    for start in range(0, len(prompts), size * BATCHES_PER_WINDOW):
        window = prompts[start : start + size * BATCHES_PER_WINDOW]
        order = sorted(window, key=lambda prompt: -len(prompt.token_ids)) if size > 1 else window
        batches += _cut(order, size, most)
    return Plan(tuple(batches), decoding)


def _cut(prompts: Sequence[EncodedPrompt], size: int, most: int | None) -> Iterator[Batch]:
    batch: list[EncodedPrompt] = []
    width = 0
    for prompt in prompts:
        wider = max(width, len(prompt.token_ids) + prompt.limit)
        if batch and (len(batch) == size or (most is not None and wider * (len(batch) + 1) > most)):
            yield tuple(batch)
            batch, wider = [], len(prompt.token_ids) + prompt.limit
        batch.append(prompt)
        width = wider
    if batch:
        yield tuple(batch)


def in_order(found: Iterable[Mapping[int, Result]]) -> Iterator[Result]:
    """The results of prompt 0, of the one after it, and so on, each as soon as all before it are found.

    found: the results of some prompts at a time, by the prompts' numbers.
    """
    waiting: dict[int, Result] = {}
    first = 0
    for results in found:
        waiting.update(results)
        while first in waiting:
            yield waiting.pop(first)
            first += 1
