"""How fast a run is: tokens, use of the machine, waiting and memory, over the steps since the last look."""

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
