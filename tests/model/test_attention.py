import math

import pytest
import torch
from tiny_models import POSITIONS, tiny_config
from torch import Tensor

from txtgen.model.attention import CrossAttention, SelfAttention, packed_mask
from txtgen.model.layers import Stack

EXACT = {"rtol": 0, "atol": 1e-12}
HEADS, WIDTH = 4, 4


def project(weight, bias, vector: Tensor, head: int) -> Tensor:
    """One head of a projection of one vector."""
    rows = slice(head * WIDTH, (head + 1) * WIDTH)
    return weight[rows] @ vector + bias[rows]


def attend_slowly(attention, x: Tensor, source: Tensor, score) -> Tensor:
    """Attention by loops over rows, heads and pairs; score(...) is None where a pair is hidden."""
    group = HEADS // (attention.k_proj.weight.shape[0] // WIDTH)
    result = torch.zeros(x.shape[0], x.shape[1], HEADS * WIDTH, dtype=x.dtype)
    for row in range(x.shape[0]):
        for head in range(HEADS):
            shared = head // group
            for i in range(x.shape[1]):
                query = project(attention.q_proj.weight, attention.q_proj.bias, x[row, i], head)
                scores, values = [], []
                for j in range(source.shape[1]):
                    key = project(attention.k_proj.weight, attention.k_proj.bias, source[row, j], shared)
                    value = project(attention.v_proj.weight, attention.v_proj.bias, source[row, j], shared)
                    points = score(row, head, query, key, i, j)
                    if points is not None:
                        scores.append(math.exp(points))
                        values.append(value)
                total = sum(scores)
                gathered = sum(points / total * value for points, value in zip(scores, values, strict=True))
                result[row, i, head * WIDTH : (head + 1) * WIDTH] = gathered
    return result @ attention.o_proj.weight.T + attention.o_proj.bias


def randomised(module):
    generator = torch.Generator().manual_seed(0)
    module = module.double().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0.0, 0.5, generator=generator)
    return module


def slow_bias(position: str, stack: Stack, head: int, i: int, j: int) -> float:
    """What the position adds to the score of a pair of positions."""
    match position:
        case "alibi":
            return -abs(i - j) * 2.0 ** (-2 * (head + 1))
        case "t5_relative":
            # Eight buckets up to distance 9: four in each direction, or eight into the past.
            distance = abs(j - i) if not stack.causal else max(i - j, 0)
            size = 8 if stack.causal else 4
            exact = size // 2
            far = min(
                size - 1,
                exact + int(math.log(max(distance, 1) / exact) / math.log(9 / exact) * (size - exact)),
            )
            first = size if j > i and not stack.causal else 0
            return float(stack.relative_bias.weight[first + (distance if distance < exact else far), head])
        case _:
            return 0.0


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
def test_self_attention_is_what_loops_compute(position, causal, heads):
    config = tiny_config("decoder", position, num_kv_heads=heads)
    attention = randomised(SelfAttention(config))
    stack = randomised(Stack(config, 1, 24, causal=causal, cross=False))
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]])
    angles = torch.tensor([50.0 ** (-2 * pair / WIDTH) for pair in range(WIDTH // 2)])

    def score(row: int, head: int, query: Tensor, key: Tensor, i: int, j: int) -> float | None:
        if causal and j > i:
            return None
        at, to = int(positions[row, i]), int(positions[row, j])
        if position == "rotary":
            turn = torch.polar(torch.ones(2, dtype=torch.float64), (at - to) * angles.double())
            both = torch.complex(*query.view(2, 2)) * turn * torch.complex(*key.view(2, 2)).conj()
            return float(both.real.sum()) / 2.0
        return float(query @ key) / 2.0 + slow_bias(position, stack, head, at, to)

    fast = attention(x, stack.pattern(positions, None, torch.float64, causal=causal))
    torch.testing.assert_close(
        fast, attend_slowly(attention, x, x, score), rtol=0, atol=1e-6 if position == "rotary" else 1e-12
    )


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_cross_attention_folds_rows_of_one_source(heads):
    attention = randomised(CrossAttention(tiny_config("decoder", num_kv_heads=heads)))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 2, 16, dtype=torch.float64, generator=generator)
    source = torch.randn(2, 3, 16, dtype=torch.float64, generator=generator)
    hidden = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -math.inf]], dtype=torch.float64)

    def score(row: int, head: int, query: Tensor, key: Tensor, i: int, j: int) -> float | None:
        return None if row >= 2 and j == 2 else float(query @ key) / 2.0

    fast = attention(x, source, hidden[:, None, None])
    slow = attend_slowly(attention, x, source.repeat_interleave(2, dim=0), score)
    torch.testing.assert_close(fast, slow, **EXACT)


def test_normalised_queries_and_keys():
    attention = randomised(SelfAttention(tiny_config("decoder", "none", qk_norm=True)))
    stack = Stack(tiny_config("decoder", "none"), 1, 24, causal=True, cross=False)
    x = torch.randn(1, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def normalised(vector: Tensor, norm) -> Tensor:
        return vector / math.sqrt(float(vector @ vector) / WIDTH + 1e-5) * norm.weight

    def score(row: int, head: int, query: Tensor, key: Tensor, i: int, j: int) -> float | None:
        product = normalised(query, attention.q_norm) @ normalised(key, attention.k_norm)
        return None if j > i else float(product) / 2.0

    fast = attention(x, stack.pattern(torch.arange(4)[None], None, torch.float64, causal=True))
    torch.testing.assert_close(fast, attend_slowly(attention, x, x, score), **EXACT)


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_packed_mask_pair_by_pair(separate, bidirectional):
    segments = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    flags = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]).bool()
    mask = packed_mask(segments, separate, flags if bidirectional else None).expand(2, 1, 8, 8)
    for row in range(2):
        for i in range(8):
            for j in range(8):
                same = bool(segments[row, i] == segments[row, j])
                allowed = j <= i or (bidirectional and same and bool(flags[row, i] & flags[row, j]))
                assert mask[row, 0, i, j] == (allowed and (same or not separate))
