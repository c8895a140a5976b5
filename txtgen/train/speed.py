"""How fast a run is: tokens, use of the machine, waiting and memory, over the steps since the last look."""

import os
import time
from pathlib import Path

import torch

from txtgen.train.cost import matrix_peak, peak_memory_bytes
from txtgen.train.figures import StepReport


class Speed:
    """Adds up steps; what happens between them (validation, saving) does not count.

    Args:
        device, dtype: of the matrix products, whose peak on this machine the model's are compared with.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._reports: list[StepReport] = []

    def add(self, report: StepReport) -> None:
        """Count a step."""
        self._reports.append(report)

    def take(self) -> dict[str, float]:
        """Figures of the steps since the last call, for a line of metrics.

        tokens_per_second: over all ranks, padding not counted. data_wait_share: of the time, spent waiting for
        batches. flops_per_second: of this rank. mfu: model FLOP utilisation, their share of what large matrix products
        reach here. peak_memory_bytes: since the process began, where the system says.
        """
        reports, self._reports = self._reports, []
        seconds = max(sum(report.seconds for report in reports), 1e-9)
        rate = sum(report.flops for report in reports) / seconds
        figures = {
            "tokens_per_second": sum(report.positions for report in reports) / seconds,
            "data_wait_share": sum(report.data_seconds for report in reports) / seconds,
            "flops_per_second": rate,
            "mfu": rate / matrix_peak(self.device, self.dtype),
        }
        memory = peak_memory_bytes(self.device)
        return figures if memory is None else {**figures, "peak_memory_bytes": memory}


class Contention:
    """Whether other processes use the processors that this one computes on; every thread then waits for the slowest.

    Args:
        threads: that this process computes with.
        share: of the machine's processor time that the others take away from it, from which it is worth a word.
        seconds: to look at, at least.
    """

    def __init__(self, threads: int, share: float = 0.2, seconds: float = 10.0) -> None:
        self.threads, self.share, self.seconds = threads, share, seconds
        self._before = _processor_times()

    def warning(self) -> str | None:
        """What to tell the user, if others used that much since this was last answered, else None."""
        now = _processor_times()
        if self._before is None or now is None:
            return None  # the system does not say
        clock, total, foreign = (late - early for early, late in zip(self._before, now, strict=True))
        if clock < self.seconds or total <= 0:
            return None
        self._before = now
        spare = max(0.0, 1 - self.threads / (os.cpu_count() or 1))
        if foreign < (self.share + spare) * total:
            return None
        fewer = ", or if they stay, try fewer threads (OMP_NUM_THREADS=1)" if self.threads > 1 else ""
        used = f"other processes use {foreign / total:.0%} of the processors"
        return f"{used}, and training waits for them: stop them{fewer}"


def _processor_times() -> tuple[float, float, float] | None:
    """Seconds so far: by the clock, of all processors, and of those what other processes used. None: not on Linux."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    tick, own = os.sysconf("SC_CLK_TCK"), os.times()
    idle = fields[3] + fields[4]
    return time.monotonic(), sum(fields) / tick, (sum(fields) - idle) / tick - sum(own[:4])
