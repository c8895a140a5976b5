"""A model that remembers says what it would say anyway, and reads only what is new."""

import pytest
import torch

from txtgen.config.decoding import BeamConfig, ContrastiveConfig, GreedyConfig, SampleConfig
from txtgen.config.decoding_values import PromptLookup
from txtgen.config.model import AlibiPosition, DecoderConfig
from txtgen.decode import PromptBatch, Remembering, run_steps, search_steps
from txtgen.model import build_model, init_weights, step_model
from txtgen.native import UnavailableError, load_library

CONVERSATION = [[1, 5, 6], [1, 5, 6, 7, 8], [1, 5, 6, 7, 8, 9, 9], [1, 5, 9], [1, 5, 9], [2, 5, 9], [2], [1, 5, 6, 7]]


class Counted:
    """A model that counts the tokens that it reads."""

    def __init__(self, model) -> None:
        self.model, self.read, self.breaks_after = model, 0, None

    def __getattr__(self, name):
        return getattr(self.model, name)

    def _count(self, number: int) -> None:
        self.read += number
        if self.breaks_after is not None and self.read > self.breaks_after:
            raise KeyboardInterrupt

    def prefill(self, prompt, capacity):
        self._count(int(prompt.lengths.sum()))
        return self.model.prefill(prompt, capacity)

    def extend(self, tokens, state):
        found = self.model.extend(tokens, state)
        self._count(tokens.numel())
        return found

    def extend_hidden(self, tokens, state):
        self._count(tokens.numel())
        return self.model.extend_hidden(tokens, state)


def made(position=None, way: str = "torch"):
    config = DecoderConfig(
        d_model=16, num_heads=2, num_layers=2, d_ff=32, max_length=40, vocab_size=13, init_std=0.5,
        **({} if position is None else {"position": position}),
    )  # fmt: skip
    model = build_model(config).eval()
    init_weights(model, 2)
    if way == "torch":
        return model
    try:
        load_library()
    except UnavailableError as error:
        pytest.skip(str(error))
    return step_model(model, "require")


def said(model, tokens, decoding=None, new: int = 6):
    prompt = PromptBatch(torch.tensor([tokens]), torch.tensor([len(tokens)]))
    decoding = decoding or GreedyConfig()
    steps = search_steps(model, prompt, decoding, limits=[new], eos_ids=[3])
    return [(each.token_ids, pytest.approx(each.logprob, abs=1e-4)) for each in run_steps(steps)[0]]


@pytest.mark.parametrize("way", ["torch", "native"])
@pytest.mark.parametrize("position", [None, AlibiPosition()])
def test_it_says_the_same(way, position) -> None:
    model = made(position, way)
    counted = Counted(model)
    remembering = Remembering(counted, 40 if position is None else None)
    for tokens in CONVERSATION:
        assert said(remembering, tokens) == said(model, tokens)
    assert said(remembering, [1, 5, 6, 7], new=30) == said(model, [1, 5, 6, 7], new=30)


def test_only_what_is_new_is_read_but_where_the_room_is_doubled() -> None:
    counted = Counted(made(AlibiPosition()))
    remembering = Remembering(counted, None)
    tokens, anew = [1, 5, 6], 0
    for _ in range(16):
        before = counted.read
        ((found, _),) = said(remembering, tokens)
        read = counted.read - before - (len(found) - 1)
        assert read in (3, len(tokens)), "the last token of a result was not read, and two more have come"
        anew += read == len(tokens)
        tokens = [*tokens, *found, 7, 8]
    assert len(tokens) > 50
    assert anew <= 4


@pytest.mark.parametrize(
    "decoding",
    [
        GreedyConfig(speculation=PromptLookup()),
        BeamConfig(beam_size=3),
        SampleConfig(num_return=3, seed=1),
        ContrastiveConfig(),
        BeamConfig(beam_size=1),
    ],
    ids=lambda decoding: f"{decoding.strategy}",
)
def test_other_searches_in_between_change_nothing(decoding) -> None:
    model = made()
    remembering = Remembering(model, 40)
    for tokens in CONVERSATION:
        assert said(remembering, tokens, decoding) == said(model, tokens, decoding)
        assert said(remembering, [*tokens, 4]) == said(model, [*tokens, 4])
    both = PromptBatch(torch.tensor([[1, 5], [1, 6]]), torch.tensor([2, 2]))
    assert len(run_steps(search_steps(remembering, both, GreedyConfig(), limits=[3, 3]))) == 2
    assert said(remembering, [1, 5, 6, 7]) == said(model, [1, 5, 6, 7])


def test_what_breaks_off_leaves_nothing_wrong_behind() -> None:
    model = made()
    counted = Counted(model)
    remembering = Remembering(counted, 40)
    for allowed in range(12):
        counted.read, counted.breaks_after = 0, allowed
        for tokens in CONVERSATION[:2]:
            try:
                said(remembering, tokens)
            except KeyboardInterrupt:
                break
        counted.breaks_after = None
        assert said(remembering, CONVERSATION[2]) == said(model, CONVERSATION[2])
