"""Less at once, after memory ran out."""

from txtgen.errors import ResourceError


def smaller_micro_batch(max_tokens: int, width: int, num_parameters: int) -> int:
    """Half of what went through the model at once, after that was too much.

    Args:
        max_tokens: tokens that went through the model at once.
        width: tokens of a row, source included.
        num_parameters: of the model.

    Raises:
        ResourceError: a single row was too much.
    """
    if max_tokens >= 2 * width:
        return max_tokens // 2
    raise ResourceError(
        f"out of memory with a single row of {width:,} tokens",
        f"weights, gradients and optimizer take about {16 * num_parameters / 1e9:,.2f} GB, activations the rest",
        "lower train.sequence_length (or the longest pair), make model.d_model or num_layers smaller, "
        "or set train.dtype=bfloat16",
    )
