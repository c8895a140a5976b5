"""Two ranks that stay alive and run functions: starting them takes seconds, which all tests share."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch

from txtgen.distributed import open_world


class RankPool:
    """Processes of one world, on this machine, over gloo."""

    def __init__(self, size: int = 2, timeout: timedelta = timedelta(seconds=300)) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, timeout, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What function(world, *arguments) returns on each rank."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for pipe in self._pipes:
            try:
                answers.append(pipe.recv())
            except EOFError:  # the rank is gone
                answers.append((None, None))
        for rank, (_, error) in enumerate(answers):
            assert error is None, f"rank {rank}: {error}"
        return [result for result, _ in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(20)
            process.kill()


def _serve(rank: int, size: int, port: int, timeout: timedelta, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with open_world(torch.device("cpu"), timeout_seconds=timeout.total_seconds()) as world:
        while (task := pipe.recv()) is not None:
            function, arguments = task
            try:
                pipe.send((function(world, *arguments), None))
            except Exception:
                pipe.send((None, traceback.format_exc()))
