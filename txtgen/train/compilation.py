"""Layers turned into machine code of their own by torch.compile, where that pays."""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from txtgen.config.model import Compile
from txtgen.data.types import Batch
from txtgen.distributed import World, is_sharded
from txtgen.model import Transformer
from txtgen.model.compiling import cause, may_compile
from txtgen.train.cost import synchronise
from txtgen.train.loss import BatchLoss, TokenLoss

WARM_UP, TIMED = 2, 5
"""Steps that are left out of the comparison, and those of which the median counts."""


@dataclass(frozen=True, slots=True)
class Compilation:
    """Whether layers are compiled. compiled: None: nobody has decided it yet. here: it was decided, and done, in this
    process; else a checkpoint says it. reason: why they are not, where that was tried. before: what the run did up to
    a checkpoint; None: the same, or it is new."""

    compiled: bool | None = None
    here: bool = False
    reason: str = ""
    before: bool | None = None

    @property
    def told(self) -> str:
        """What is to be said of it, if anything is."""
        told = [f"the layers are not compiled: {self.reason}"] if self.reason else []
        if self.before is not None:
            verb = "were" if self.before else "were not"
            told.append(f"up to now they {verb} compiled, so rounding will differ from the straight run")
        return "; ".join(told)


def compile_layers(model: Transformer, dynamic: bool) -> None:
    """Let every layer compute by compiled code while training; validation and decoding, of other shapes, do not.

    The weights keep their names. Nothing is compiled before a layer is first called.

    Args:
        model: its layers are changed in place.
        dynamic: one code for all shapes; else each shape gets its own.
    """
    compiled = [torch.compile(layer.forward, dynamic=dynamic) for layer in model.layers]
    for layer, fast in zip(model.layers, compiled, strict=True):
        layer.forward = partial(_compiled, layer, layer.forward, fast)


def _compiled(layer: nn.Module, plain: Callable[..., Any], fast: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return (fast if layer.training else plain)(*args, **kwargs)


def settle_compilation(
    model: Transformer,
    wanted: Compile,
    part: Batch,
    dtype: torch.dtype,
    world: World,
    before: Compilation,
) -> Compilation:
    """Compile the layers if that is wanted and works, under `auto` only where it makes a step faster.

    All ranks decide the same. A run that is resumed does what it did before, so that it rounds as it did.

    Args:
        model: in training mode.
        wanted: what the config says.
        part: what goes through the model at once, on the model's device.
        dtype: of the matrix products.
        world: the ranks.
        before: what the run did up to now.
    """
    if not may_compile(wanted, part.input_ids.device) or (wanted == "auto" and before.compiled is False):
        return _settled(False, "", before)
    if is_sharded(model):
        return _settled(False, "the model is spread over the ranks", before)
    compare = wanted == "auto" and before.compiled is None
    plain = [layer.forward for layer in model.layers]
    reason, seconds = "", [0.0, 0.0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own parts
            seconds[0] = _pass_seconds(model, part, dtype, WARM_UP + TIMED) if compare else 0.0
            compile_layers(model, dynamic=part.source_ids is not None)
            seconds[1] = _pass_seconds(model, part, dtype, WARM_UP + TIMED if compare else 1)
    except Exception as error:  # whatever a compiler, or its absence, may raise
        reason = cause(error)
    if world.any(bool(reason)):
        reason = reason or "another rank could not"
    elif compare:
        eager, compiled = (1e3 * total / world.size for total in world.sum(seconds))
        reason = "" if compiled < eager else f"{compiled:.1f} ms compiled, {eager:.1f} ms without"
    if reason:
        for layer, forward in zip(model.layers, plain, strict=True):
            layer.forward = forward
    return _settled(not reason, reason, before)


def _settled(compiled: bool, reason: str, before: Compilation) -> Compilation:
    return Compilation(compiled, True, reason, None if before.compiled == compiled else before.compiled)


def _pass_seconds(model: Transformer, part: Batch, dtype: torch.dtype, count: int) -> float:
    """Seconds of a pass forward and backward, the median of `count` less warm-up. They leave nothing behind."""
    loss, device = BatchLoss(model, TokenLoss()), part.input_ids.device
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    taken = []
    for _ in range(count):
        synchronise(device)
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            objective = loss(part).objective
        # Not `backward`, which would add to the gradients of a step and wake what sums them over the ranks.
        torch.autograd.grad(objective, weights, allow_unused=True)
        synchronise(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[WARM_UP:] or taken)
