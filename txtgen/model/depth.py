"""How far from the output the parameters of a Transformer are."""

from txtgen.model.transformer import Transformer


def depths(model: Transformer) -> dict[str, int]:
    """Of every parameter by name, how many layers of its stack lie between it and the output.

    0: the last layer of either stack, the norm behind it, and an output layer of its own. Embeddings, which are the
    output layer too where that has no weights of its own, lie below the longest stack.
    """
    lengths = {kind: len(s.layers) for kind, s in (("encoder", model.encoder), ("decoder", model.decoder)) if s}
    return {name: _depth(name.split("."), lengths) for name, _ in model.named_parameters()}


def _depth(parts: list[str], lengths: dict[str, int]) -> int:
    """lengths: layers of each stack."""
    match parts:
        case ["lm_head", *_] | ["output_bias"] | [_, "final_norm", *_]:
            return 0
        case [stack, "layers", number, *_]:
            return lengths[stack] - 1 - int(number)
        case [stack, *_] if stack in lengths:
            return lengths[stack]
        case _:
            return max(lengths.values())
