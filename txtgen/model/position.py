"""Where a token is: tables of sines and cosines, and scores that depend on distance.

Tables hold nothing that is learned, so they live outside the modules: made when first needed for a device and
dtype, then kept. They are built in double precision on the CPU, outside inference mode, so that text
generated between two training steps leaves no table behind that training could not use.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar, TypeVarTuple, assert_never

import torch
from torch import Tensor

from txtgen.config.model import (
    AlibiPosition,
    LearnedPosition,
    LinearScaling,
    Llama3Scaling,
    NoPosition,
    PositionConfig,
    RotaryPosition,
    RotaryScaling,
    SinusoidalPosition,
    T5RelativePosition,
    YarnScaling,
)

Rotation = tuple[Tensor, Tensor]
"""Cosines and signed sines, each [1|B,1,N,K], for `rotate`."""

LONG = 8192
"""A table of so many positions costs next to nothing; of a hundred thousand, seconds and gigabytes."""

Key = TypeVarTuple("Key")
Table = TypeVar("Table")


def kept(make: Callable[[*Key], Table]) -> Callable[[*Key], Table]:
    """make, called once per set of arguments. torch.compile sees through it, unlike functools.cache."""
    tables: dict[tuple[*Key], Table] = {}

    def table(*key: *Key) -> Table:
        if key not in tables:
            with torch.inference_mode(False):
                tables[key] = make(*key)
        return tables[key]

    return table


def table_length(needed: int, most: int) -> int:
    """How many positions a table is made for: all that can be, or of very many those in use, doubled as needed."""
    if most <= LONG or needed <= LONG:
        return min(most, LONG)
    return min(most, 1 << (needed - 1).bit_length())


def is_bounded(position: PositionConfig) -> bool:
    """Whether positions come from a table and so end at the model's maximum length."""
    match position:
        case SinusoidalPosition() | LearnedPosition() | RotaryPosition():
            return True
        case AlibiPosition() | T5RelativePosition() | NoPosition():
            return False
        case _:
            assert_never(position)


def _rates(width: int, base: float) -> Tensor:
    """Radians per position [width/2] float64 of each pair of columns: 1 / base^(2i / width) for the i-th."""
    return base ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)


def _angles(length: int, rates: Tensor) -> Tensor:
    """Angles [length, width/2] float64 of positions 0, 1, ..."""
    return torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * rates


@kept
def sinusoidal_table(length: int, width: int, layout: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Position vectors [length, width]: sines in the even columns and cosines in the odd ones, or in two halves.

    Source: Vaswani et al. 2017, section 3.5.
    """
    angles = _angles(length, _rates(width, 10_000.0))
    if layout == "halves":
        table = torch.cat((angles.sin(), angles.cos()), dim=-1)
    else:
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
    return table.to(device, dtype)


class Rotary(NamedTuple):
    """How fast each pair of columns turns, and what its sines and cosines are multiplied with."""

    rates: tuple[float, ...]
    factor: float


def rotary(width: int, position: RotaryPosition) -> Rotary:
    """The rotations of a head of this width in radians per position, as numbers that torch.compile sees through."""
    rates, scaling = _rates(width, position.base), position.scaling
    if scaling is not None:
        rates = _scaled_rates(rates, position.base, scaling)
    factor = scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0
    return Rotary(tuple(rates.tolist()), factor)


@kept
def rotary_table(
    length: int, rates: tuple[float, ...], factor: float, device: torch.device, dtype: torch.dtype
) -> Rotation:
    """Cosines and signed sines, each [length, width], that rotate column i against column i + width/2.

    Source: Su et al. 2021, arXiv 2104.09864, with the pairing of GPT-NeoX and Llama.
    """
    angles = _angles(length, torch.tensor(rates, dtype=torch.float64, device="cpu"))
    cosines = torch.cat((angles.cos(), angles.cos()), dim=-1) * factor
    sines = torch.cat((-angles.sin(), angles.sin()), dim=-1) * factor
    return cosines.to(device, dtype), sines.to(device, dtype)


def _scaled_rates(rates: Tensor, base: float, scaling: RotaryScaling) -> Tensor:
    """Rates [width/2] slowed down as the scaling says. Sources: those of the scaling classes."""
    slowed = rates / scaling.factor
    match scaling:
        case LinearScaling():
            return slowed
        case Llama3Scaling():
            turns = scaling.original_length * rates / (2 * math.pi)
            keep = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
        case YarnScaling():

            def column(turns: float) -> float:
                """Where in the table a rotation turns so many times within the original length."""
                return len(rates) * math.log(scaling.original_length / (turns * 2 * math.pi)) / math.log(base)

            first, last = column(scaling.high_frequency), column(scaling.low_frequency)
            if scaling.truncate:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, 2 * len(rates) - 1)
            # A blend over no column at all would divide by zero.
            span = last - first if last != first else 0.001
            keep = 1 - (torch.arange(len(rates), dtype=torch.float64, device="cpu") - first) / span
        case _:
            assert_never(scaling)
    keep = keep.clamp(0.0, 1.0)
    return keep * rates + (1 - keep) * slowed


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys [B,H,N,K] turned by their positions, in their own dtype."""
    cosines, sines = rotation
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, -1), sines)


@kept
def alibi_slopes(num_heads: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The penalty of each head per token of distance, [H,1,1].

    Source: Press et al. 2021, arXiv 2108.12409: a geometric series for a power of two; other counts are
    filled up with every second slope of the next power.
    """

    def series(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (head + 1) / count) for head in range(count)]

    power = 1 << (num_heads.bit_length() - 1)
    slopes = series(power) + series(2 * power)[::2][: num_heads - power]
    return torch.tensor(slopes, dtype=torch.float64, device="cpu")[:, None, None].to(device, dtype)


def alibi_bias(queries: Tensor, keys: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """Scores [1|B,H,N,J] that fall with the distance of positions queries [1|B,N] and keys [1|B,J]."""
    distance = (queries[:, None, :, None] - keys[:, None, None, :]).abs()
    return distance * -alibi_slopes(num_heads, queries.device, dtype)


@kept
def bucket_table(num_buckets: int, max_distance: int, bidirectional: bool, device: torch.device) -> Tensor:
    """Buckets [2*max_distance+1] int64 of the offsets key - query from -max_distance to max_distance.

    Half of the buckets hold one distance each, the others grow logarithmically; offsets further out share
    those at the ends. A causal stack needs none for the future. Source: Raffel et al. 2019, arXiv 1910.10683.
    """
    offsets = torch.arange(-max_distance, max_distance + 1, device="cpu")
    if bidirectional:
        buckets, first, distance = num_buckets // 2, (offsets > 0).long(), offsets.abs()
    else:
        buckets, first, distance = num_buckets, torch.zeros_like(offsets), (-offsets).clamp(min=0)
    exact = buckets // 2
    # In float32 and in this order, because the truncation must agree with published weights.
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return (first * buckets + torch.where(distance < exact, distance, far)).to(device)


def relative_buckets(queries: Tensor, keys: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The bucket [1|B,N,J] of every pair of positions queries [1|B,N] and keys [1|B,J]."""
    table = bucket_table(num_buckets, max_distance, bidirectional, queries.device)
    offsets = keys[:, None, :] - queries[:, :, None]
    return table[offsets.clamp(-max_distance, max_distance) + max_distance]
