"""Two ranks that stay alive and run functions: starting them takes seconds, which all tests share."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from txtgen.distributed import open_world


class RankPool:
    """Processes of one world, on this machine, over gloo."""

    def __init__(self, size: int = 2) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What function(world, *arguments) returns on each rank."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = [pipe.recv() for pipe in self._pipes]
        for rank, (result, error) in enumerate(answers):
            assert error is None, f"rank {rank}: {error}"
            assert result is not None or error is None
        return [result for result, _ in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(20)


def _serve(rank: int, size: int, port: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with open_world(torch.device("cpu"), timeout_seconds=60) as world:
        while (task := pipe.recv()) is not None:
            function, arguments = task
            try:
                pipe.send((function(world, *arguments), None))
            except Exception:
                pipe.send((None, traceback.format_exc()))
