"""A checkpoint in memory."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from txtgen.config.checkpoint import CheckpointConfig
from txtgen.errors import CheckpointError
from txtgen.tokenizer import Tokenizer

FORMAT = 1
"""Of the files that are written, and the newest that are read."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    config: how to build and prompt the model. model: its state dict, plain names. lineage: where it came from.
    training: what a run needs to go on, or None. fingerprint: hex SHA-256 of the file's manifest, "" before saving.
    """

    config: CheckpointConfig
    model: dict[str, Tensor]
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer | None
    lineage: dict[str, Any]
    training: dict[str, Any] | None = None
    fingerprint: str = ""

    def require_unquantized(self, purpose: str, where: str) -> None:
        """Refuse weights in few bits for what needs them as they were trained.

        Raises:
            CheckpointError: they are in few bits.
        """
        kind = self.config.quantization
        if kind is not None:
            what = f"its weights are quantised to {kind}, and {purpose} needs them as they were trained"
            raise CheckpointError(what, where, "use the checkpoint that it was made from (inspect shows its sha256)")

    def require_whole(self, where: str) -> None:
        """Refuse an adapter, which is no model by itself.

        Raises:
            CheckpointError: it is one.
        """
        record = self.config.adapter
        if record is not None:
            raise CheckpointError(
                f"this is an adapter of {record.base_path}", where, "merge them first: txtgen convert merge"
            )
