"""Copies of a training state in the memory of the CPU, so that training may go on while they are written."""

import logging
from typing import Any

import torch
from torch import Tensor

from txtgen.distributed import gathered

logger = logging.getLogger(__name__)


class Staging:
    """Memory for the tensors of checkpoints, made at the first and used again for every later one.

    Args:
        keep: whether the tensors are wanted on this rank.
        copy: False: tensors that are on the CPU already are given back themselves, so nothing may change them while
            they are in use.
    """

    def __init__(self, *, keep: bool = True, copy: bool = True) -> None:
        self.keep, self.copy = keep, copy
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._pin = True

    @torch.no_grad()
    def take(self, tree: Any) -> Any:
        """The same nested dicts, lists and tuples, their tensors on the CPU (None where they are not kept).

        All ranks take the same tree together, and of a sharded tensor the whole. What was taken before is overwritten.
        """
        taken = self._take(tree, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies into pinned memory are still on their way
        return taken

    def _take(self, value: Any, place: tuple[Any, ...]) -> Any:
        match value:
            case Tensor():
                whole = gathered(value.detach())
                return self._tensor(whole, place) if self.keep else None
            case dict():
                return {key: self._take(item, (*place, key)) for key, item in value.items()}
            case list() | tuple():
                return type(value)(self._take(item, (*place, number)) for number, item in enumerate(value))
            case _:
                return value

    def _tensor(self, tensor: Tensor, place: tuple[Any, ...]) -> Tensor:
        if not self.copy:
            return tensor.cpu()
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._buffers[place] = self._memory(tensor)
        return buffer.copy_(tensor, non_blocking=tensor.is_cuda)

    def _memory(self, tensor: Tensor) -> Tensor:
        if tensor.is_cuda and self._pin:
            try:
                return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            except RuntimeError as error:
                self._pin = False
                logger.warning("no pinned memory for checkpoints (%s): copying them takes longer", error)
        return torch.empty(tensor.shape, dtype=tensor.dtype)
