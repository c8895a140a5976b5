"""Forward and backward over a batch, in as many micro-batches as fit into the memory of every rank."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from txtgen.data.types import Batch
from txtgen.distributed import GradientSums, World, is_sharded
from txtgen.errors import OutOfMemoryError
from txtgen.memory import is_out_of_memory
from txtgen.model import Transformer
from txtgen.train.loss import BatchLoss, Loss
from txtgen.train.memory import held_bytes, smaller_batch
from txtgen.train.optimizer import Optimizers


@dataclass(frozen=True, slots=True)
class Accumulated:
    """losses: this rank's sums of objective, nll and the figures of the loss, [2+N]. count: what the gradient and the
    sums of all ranks are divided by. scored, positions: tokens of all ranks, those that are scored and those that went
    through the model. limit: how many went through it at once, at most; None: all of them."""

    losses: Tensor
    count: float
    scored: float
    positions: float
    limit: int | None


class Accumulation:
    """Gradients of the summed loss over a batch of all ranks.

    Where memory runs out, on whichever rank, all of them do the batch again with smaller micro-batches. Nothing of the
    attempt before stays: it is known to all that it failed before any of its gradients is used.

    Args:
        model: whose weights get the gradients.
        optimizer: of these weights; what it holds is told where memory runs out.
        loss: whose gradients they are.
        dtype: of the matrix products.
        world: the ranks.
    """

    def __init__(self, model: Transformer, optimizer: Optimizers, loss: Loss, dtype: torch.dtype, world: World) -> None:
        self._model, self._optimizer, self._dtype, self._world = model, optimizer, dtype, world
        self._device = next(model.parameters()).device
        self._loss, self._gradients = BatchLoss(model, loss), GradientSums(model, world)

    def run(self, batch: Batch, limit: int | None, key: int) -> Accumulated:
        """Add the gradients of the batch to the weights, as sums over all ranks.

        Args:
            batch: this rank's rows.
            limit: at most so many tokens go through the model at once.
            key: of what dropout draws, the same at every attempt.

        Raises:
            OutOfMemoryError: memory runs out for a single row, on whichever rank; all raise it.
            RuntimeError, MemoryError: memory runs out on a rank that has only a part of the weights; the others wait
                within the model for what it no longer sends.
        """
        while True:
            torch.manual_seed(key)
            losses = self._attempt(batch, limit)
            counts = [self._loss.loss.count(batch), batch.num_scored, batch.num_tokens, losses is None]
            count, scored, positions, out = self._world.sum([float(each) for each in counts])
            if losses is not None and not out:
                return Accumulated(losses, count, scored, positions, limit)
            limit = self._with_less(batch, limit, losses is None)

    def _attempt(self, batch: Batch, limit: int | None) -> Tensor | None:
        """This rank's losses; None if its memory ran out, in which case it has kept no other one waiting."""
        try:
            return self._accumulate(batch, limit)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or is_sharded(self._model):
                raise
        # Here and not in the handler, where the traceback would still hold what fills the memory.
        torch.cuda.empty_cache()  # does nothing without a GPU
        self._gradients.complete()
        return None

    def _with_less(self, batch: Batch, limit: int | None, out: bool) -> int:
        """The least that a rank whose memory ran out would try next."""
        self._optimizer.forget_gradients()
        wanted, too_much = None, None
        try:
            wanted = smaller_batch(held_bytes(self._model, self._optimizer), batch, limit) if out else None
        except OutOfMemoryError as error:
            too_much = error
        self._world.raise_on_all(OutOfMemoryError, too_much)
        return min(found for found in self._world.gather(wanted) if found is not None)

    def _accumulate(self, batch: Batch, limit: int | None) -> Tensor:
        """Add the gradients, micro-batch by micro-batch. Returns the sums [2+N]."""
        total = torch.zeros(2 + len(self._loss.loss.figures), device=self._device)
        self._gradients.clear()
        parts = even_micro_batches(self._model, batch, limit, self._world)
        kind = self._device.type
        # One region for all, in which each weight is cast once and not once for every micro-batch.
        with torch.autocast(kind, dtype=self._dtype, enabled=self._dtype != torch.float32):
            for number, part in enumerate(parts, 1):
                with self._gradients.over_ranks() if number == len(parts) else nullcontext():
                    sums = self._loss(part.to(self._device))
                    with torch.autocast(kind, enabled=False):
                        torch.autograd.backward(sums.objective)
                total += sums.all
        return total


def even_micro_batches(model: Transformer, batch: Batch, max_tokens: int | None, world: World) -> list[Batch]:
    """`micro_batches` of this rank's rows, with as many on every rank as a sharded model demands; those beyond the rows
    have nothing to be scored."""
    parts = list(micro_batches(batch, max_tokens))
    if is_sharded(model) and max_tokens is not None:
        # A rank may have a row less than another, yet all must compute equally often.
        parts += [parts[0].unscored()] * (world.max(len(parts)) - len(parts))
    return parts


def micro_batches(batch: Batch, max_tokens: int | None) -> Iterator[Batch]:
    """The batch in blocks of rows whose padded tokens stay within max_tokens, at least one row each."""
    count = batch.input_ids.shape[0]
    rows = count if max_tokens is None else max(1, max_tokens // batch.row_width)
    for start in range(0, count, rows):
        yield batch.rows(start, start + rows)
