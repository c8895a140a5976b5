import cmath
import math

import pytest
import torch

from txtgen.config.model import LinearScaling, Llama3Scaling, RotaryPosition, YarnScaling
from txtgen.model.position import (
    alibi_bias,
    alibi_slopes,
    relative_buckets,
    rotary,
    rotary_table,
    rotate,
    sinusoidal_table,
    table_length,
)

CPU = torch.device("cpu")


def test_sinusoidal_table_is_the_formula():
    table = sinusoidal_table(30, 8, "interleaved", CPU, torch.float64)
    for position in (0, 1, 7, 29):
        for pair in range(4):
            angle = position / 10_000 ** (2 * pair / 8)
            assert table[position, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-14)
            assert table[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-14)


def turned(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """x [N,K] at positions [N], rotated by the table."""
    cosines, sines = rotary_table(64, *rotary(x.shape[-1], RotaryPosition(base=base)), CPU, x.dtype)
    return rotate(x[None, None], (cosines[positions][None, None], sines[positions][None, None]))[0, 0]


def test_rotation_is_multiplication_by_a_complex_number():
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 5, 40])
    result = turned(x, positions, 100.0)
    for row, position in enumerate(positions.tolist()):
        for pair in range(3):
            number = complex(x[row, pair], x[row, pair + 3]) * cmath.exp(1j * position * 100.0 ** (-2 * pair / 6))
            assert complex(result[row, pair], result[row, pair + 3]) == pytest.approx(number, abs=1e-13)


def test_rotated_products_depend_on_distance_only():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 8, dtype=torch.float64, generator=generator)

    def product(i: int, j: int) -> float:
        return float((turned(query, torch.tensor([i]), 50.0) * turned(key, torch.tensor([j]), 50.0)).sum())

    assert product(9, 4) == pytest.approx(product(50, 45), abs=1e-12)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3


def test_rotation_keeps_the_dtype():
    x = torch.randn(1, 2, 3, 4, dtype=torch.bfloat16)
    table = rotary_table(3, *rotary(4, RotaryPosition(base=10.0)), CPU, torch.bfloat16)
    assert rotate(x, table).dtype == torch.bfloat16


def test_alibi_slopes():
    slopes = alibi_slopes(8, CPU, torch.float64).flatten().tolist()
    assert slopes == pytest.approx([2.0**-n for n in range(1, 9)])
    more = alibi_slopes(12, CPU, torch.float64).flatten().tolist()
    assert more == pytest.approx(slopes + [2.0 ** -(n + 0.5) for n in range(4)])
    assert alibi_slopes(1, CPU, torch.float64).flatten().tolist() == [2.0**-8]


def test_alibi_falls_with_distance_on_both_sides():
    bias = alibi_bias(torch.tensor([[4, 9]]), torch.tensor([[1, 4, 9]]), 2, torch.float64)
    assert bias.shape == (1, 2, 2, 3)
    for head, slope in enumerate((2.0**-4, 2.0**-8)):
        expected = [[-3 * slope, 0.0, -5 * slope], [-8 * slope, -5 * slope, 0.0]]
        torch.testing.assert_close(bias[0, head], torch.tensor(expected, dtype=torch.float64))


def bucket(offset: int, bidirectional: bool, num_buckets: int, max_distance: int) -> int:
    """The published rule for one offset key - query."""
    first = 0
    if bidirectional:
        num_buckets //= 2
        first = num_buckets if offset > 0 else 0
        distance = abs(offset)
    else:
        distance = max(-offset, 0)
    exact = num_buckets // 2
    if distance < exact:
        return first + distance
    ratio = math.log(distance / exact) / math.log(max_distance / exact)
    # The published code computes in single precision; a hair above keeps whole numbers whole.
    return first + min(exact + int(ratio * (num_buckets - exact) + 1e-6), num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 9), (4, 8), (64, 1000)])
def test_buckets_are_the_published_ones(bidirectional, num_buckets, max_distance):
    reach = 2 * max_distance
    got = relative_buckets(
        torch.tensor([[reach]]), torch.arange(2 * reach + 1)[None], num_buckets, max_distance, bidirectional
    )
    expected = [bucket(offset, bidirectional, num_buckets, max_distance) for offset in range(-reach, reach + 1)]
    assert got[0, 0].tolist() == expected
    assert got.max() < num_buckets


def test_tables_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        table = sinusoidal_table(5, 6, "interleaved", CPU, torch.float64)
    assert not table.is_inference()
    assert sinusoidal_table(5, 6, "interleaved", CPU, torch.float64) is table


def test_sinusoids_in_halves_hold_the_same_numbers():
    mixed = sinusoidal_table(30, 8, "interleaved", CPU, torch.float64)
    halves = sinusoidal_table(30, 8, "halves", CPU, torch.float64)
    torch.testing.assert_close(halves, torch.cat([mixed[:, 0::2], mixed[:, 1::2]], dim=1), rtol=0, atol=0)


def angles_of(position: RotaryPosition, width: int = 16) -> torch.Tensor:
    cosines, sines = rotary_table(2, *rotary(width, position), CPU, torch.float64)
    return torch.atan2(-sines[1, : width // 2], cosines[1, : width // 2])


def test_linear_scaling_divides_positions():
    plain, scaled = RotaryPosition(), RotaryPosition(scaling=LinearScaling(factor=4.0))
    torch.testing.assert_close(angles_of(scaled), angles_of(plain) / 4, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [Llama3Scaling, YarnScaling])
def test_fast_rotations_stay_and_slow_ones_are_slowed(kind):
    more = {"attention_factor": 1.5} if kind is YarnScaling else {}
    scaling = kind(factor=8.0, low_frequency=1.0, high_frequency=4.0, original_length=64, **more)
    ratio = angles_of(RotaryPosition(scaling=scaling)) / angles_of(RotaryPosition())
    turns = 64 * angles_of(RotaryPosition()) / (2 * math.pi)
    torch.testing.assert_close(ratio[0].item(), 1.0)
    torch.testing.assert_close(ratio[-1].item(), 1 / 8)
    assert (ratio.diff() <= 1e-12).all()
    assert ((ratio > 0.13) & (ratio < 0.99)).any()
    if kind is Llama3Scaling:
        torch.testing.assert_close(ratio[turns >= 4.0], torch.ones_like(ratio[turns >= 4.0]))
        torch.testing.assert_close(ratio[turns <= 1.0], torch.full_like(ratio[turns <= 1.0], 1 / 8))


def test_yarn_lengthens_queries_and_keys():
    scaling = YarnScaling(factor=2.0, original_length=64, attention_factor=1.25)
    cosines, sines = rotary_table(3, *rotary(8, RotaryPosition(scaling=scaling)), CPU, torch.float64)
    torch.testing.assert_close(cosines**2 + sines**2, torch.full_like(cosines, 1.25**2))


def test_tables_of_very_many_positions_grow_as_needed():
    assert table_length(5, 60) == 60
    assert table_length(5, 100_000) == table_length(8192, 100_000) == 8192
    assert table_length(8193, 100_000) == 16_384
    assert table_length(70_000, 100_000) == 100_000
