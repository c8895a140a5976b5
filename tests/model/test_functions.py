"""Gradients written by hand beside those that autograd finds, and dropout beside what it is to draw."""

import pytest
import torch
import torch.nn.functional as F

from txtgen.model.functions import attention, cast_once, dropout, relu_squared, rms_norm

SHAPES = [(5, 8), (2, 3, 4, 6), (1, 3)]


def both(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What a function gives, and the gradients of its inputs, none of whose layouts is plain."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    result = function(leaves[0].mT.contiguous().mT, *leaves[1:])
    weights = random(*result.shape[::-1], dtype=result.dtype, seed=1)
    return [result, *torch.autograd.grad((result * weights.permute(*reversed(range(weights.dim())))).sum(), leaves)]


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_relu_squared(shape, dtype) -> None:
    x = random(*shape, dtype=dtype)
    for ours, theirs in zip(both(relu_squared, x), both(lambda x: F.relu(x).square(), x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1.0, 1e3, 1e-3])
def test_rms_norm(shape, dtype, size) -> None:
    x, weight = size * random(*shape, dtype=dtype), random(shape[-1], dtype=dtype)
    ours = both(lambda x, w: rms_norm(x, w, 1e-5), x, weight)
    theirs = both(lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), x.double(), weight.double())
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * max(1e-9, other.abs().max().item()))


def test_rms_norm_of_nothing_is_nothing() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x, torch.ones(4), 1e-6).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 4), 1e3))


def test_rms_norm_without_gradients_is_the_same() -> None:
    x, weight = random(4, 8, dtype=torch.float32), random(8, dtype=torch.float32)
    tracked = rms_norm(x.clone().requires_grad_(), weight, 1e-5)
    assert tracked.requires_grad
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), tracked.detach())
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, 1e-5), tracked)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.83])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(share, dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(401, 997, dtype=dtype)
    found = dropout(x, share, training=True)
    assert found.dtype == dtype
    left_out = (found == 0).double()
    error = (share * (1 - share) / x.numel()) ** 0.5
    assert abs(left_out.mean().item() - share) < 4 * error
    kept = found[found != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)), atol=1e-4, rtol=1e-2)
    for near in range(1, 5):  # four elements come from one number that is drawn
        both_left_out = (left_out.flatten()[near:] * left_out.flatten()[:-near]).mean().item()
        assert abs(both_left_out - share**2) < 4 * 2 * share * error


def test_dropout_as_its_seed_says_and_where_it_leaves_out_no_gradient() -> None:
    x = random(3, 5, dtype=torch.float64).requires_grad_()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(dropout(x, 0.4, training=True))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    (gradient,) = torch.autograd.grad(drawn[0].sum(), x)
    torch.testing.assert_close(gradient * x, drawn[0])


@pytest.mark.parametrize(("share", "training"), [(0.4, False), (0.0, True)])
def test_no_dropout(share, training) -> None:
    x = random(3, 5, dtype=torch.float32)
    assert dropout(x, share, training) is x


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("cached", [1, 100, 300, 10**6])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("seen", ["all", "before", "of each row", "by all rows", "of each query"])
def test_gradient_of_attention_in_bfloat16(size, cached, heads, shared, seen, monkeypatch) -> None:
    monkeypatch.setattr("txtgen.model.functions.CACHED_SCORES", cached)  # blocks of heads, of rows, of all
    rows, length, others, width = 3, 6, 6 if seen == "before" else 9, 8
    shapes = [(rows, length, heads, width), (rows, others, shared, width), (rows, others, shared, width)]
    exact = [random(*shape, dtype=torch.bfloat16, seed=seed).double() for seed, shape in enumerate(shapes)]
    exact[0] *= size  # then scores differ by so much that bfloat16 itself would not tell them apart
    blocked = {"of each row": (rows, 1, 1, others), "by all rows": (1, 1, length, others)}
    blocked["of each query"] = (rows, heads, length, others)
    mask = None
    if seen in blocked:
        mask = torch.zeros(blocked[seen]).masked_fill_(random(*blocked[seen], dtype=torch.float64) > 0.5, -torch.inf)
        mask[..., 0] = 0.0  # no query sees nothing at all

    def gathered(dtype, function):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in exact]
        result = function(*(leaf.transpose(1, 2) for leaf in leaves), None if mask is None else mask.to(dtype))
        direction = random(*result.shape, dtype=torch.bfloat16, seed=9).to(dtype)
        return [result, *torch.autograd.grad(result, leaves, direction)]

    causal, scale = seen == "before", 0.5
    ours = gathered(torch.bfloat16, lambda q, k, v, mask: attention(q, k, v, mask, causal, scale, 0.0, heads // shared))
    theirs = gathered(
        torch.float64,
        lambda q, k, v, mask: F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=True
        ),
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        assert one.shape == other.shape
        assert (one.double() - other).norm() < 0.01 * other.norm()


def test_scores_of_positions_that_are_learnt_get_their_gradient() -> None:
    q, k, v = (random(2, 3, 5, 4, dtype=torch.bfloat16, seed=seed).requires_grad_() for seed in range(3))
    bias = random(1, 3, 5, 5, dtype=torch.bfloat16, seed=3).requires_grad_()
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k, v, bias)]
    found = torch.autograd.grad(attention(q, k, v, bias, causal=False).sum(), bias)[0]
    wanted = torch.autograd.grad(F.scaled_dot_product_attention(*exact).sum(), exact[3])[0]
    assert (found.double() - wanted).norm() < 0.02 * wanted.norm()


def test_attention_without_gradients_is_the_same() -> None:
    q, k, v = (random(2, 3, 5, 4, dtype=torch.bfloat16, seed=seed) for seed in range(3))
    tracked = attention(q.clone().requires_grad_(), k, v, None, causal=True)
    assert tracked.requires_grad
    assert torch.equal(attention(q, k, v, None, causal=True), tracked)


def test_cast_once_as_autocast_would() -> None:
    x = random(2, 3, dtype=torch.float32)
    assert cast_once(x) is x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cast_once(x), x.bfloat16())
        assert cast_once(x.double()).dtype == torch.float64  # which autocast leaves as it is
        with torch.autocast("cpu", enabled=False):
            assert cast_once(x) is x
