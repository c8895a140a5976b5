import copy
from itertools import repeat

import torch

from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
from txtgen.train import TrainState, WeightAverage, build_optimizer, train


def test_the_average_is_that_of_the_weights_after_each_step(tiny_model, tiny_batch) -> None:
    state = TrainState(tiny_model, build_optimizer(tiny_model, AdamWConfig(learning_rate=1e-2)))
    state.average = WeightAverage(tiny_model, 0.3)
    expected = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    twin = copy.deepcopy(tiny_model)
    config = TrainConfig(steps=4, schedule=ConstantSchedule())
    for report in train(state, repeat(tiny_batch), config):
        decay = min(0.3, (1 + report.step) / (10 + report.step))
        for name, weight in tiny_model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * weight
    own = copy.deepcopy(tiny_model.state_dict())
    with state.averaged():
        for name, weight in tiny_model.state_dict().items():
            torch.testing.assert_close(weight, expected[name])
            assert not torch.equal(weight, own[name]), name
    for name, weight in tiny_model.state_dict().items():
        assert torch.equal(weight, own[name]), name
        torch.testing.assert_close(state.average.averaged[name], expected[name])
        assert torch.equal(state.average.weights[name], own[name])
    plain = TrainState(twin, build_optimizer(twin, AdamWConfig(learning_rate=1e-2)))
    list(train(plain, repeat(tiny_batch), config))
    assert all(torch.equal(twin.state_dict()[name], weight) for name, weight in own.items())


def test_frozen_weights_have_no_average_of_their_own(tiny_model) -> None:
    frozen = tiny_model.token_embedding.weight.requires_grad_(False)
    average = WeightAverage(tiny_model, 0.5)
    assert "token_embedding.weight" not in average.averaged
    before = frozen.clone()
    average.update(1)
    with average.applied():
        assert torch.equal(frozen, before)
