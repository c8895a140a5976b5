"""Ctrl-C and SIGTERM as a request that long work answers at its next safe point."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143}


class StopRequest:
    """Which signal asked to stop, if any; a second one stops at once by KeyboardInterrupt."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Note the first signal, obey the second."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Turn signals into a StopRequest while the block runs."""
    request = StopRequest()
    wanted = [getattr(signal, name) for name in EXIT_CODES if name in signal.Signals.__members__]
    before = {number: signal.signal(number, request.receive) for number in wanted}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
