"""The curves and samples of a run for TensorBoard, for those who ask for it."""

import logging
from pathlib import Path
from typing import Any

from txtgen.errors import ResourceError

logger = logging.getLogger(__name__)


class Board:
    """Writes TensorBoard's event files. What cannot be written costs one warning, and from then on nothing is.

    Args:
        folder: of the event files.
        step: of the run that goes on; events of later steps are of a part that is done again, and are not shown.

    Raises:
        ResourceError: TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ResourceError(
                "TensorBoard is not installed", "train.tensorboard", "run: pip install 'txtgen[tensorboard]'"
            ) from error
        try:
            self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)
        except OSError as error:
            raise ResourceError(
                f"cannot write: {error.strerror or error}", str(folder), "check its permissions"
            ) from error

    def scalars(self, line: dict[str, Any]) -> None:
        """Add every number of a line of metrics to the curve of its name."""
        numbers = {name: value for name, value in line.items() if type(value) in (int, float) and name != "step"}
        for name, value in numbers.items():
            self._try("add_scalar", name, value, line["step"])

    def text(self, name: str, text: str, step: int) -> None:
        """Add a text, shown as it is: TensorBoard would read it as Markdown."""
        block = "".join(f"    {line}\n" for line in text.split("\n"))
        self._try("add_text", name, block, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._try("close")

    def _try(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except Exception as error:  # curves must never cost the run
            logger.warning("TensorBoard's files cannot be written, and no longer are: %s", error)
            self._writer = None
