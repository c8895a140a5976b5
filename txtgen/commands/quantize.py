"""`txtgen quantize`: the same model with its weights in 8 or 4 bits."""

from dataclasses import dataclass, replace
from pathlib import Path

from txtgen.checkpoint import quantized, save_checkpoint
from txtgen.commands.deriving import descended, require_free
from txtgen.commands.models import read_checkpoint, whole
from txtgen.config.commands import QuantizeConfig
from txtgen.config.model import Quantization
from txtgen.model.quantize import count_weights


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was quantised, and what was written. bytes_before, bytes_after: of all weights."""

    path: str
    parent: str
    kind: Quantization
    parameters: int
    bytes_before: int
    bytes_after: int
    fingerprint: str


def run(config: QuantizeConfig) -> Quantized:
    """Write a checkpoint with the weights of linear layers and token embeddings in few bits.

    Raises:
        BusyError: the output exists, and it is not to be overwritten.
        CheckpointError: the model cannot be read, or is quantised already.
        ResourceError: there is no room, or no permission.
    """
    output = Path(config.output)
    require_free(output, config.overwrite)
    path, checkpoint = found = read_checkpoint(config.model, config.runs_path)
    checkpoint = whole(found)
    small = quantized(checkpoint, config.kind, str(path))
    lineage = descended(checkpoint, "quantize", [checkpoint.fingerprint])
    fingerprint = save_checkpoint(output, replace(small, lineage=lineage, fingerprint=""))
    before, after = (sum(tensor.nbytes for tensor in one.model.values()) for one in (checkpoint, small))
    return Quantized(str(output), str(path), config.kind, count_weights(checkpoint.model), before, after, fingerprint)
