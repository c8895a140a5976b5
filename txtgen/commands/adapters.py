"""Adapters and their base models: which belongs to which, and the model that they make together."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from txtgen.checkpoint import Checkpoint, load_weights, materialise
from txtgen.config.finetuning import AdapterRecord, LoraConfig
from txtgen.errors import CheckpointError
from txtgen.model import Transformer
from txtgen.model.lora import add_adapters, is_of_adapter, merge_adapters
from txtgen.model.quantize import dequantize_model

Named = tuple[Path, Checkpoint]
"""A checkpoint, and the file that it comes from."""


def weights_sha256(checkpoint: Checkpoint) -> str:
    """Hex SHA-256 of the names, shapes, types and numbers of all weights: the same model in another file has it too."""
    digest = sha256()
    for name, tensor in sorted(checkpoint.model.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def record_of(adapter: LoraConfig, base: Checkpoint, path: Path) -> AdapterRecord:
    """What the checkpoints of an adapter of this model say of it."""
    return AdapterRecord(adapter=adapter, base_path=str(path.resolve()), base_sha256=weights_sha256(base))


def require_adapter(checkpoint: Checkpoint, where: str) -> AdapterRecord:
    """What the checkpoint says of its adapter.

    Raises:
        CheckpointError: it has none.
    """
    if checkpoint.config.adapter is None:
        raise CheckpointError("this is a whole model, no adapter", where, "give a run that was finetuned with adapter:")
    return checkpoint.config.adapter


def require_base(adapters: Sequence[Named], base: Named) -> None:
    """Refuse adapters of another model.

    Raises:
        CheckpointError: the base is none, or one of them was not made for it.
    """
    path, checkpoint = base
    if checkpoint.config.adapter is not None:
        fix = "make a whole model of it first: txtgen convert merge"
        raise CheckpointError("an adapter cannot be the base of another one", str(path), fix)
    found = weights_sha256(checkpoint)
    for where, adapter in adapters:
        record = require_adapter(adapter, str(where))
        if record.base_sha256 != found:
            raise CheckpointError(
                f"the adapter was made for another model (weights {record.base_sha256[:16]}, from {record.base_path}) "
                f"than {path} (weights {found[:16]})",
                str(where),
                "give the model that it was made for",
            )


def with_adapters(base: Named, adapters: Sequence[Named]) -> Checkpoint:
    """The whole model that a base and adapters of it make, whose changes are added up. All is computed in float32 and
    rounded once, to the dtype of the base.

    All but the weights is that of the last adapter. Base weights that an adapter was trained over in few bits are
    these few bits' values.

    Raises:
        CheckpointError: an adapter is not of this base, does not fit its layers, or contradicts another one.
    """
    require_base(adapters, base)
    for number, (where, adapter) in enumerate(adapters):
        if any(adapter.fingerprint == other.fingerprint for _, other in adapters[:number]):
            raise CheckpointError("this adapter is given twice", str(where), "give it once: its change is added up")
    kinds = {adapter.config.adapter.adapter.base_quantization for _, adapter in adapters if adapter.config.adapter}
    if len(kinds) > 1:
        raise CheckpointError(
            "the adapters were trained over the same model in different bits",
            ", ".join(str(path) for path, _ in adapters),
            "apply one, or train them with the same base_bits",
        )
    path, checkpoint = base
    (kind,) = kinds
    model = materialise(checkpoint, str(path), quantization=kind).model
    dtype = model.compute_dtype
    dequantize_model(model.float())
    taken: set[str] = set()
    for where, adapter in adapters:
        _add(model, adapter, str(where), taken)
    model.to(dtype)
    last = adapters[-1][1]
    config = last.config.model_copy(update={"adapter": None})
    # An adapter's fingerprint tells its base, too.
    parts = [adapter.fingerprint for _, adapter in adapters]
    fingerprint = parts[0] if len(parts) == 1 else sha256(" ".join(parts).encode()).hexdigest()
    return replace(last, config=config, model=model.state_dict(), training=None, fingerprint=fingerprint)


def _add(model: Transformer, adapter: Checkpoint, where: str, taken: set[str]) -> None:
    """Make an adapter part of a model. taken: parameters that others have replaced."""
    record = require_adapter(adapter, where)
    replaced = {name for name in adapter.model if not is_of_adapter(name)}
    if twice := sorted(replaced & taken):
        what = f"another adapter has replaced {', '.join(twice[:3])} already"
        raise CheckpointError(what, where, "apply one of them, or train them without adapter.trainable")
    taken |= replaced
    add_adapters(model, record.adapter)
    load_weights(model, {**model.state_dict(), **adapter.model}, where)
    merge_adapters(model)
