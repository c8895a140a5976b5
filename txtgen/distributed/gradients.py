"""Gradients summed over the ranks while they are being computed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from txtgen.distributed.sharding import is_sharded
from txtgen.distributed.world import World

BUCKET_BYTES = 25 << 20
"""Gradients are sent in parts of about this size: large enough to be fast, small enough to begin soon."""


class GradientSums:
    """Sums the gradients of a model over the ranks, each of which has all weights.

    They lie in buckets, in the reverse order of the parameters, which is about the order in which backward makes them.
    A full bucket is sent at once, while backward makes the others. What is in which bucket depends on the model alone:
    a sum over three or more ranks is rounded according to its place there, so a resumed run must have it where the
    straight run has it. The weights of rank 0 become those of all.

    Of a sharded model each unit sees to it by itself, and a rank alone has nothing to sum: then this does nothing.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self._world = world
        self._buckets: list[Bucket] = []
        self._sums: list[dist.Work] = []
        """Of the first buckets, those that are being made or are made."""
        if world.size == 1 or is_sharded(model):
            return
        with world.together():
            for parameter in model.parameters():
                dist.broadcast(parameter.detach(), 0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buckets = [Bucket(group) for group in cut(trained[::-1], BUCKET_BYTES)]

    def clear(self) -> None:
        """Begin a step: all gradients are zero, and where backward adds to them they can be sent from."""
        self._sums.clear()
        for bucket in self._buckets:
            bucket.clear()

    @contextmanager
    def over_ranks(self) -> Iterator[None]:
        """The backward pass within it is the last one of a step; after it, gradients are sums over all ranks."""
        hooks = [hook for bucket in self._buckets for hook in bucket.hooks(self._send_full)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.complete()

    def complete(self) -> None:
        """Send what is not sent yet, and wait for all sums: every rank makes each of them once a step.

        Also after a pass that broke off on this rank alone, for whose gradients the others wait. Then what all get is
        worth nothing.
        """
        for bucket in self._buckets[len(self._sums) :]:
            self._send(bucket)
        for made in self._sums:
            made.wait()

    def _send_full(self) -> None:
        """Send the buckets that are full; in the same order on all ranks, whichever is full first."""
        while len(self._sums) < len(self._buckets) and not self._buckets[len(self._sums)].missing:
            self._send(self._buckets[len(self._sums)])

    def _send(self, bucket: "Bucket") -> None:
        self._world.enter()
        self._sums.append(dist.all_reduce(bucket.content, async_op=True))


class Bucket:
    """Parameters whose gradients are parts of one tensor, `content`.

    missing: those, by number, whose gradient of this step is not whole yet.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        self.content = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        pairs = zip(parameters, self.content.split_with_sizes(sizes), strict=True)
        self._parts = [(parameter, part.view_as(parameter)) for parameter, part in pairs]
        self.missing: set[int] = set()

    def clear(self) -> None:
        """Set all gradients to zero."""
        self.content.zero_()
        for parameter, part in self._parts:
            parameter.grad = part
        self.missing = set(range(len(self._parts)))

    def hooks(self, then: Callable[[], None]) -> Iterator[RemovableHandle]:
        """Have backward note whose gradient is whole, and call `then` after each."""

        def note(number: int, _parameter: Tensor) -> None:
            self.missing.discard(number)
            then()

        for number, (parameter, _) in enumerate(self._parts):
            yield parameter.register_post_accumulate_grad_hook(partial(note, number))  # type: ignore[no-untyped-call]


def cut(parameters: Sequence[nn.Parameter], max_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Parameters in groups of one dtype and at most so many bytes, or of one that is larger."""
    group: list[nn.Parameter] = []
    room = max_bytes
    for parameter in parameters:
        if group and (parameter.nbytes > room or parameter.dtype != group[0].dtype):
            yield group
            group, room = [], max_bytes
        group.append(parameter)
        room -= parameter.nbytes
    if group:
        yield group


def total_norm(gradients: Sequence[Tensor], world: World, parts: bool) -> Tensor:
    """The norm, a scalar, of all gradients as one vector. parts: this rank holds a part of each only."""
    norm = nn.utils.get_total_norm(gradients)
    if not parts:
        return norm
    return world.sum_tensor(norm.square()).sqrt()
