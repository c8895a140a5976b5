"""The weights of a model by the parts that they belong to."""

from itertools import chain

import torch

from txtgen.model.transformer import Transformer


def count_parameters(model: Transformer) -> dict[str, int]:
    """Weights in embedding, attention, feed_forward, norm and head, of an adapter if there is one, and in total; tied
    ones count once, and those in 4 bits in pairs: the last one of an odd row as two."""
    counts = dict.fromkeys(("embedding", "attention", "feed_forward", "norm", "head"), 0)
    codes = ((name, tensor) for name, tensor in model.named_buffers() if name.endswith(".codes"))
    for name, tensor in chain(model.named_parameters(), codes):
        part = part_of(name)
        counts[part] = counts.get(part, 0) + tensor.numel() * (2 if tensor.dtype == torch.uint8 else 1)
    return counts | {"total": sum(counts.values())}


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, as `count_parameters` names it."""
    if ".lora." in name:
        return "adapter"
    if name.removesuffix(".weight").removesuffix(".bias").endswith("_norm"):
        return "norm"
    if "_embedding." in name:
        return "embedding"
    if name in ("lm_head.weight", "lm_head.codes", "output_bias"):
        return "head"
    return "feed_forward" if ".feed_forward." in name else "attention"
