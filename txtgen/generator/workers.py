"""Processes of one thread that share out batches: where a product of matrices is too small for many threads."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from txtgen.config.decoding import DecodingConfig
from txtgen.errors import DistributedError
from txtgen.generator.batches import Batch
from txtgen.generator.generator import Generator
from txtgen.generator.types import Generation
from txtgen.processes import KilledError, Line, Subprocess, first_to_answer

Results = dict[int, list[Generation]]
"""Of some prompts, by their numbers."""


def complete_by_workers(
    make: Callable[[], Generator], batches: Sequence[Batch], decoding: DecodingConfig, count: int
) -> Iterator[Results]:
    """The results of batches as workers finish them, each batch by one of them.

    Args:
        make: makes the generator of a worker, in that worker; picklable.
        batches: what is to be generated.
        decoding: and how.
        count: of workers; no more are started than there are batches.

    Raises:
        TxtgenError: what a worker met.
        DistributedError: a worker was killed.
        RuntimeError: there is a bug in a worker.
    """
    left = deque(batches)
    work = partial(_work, make, decoding)
    workers = [Subprocess(work, f"worker {number}") for number in range(min(count, len(left)))]
    busy: dict[Subprocess, Batch] = {}
    try:
        for worker in workers:
            busy[worker] = left.popleft()
            worker.send(busy[worker])
        while busy:
            worker = first_to_answer(list(busy))
            found: Results = worker.receive()
            del busy[worker]
            if left:
                busy[worker] = left.popleft()
                worker.send(busy[worker])
            yield found
    except KilledError as how:
        raise _lost(worker, busy[worker], how) from how
    finally:
        for worker in workers:
            worker.end()


def _lost(worker: Subprocess, batch: Batch, how: KilledError) -> DistributedError:
    first = min(prompt.number for prompt in batch) + 1
    where = f"at {len(batch)} prompts, prompt {first} among them"
    return DistributedError(f"{worker.name} was {how}", where, "if memory ran out, use fewer workers")


def _work(make: Callable[[], Generator], decoding: DecodingConfig, line: Line) -> None:
    """In the worker: complete batch after batch until no more are sent."""
    generator = make()
    while True:
        line.send(generator.complete(line.receive(), decoding))
