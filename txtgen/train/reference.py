"""What the base model says of pairs of answers: reckoned once, and looked up ever after."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtgen.data.types import Batch, Origin
from txtgen.distributed import World
from txtgen.errors import DataError


class ReferenceTable:
    """Log-probabilities that a model gives to the answers of pairs, by what the pairs are made of.

    A pair is known by a hash of its tokens, so it may move or stand in several places, and one that was changed is not
    taken for what it was.

    keys: [N] int64, ascending. logprobs: [N,2] float32, of the chosen and the rejected answer.
    """

    def __init__(self, keys: NDArray[np.int64], logprobs: NDArray[np.float32]) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys, self.logprobs = keys[order], logprobs[order]

    @classmethod
    def of(cls, found: Iterable[tuple[Batch, Tensor]], world: World) -> "ReferenceTable":
        """The table of batches with the log-probabilities [B,2] of their pairs, those of all ranks together."""
        keys, logprobs = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.float32)]
        for batch, values in found:
            rows = [row for row, origins in enumerate(batch.origins) if origins]
            keys.append(pair_keys(batch)[rows])
            logprobs.append(values.cpu().float().numpy()[rows])
        parts = world.gather((np.concatenate(keys), np.concatenate(logprobs)))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ReferenceTable":
        """What `state` was taken of."""
        return cls(state["keys"].numpy(), state["logprobs"].numpy())

    def state(self) -> dict[str, Tensor]:
        """The table as tensors, for a checkpoint."""
        return {"keys": torch.from_numpy(self.keys), "logprobs": torch.from_numpy(self.logprobs)}

    def attach(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches of pairs, each with what the model says of them.

        Raises:
            DataError: a pair is not in the table.
        """
        for batch in batches:
            yield replace(batch, reference=self.look_up(batch))

    def look_up(self, batch: Batch) -> Tensor:
        """The log-probabilities [B,2] float32 of a batch's pairs; 0 for rows of padding.

        Raises:
            DataError: a pair is not in the table.
        """
        found = np.zeros((len(batch.origins), 2), np.float32)
        keys = pair_keys(batch)
        places = np.searchsorted(self.keys, keys)
        for row, origins in enumerate(batch.origins):
            if not origins:
                continue
            place = int(places[row])
            if place == len(self.keys) or self.keys[place] != keys[row]:
                raise _unknown(origins[0])
            found[row] = self.logprobs[place]
        return torch.from_numpy(found)


def _unknown(origin: Origin) -> DataError:
    return DataError(
        "what the base model says of this pair was not reckoned when the run began: the text is another",
        str(origin),
        "put the files back as they were, or start a new run",
    )


def pair_keys(batch: Batch) -> NDArray[np.int64]:
    """A hash [B] int64 of the tokens of each row: of both answers, of what is scored, and of the source."""
    segments = batch.segment_ids.numpy()
    keys = np.zeros(len(segments), np.int64)
    for row, of_row in enumerate(segments):
        length = int((of_row != 0).sum())
        content = blake2b(digest_size=8)
        for tensor in (batch.input_ids, batch.labels, batch.segment_ids.long()):
            content.update(tensor[row, :length].numpy().tobytes())
        if batch.source_ids is not None and batch.source_mask is not None:
            content.update(batch.source_ids[row][batch.source_mask[row]].numpy().tobytes())
        keys[row] = int.from_bytes(content.digest(), "little", signed=True)
    return keys
