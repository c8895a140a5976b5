import random

import pytest
import torch
import torch.nn.functional as F
from decode_fakes import TableModel, batch

from txtgen.config.decoding import ContrastiveConfig, GreedyConfig
from txtgen.decode import PromptBatch, search
from txtgen.errors import UsageError

VOCABULARY = 13


class Whole:
    """Reads everything from the beginning, at every step."""

    def __init__(self, model, source):
        self.model, self.source = model, source

    @torch.no_grad()
    def hidden(self, tokens):
        ids = torch.tensor([tokens])
        source = {} if self.source is None else {"source_ids": torch.tensor([self.source])}
        positions = torch.arange(len(tokens))[None]
        return self.model.hidden(ids, positions, torch.ones_like(ids), **source)[0]

    @torch.no_grad()
    def probabilities(self, tokens):
        return self.model.head(self.hidden(tokens)[-1]).softmax(-1)


def slow_contrastive(model, prompt, config, limit, eos_ids):
    """New tokens by the formula of the paper, one candidate at a time; and how near each choice was to another one."""
    new, nearest = [], []
    while len(new) < limit:
        probabilities = model.probabilities(prompt + new)
        values = {}
        for token in probabilities.topk(min(config.top_k, len(probabilities))).indices.tolist():
            *before, candidate = model.hidden([*prompt, *new, token])
            alike = max(float(F.cosine_similarity(candidate, one, dim=0)) for one in before)
            values[token] = (1 - config.penalty_alpha) * float(probabilities[token]) - config.penalty_alpha * alike
        order = sorted(values, key=lambda token: -values[token])
        nearest.append(values[order[0]] - values[order[1]] if len(order) > 1 else 1.0)
        new.append(order[0])
        if new[-1] in eos_ids:
            break
    return new, min(nearest)


def cases(model, count):
    """Prompts of unequal length with their sources, limits, end tokens and settings."""
    choice = random.Random(0)
    encoder = model.config.kind == "encoder_decoder"
    for _ in range(count):
        rows = choice.randint(1, 4)
        prompts = [choice.choices(range(VOCABULARY), k=choice.randint(1, 6)) for _ in range(rows)]
        sources = [choice.choices(range(VOCABULARY), k=choice.randint(1, 6)) if encoder else None for _ in prompts]
        config = ContrastiveConfig(top_k=choice.randint(1, 20), penalty_alpha=choice.choice([0.1, 0.6, 0.9]))
        yield prompts, sources, [choice.randint(1, 8) for _ in prompts], choice.choice([(), (1,), (1, 2, 3)]), config


def prompt_batch(prompts, sources):
    together = batch(prompts)
    if sources[0] is None:
        return together
    read = batch(sources)
    mask = torch.arange(read.input_ids.shape[1]) < read.lengths[:, None]
    return PromptBatch(together.input_ids, together.lengths, read.input_ids, mask)


def test_equals_the_slow_search(tiny_model):
    tiny_model.eval()
    compared = 0
    for prompts, sources, limits, eos_ids, config in cases(tiny_model, 12):
        results = search(tiny_model, prompt_batch(prompts, sources), config, limits=limits, eos_ids=eos_ids)
        for prompt, source, limit, (found,) in zip(prompts, sources, limits, results, strict=True):
            expected, gap = slow_contrastive(Whole(tiny_model, source), prompt, config, limit, eos_ids)
            if gap > 1e-4:
                assert list(found.token_ids) == expected
                compared += len(expected)
            assert found.finish_reason == ("eos" if found.token_ids[-1] in eos_ids else "length")
    assert compared > 50


@pytest.mark.parametrize("config", [ContrastiveConfig(penalty_alpha=0.0), ContrastiveConfig(top_k=1)])
def test_without_a_choice_or_a_penalty_it_is_greedy_search(tiny_model, config):
    tiny_model.eval()
    for prompts, sources, limits, eos_ids, _ in cases(tiny_model, 6):
        rows = prompt_batch(prompts, sources)
        found = search(tiny_model, rows, config, limits=limits, eos_ids=eos_ids)
        greedy = search(tiny_model, rows, GreedyConfig(), limits=limits, eos_ids=eos_ids)
        assert [h.token_ids for (h,) in found] == [h.token_ids for (h,) in greedy]
        assert [h.logprob for (h,) in found] == pytest.approx([h.logprob for (h,) in greedy], abs=1e-4)


def test_forbidden_tokens_are_not_chosen(tiny_model):
    tiny_model.eval()
    for prompts, sources, limits, _, _ in cases(tiny_model, 6):
        config = ContrastiveConfig(top_k=VOCABULARY, penalty_alpha=0.9, suppress_tokens=tuple(range(2, VOCABULARY)))
        for (found,) in search(tiny_model, prompt_batch(prompts, sources), config, limits=limits):
            assert {*found.token_ids} <= {0, 1}


def test_refuses_a_model_that_tells_no_hidden_states():
    with pytest.raises(UsageError, match="hidden states"):
        search(TableModel(9), batch([[1]]), ContrastiveConfig(), limits=[3])
