"""Gradients are summed over the ranks while backward still goes on, and always in the same order."""

from typing import Any

import pytest
import torch
from test_two_ranks import go_on, learn
from torch import Tensor, nn

from txtgen.distributed import GradientSums, World, gradients


def in_small_buckets(world: World, function: Any, *arguments: Any) -> Any:
    """What a function makes on ranks that send gradients in many parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "BUCKET_BYTES", 2000)
        return function(world, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
@pytest.mark.parametrize("name", ["untied", "pairs"])
def test_three_ranks_go_on_bit_for_bit(three_ranks, name, sharding) -> None:
    """Sums of three depend on their order, which must not depend on how many steps this process has done."""
    straight = three_ranks.run(in_small_buckets, learn, name, sharding, "adamw", 5)[0]
    begun = three_ranks.run(in_small_buckets, learn, name, sharding, "adamw", 3)[0]
    state = (begun["weights"], begun["optimizer"])
    first = three_ranks.run(in_small_buckets, go_on, name, sharding, "adamw", *state)[0]
    assert first["losses"] == straight["losses"][3:]
    assert first["norms"] == straight["norms"][3:]
    for key, weight in first["weights"].items():
        assert torch.equal(weight, straight["weights"][key]), key


def sum_some(world: World) -> Any:
    """Two steps of a model of which one rank alone uses a part: how many sums were begun when backward came to the
    first weights, the gradients, and the weights."""
    torch.manual_seed(world.rank)  # what they begin with is that of rank 0
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in ("unused", "first", "frozen", "rare", "last")})
    model["frozen"].weight.requires_grad_(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "BUCKET_BYTES", 64)  # one weight each
        sums = GradientSums(model, world)
    begun: list[int] = []

    def loss(scale: float) -> Tensor:
        row = model["frozen"](model["first"](torch.full((1, 4), scale)))
        row.register_hook(lambda _: begun.append(len(sums._sums)))
        return model["last"](model["rare"](row) if world.rank == 1 else row).sum()

    found = []
    for _ in range(2):
        sums.clear()
        loss(1.0 + world.rank).backward()
        with sums.over_ranks():
            loss(3.0).backward()
        found.append({name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad})
    sums.clear()
    with sums.over_ranks():
        pass  # on this rank alone it broke off: the others are not kept waiting
    return begun, found, {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_gradients_are_sums_and_are_sent_while_others_are_made(ranks) -> None:
    (begun, found, weights), (other_begun, others, _) = ranks.run(sum_some)
    expected = dict.fromkeys(found[0], torch.zeros(4, 4))
    for rank in (0, 1):
        model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in ("first", "frozen", "rare", "last")})
        model.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith("unused")})
        for scale in (1.0 + rank, 3.0):
            row = model["frozen"](model["first"](torch.full((1, 4), scale)))
            model["last"](model["rare"](row) if rank == 1 else row).sum().backward()
        for name, weight in model.named_parameters():
            if name in expected and weight.grad is not None:
                expected[name] = expected[name] + weight.grad
    for step in (*found, *others):
        torch.testing.assert_close(step, expected)
    # None in a pass that adds up. In the last one that of "last", but "rare" waits for the end where it is not used.
    assert (begun, other_begun) == ([0, 1, 0, 1], [0, 2, 0, 2])


@pytest.mark.parametrize(("most", "groups"), [(1, [1, 1, 1, 1]), (8, [2, 1, 1]), (24, [3, 1]), (999, [3, 1])])
def test_buckets_hold_so_many_bytes_of_one_dtype(most, groups) -> None:
    dtypes = (torch.float32, torch.float32, torch.float32, torch.bfloat16)
    parameters = [
        nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in zip((1, 1, 4, 1), dtypes, strict=True)
    ]
    found = list(gradients.cut(parameters, most))
    assert [len(group) for group in found] == groups
    assert [id(parameter) for group in found for parameter in group] == [id(parameter) for parameter in parameters]
