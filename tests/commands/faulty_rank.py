"""A rank that meets with a fault, in a process of its own: `python faulty_rank.py FAULT RANK STEP txtgen-arguments...`.

FAULT happens to rank RANK, once, where it computes the loss of step STEP for the first time.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from itertools import count

import txtgen.train.loss
from txtgen.cli import run


def inject(fault: str, step: int) -> None:
    original, numbers = txtgen.train.loss.batch_loss, count(1)

    def faulty(*arguments):
        if next(numbers) != step:
            return original(*arguments)
        match fault:
            case "memory":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345 bytes.")
            case "nan":
                sums = original(*arguments)
                return replace(sums, objective=sums.objective * float("nan"))
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
        raise AssertionError(fault)

    txtgen.train.loss.batch_loss = faulty


if __name__ == "__main__":
    fault, rank, step, *arguments = sys.argv[1:]
    if os.environ.get("RANK", "0") == rank:
        inject(fault, int(step))
    sys.exit(run(arguments))
