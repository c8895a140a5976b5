"""Batches on their way to a device."""

from dataclasses import dataclass, field

import pytest
import torch

from txtgen.data.types import Batch

CPU = torch.device("cpu")


@dataclass
class Watched:
    """What a tensor is asked for when it is to be moved."""

    device: torch.device = CPU
    pinned: bool = False
    moves: list[tuple[str, bool, bool]] = field(default_factory=list)

    def pin_memory(self) -> "Watched":
        return Watched(self.device, True, self.moves)

    def to(self, device: torch.device, non_blocking: bool) -> "Watched":
        self.moves.append((device.type, self.pinned, non_blocking))
        return self

    def itself(self, *_) -> "Watched":
        return self

    flatten = ne = nonzero = itself


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_copy_to_a_gpu_leaves_pinned_memory_and_does_not_wait(device) -> None:
    tensors = {name: Watched() for name in ("input_ids", "labels", "positions", "segment_ids", "source_ids")}
    Batch(**tensors).to(torch.device(device))
    assert all({*tensor.moves} == {(device, device == "cuda", True)} for tensor in tensors.values())


def test_what_is_on_a_gpu_already_is_not_pinned() -> None:
    tensor = Watched(torch.device("cuda"))
    Batch(tensor, tensor, tensor, tensor, places=tensor).to(torch.device("cuda"))
    assert tensor.moves == 5 * [("cuda", False, True)]
