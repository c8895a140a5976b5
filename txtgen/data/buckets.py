"""Pairs -> batches of pairs of similar length, within a budget of padded tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from txtgen.data.objectives import Objective
from txtgen.data.order import Use, keyed_permutation
from txtgen.data.types import IGNORE, Batch, Example
from txtgen.errors import ConfigError

WINDOW_EXAMPLES = 8192
"""So many pairs are sorted by length together."""


def read_window(take: Callable[[], list[Example]], epoch: Callable[[], int] = lambda: 0) -> list[Example]:
    """The examples of the next documents, at least WINDOW_EXAMPLES of them unless there are no more in this epoch.

    A window that went on into the next epoch would sort the copies of a pair into the same batch.
    """
    window: list[Example] = []
    began = epoch()
    while len(window) < WINDOW_EXAMPLES and epoch() == began and (examples := take()):
        window += examples
    return window


def cut_window(window: Sequence[Example], batch_tokens: int, seed: int, number: int) -> list[list[Example]]:
    """A window as batches of pairs of similar length, in an order that depends on seed and window number.

    A batch of B pairs that are padded to T target and S source tokens has B * (T + S) <= batch_tokens.

    Raises:
        ConfigError: a pair is longer than batch_tokens by itself.
    """
    batches: list[list[Example]] = []
    batch: list[Example] = []
    longest = 0
    for example in sorted(window, key=_lengths):
        target, source = _lengths(example)
        if target + source > batch_tokens:
            raise ConfigError(
                f"batch_tokens {batch_tokens} cannot hold a pair of {source} source and {target} target tokens",
                f"train.batch_tokens; {example.origin}",
                f"set it to {target + source} or more, or lower max_length and max_source_length",
            )
        # Sorted by target, so this target is the longest so far.
        longest = max(longest, source)
        if batch and (len(batch) + 1) * (target + longest) > batch_tokens:
            batches.append(batch)
            batch, longest = [], source
        batch.append(example)
    if batch:
        batches.append(batch)
    return [batches[place] for place in keyed_permutation(len(batches), Use.BATCHES, seed, number)]


def _lengths(example: Example) -> tuple[int, int]:
    return len(example.input_ids), 0 if example.source_ids is None else len(example.source_ids)


def pad_pairs(
    examples: Sequence[Example],
    objective: Objective,
    rank: int,
    world_size: int,
    bookmark: dict[str, Any] | None = None,
) -> Batch:
    """The rows of a global batch that belong to one rank, padded to the longest of the whole batch.

    A rank without any gets one row of padding, so that all ranks take part in every step. Its source, where others
    have one, is one token that may be attended to, because attention to nothing is not defined.
    """
    mine = examples[rank::world_size]
    width, source_width = (max(lengths) for lengths in zip(*map(_lengths, examples), strict=True))
    count = max(1, len(mine))
    input_ids = np.full((count, width), objective.pad_id, np.int64)
    labels = np.full((count, width), IGNORE, np.int64)
    segment_ids = np.zeros((count, width), np.int32)
    bidirectional = np.zeros((count, width), np.bool_)
    source_ids = np.full((count, source_width), objective.pad_id, np.int64)
    source_mask = np.zeros((count, source_width), np.bool_)
    source_mask[:, :1] = True
    positions = np.broadcast_to(np.arange(width), (count, width)).copy()
    separate = any(example.rejected for example in examples)
    for row, example in enumerate(mine):
        target, source = _lengths(example)
        input_ids[row, :target] = example.input_ids
        labels[row, :target] = example.labels
        segment_ids[row, :target] = 1
        bidirectional[row, : example.bidirectional] = True
        if example.rejected:
            segment_ids[row, example.rejected : target] = 2
            positions[row, example.rejected :] -= example.rejected
        if example.source_ids is not None:
            source_ids[row, :source] = example.source_ids
            source_mask[row, :source] = True
    if separate:  # a row may be longer than the model's positions reach
        positions[segment_ids == 0] = 0
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(positions),
        segment_ids=torch.from_numpy(segment_ids),
        separate=separate,
        bidirectional=torch.from_numpy(bidirectional) if bidirectional.any() else None,
        source_ids=torch.from_numpy(source_ids) if source_width else None,
        source_mask=torch.from_numpy(source_mask) if source_width else None,
        bytes=objective.scored_bytes(labels),
        origins=tuple((example.origin,) for example in mine) or ((),),
        bookmark=bookmark or {},
    )
