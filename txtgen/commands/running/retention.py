"""What is left of the base model while it is finetuned: how well it knows what it knew, and how far its weights are."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from txtgen.checkpoint import load_checkpoint
from txtgen.commands.models import read_model, resolve_model
from txtgen.commands.running.job import Job
from txtgen.commands.running.measuring import MeasuredText
from txtgen.commands.running.signals import StopRequest
from txtgen.config.data import DataConfig, ValidationConfig
from txtgen.config.runs import FinetuneConfig
from txtgen.data import validation_parts
from txtgen.distributed import gathered
from txtgen.errors import TxtgenError
from txtgen.evaluate import weighted_loss
from txtgen.model import Transformer, part_of
from txtgen.model.lora import adapters_of, is_of_adapter

logger = logging.getLogger(__name__)

KNOWN, FORGOTTEN = "val_known_bits_per_byte", "val_forgotten_bits_per_byte"


class Retention:
    """Measures known text, and the distance of the weights from those of the base model. Of a run without either, it
    measures nothing."""

    def __init__(self, job: Job) -> None:
        self.job = job
        data, known = job.settled.data, job.settled.data.forgetting
        self.before: float | None = None
        """What was measured of the base model, bits per byte."""
        self.text = MeasuredText({})
        """Known text, if the config names any."""
        self._weights: Mapping[str, float] = {}
        if known is not None:
            config = data.own_objective(known) or data.objective
            measured = DataConfig(
                sources=known.sources, validation=ValidationConfig(sources=known.sources), objective=config
            )
            objective = job.objective(config)
            self._weights = objective.weights
            self.text = MeasuredText(validation_parts(measured, objective, **job.stream_options), known.batches)
        self._base: dict[str, Tensor] | None = None
        if isinstance(job.config, FinetuneConfig) and job.world.is_main:
            self._base = self._weights_of_base(job.config)

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.text.parts) or self._base is not None

    def _weights_of_base(self, config: FinetuneConfig) -> dict[str, Tensor] | None:
        """Mapped from its file, so that no memory is held for them."""
        try:
            path = resolve_model(config.base, config.runs_path)
            base = load_checkpoint(path, mapped=True)
            if base.config.adapter is not None:
                return read_model(config.base, config.runs_path)[1].model
        except TxtgenError as error:
            logger.warning("how far the weights are from the base model is not measured: %s", error)
            return None
        if base.fingerprint not in self.job.parents:
            logger.warning("how far the weights are from the base model is not measured: %s is another model now", path)
            return None
        return base.model

    def restore(self, training: dict[str, Any]) -> None:
        """Go on from the training state of a checkpoint."""
        self.before = training.get("known_before")

    def progress(self) -> dict[str, Any]:
        """What `restore` takes up."""
        return {"known_before": self.before}

    def begin(self, stop: StopRequest, max_tokens: int | None = None) -> dict[str, float] | None:
        """Measure known text before the first step; None if any rank was asked to stop."""
        found = self._known(stop, max_tokens)
        self.before = None if found is None else found.get(KNOWN)
        return found

    def measure(self, stop: StopRequest, max_tokens: int | None = None) -> dict[str, float] | None:
        """Bits per byte of known text, and how many more these are than before the first step; how far the weights are
        from the base model's, which rank 0 alone knows. None if any rank was asked to stop.

        Raises:
            OutOfMemoryError: as for `evaluate_loss`.
        """
        found = self._known(stop, max_tokens)
        if found is None:
            return None
        if found and self.before is not None:
            found[FORGOTTEN] = found[KNOWN] - self.before
        return {**found, **self.distances()}

    def _known(self, stop: StopRequest, max_tokens: int | None) -> dict[str, float] | None:
        found = self.text.measure(self.job, stop, max_tokens)
        if not found:
            return None if found is None else {}
        return {KNOWN: weighted_loss(found, self._weights).bits_per_byte}

    def distances(self) -> dict[str, float]:
        """How far the weights are from the base model's; rank 0 alone knows, and all ranks ask together."""
        if not isinstance(self.job.config, FinetuneConfig):
            return {}
        changed = _changed(self.job.model)
        if self._base is None:
            for _ in changed:  # the other ranks gather with rank 0
                pass
            return {}
        return distances(changed, self._base)


Changed = tuple[str, Tensor | None, Tensor | None]
"""The name of a weight, the weight itself unless it is in few bits, and what an adapter adds to it, if there is one."""


@torch.no_grad()
def _changed(model: Transformer) -> Iterator[Changed]:
    """Every weight; all ranks of a sharded model ask for them together."""
    adapters = adapters_of(model)

    def added(name: str) -> Tensor | None:
        lora = adapters.pop(name, None)
        return None if lora is None else lora.scale * (gathered(lora.up.weight) @ gathered(lora.down.weight))

    for name, parameter in model.named_parameters():
        if not is_of_adapter(name):
            yield name, gathered(parameter), added(name)
    for name in list(adapters):
        yield name, None, added(name)


@torch.no_grad()
def distances(changed: Iterable[Changed], base: Mapping[str, Tensor]) -> dict[str, float]:
    """How far weights are from those of the same names in `base`: |w - base| / |base|, by L2 norms, of all of them
    (`distance`) and of each part of the model (`distance_embedding` and so on). What `base` lacks, or has in another
    shape because the vocabulary was changed, is left out."""
    moved: dict[str, float] = {}
    size: dict[str, float] = {}
    for name, weight, added in changed:
        parts = [tensor.float() for tensor in (weight, added) if tensor is not None]
        if name not in base or base[name].shape != parts[0].shape:
            continue
        origin = base[name].to(parts[0].device, torch.float32)
        change = sum(parts) - origin * (weight is not None)
        for key in ("distance", f"distance_{part_of(name)}"):
            moved[key] = moved.get(key, 0.0) + float(change.square().sum(dtype=torch.float64))
            size[key] = size.get(key, 0.0) + float(origin.square().sum(dtype=torch.float64))
    return {key: (moved[key] / size[key]) ** 0.5 for key in moved if size[key]}
