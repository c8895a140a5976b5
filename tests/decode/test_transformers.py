"""Greedy and beam search against Hugging Face `generate`, on tiny random models without a cache."""

import random
import warnings

import pytest
import torch
from decode_fakes import TableState, batch

from txtgen.config.decoding import BeamConfig, GreedyConfig
from txtgen.decode import search

VOCABULARY = 40


class Wrapped:
    """A GPT-2 as a StepModel: every step reads whole rows, which are equally long here."""

    def __init__(self, model):
        self.model = model

    def logits(self, rows):
        return self.model(torch.tensor(rows)).logits[:, -1]

    def prefill(self, prompt, capacity):
        pairs = zip(prompt.input_ids.tolist(), prompt.lengths.tolist(), strict=True)
        state = TableState([ids[:length] for ids, length in pairs], capacity)
        return self.logits(state.rows), state

    def extend(self, tokens, state):
        state.rows = [row + new for row, new in zip(state.rows, tokens.tolist(), strict=True)]
        return self.logits(state.rows)[:, None]


@pytest.fixture(scope="module")
def models():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6
    )
    config.bos_token_id = config.eos_token_id = None
    made = []
    for seed in range(4):
        torch.manual_seed(seed)
        made.append(transformers.GPT2LMHeadModel(config).eval())
    return made


def compare(models, number: int) -> None:
    choice = random.Random(number)
    model = choice.choice(models)
    prompt = [choice.randrange(VOCABULARY) for _ in range(choice.randint(1, 5))]
    limit, beams = choice.randint(1, 10), choice.choice([1, 2, 3, 5])
    eos_ids = choice.choice([[], [3], [3], [3, 4]])
    common = {
        "repetition_penalty": choice.choice([1.0, 1.0, 1.3]),
        "no_repeat_ngram_size": choice.choice([0, 0, 2]),
        "min_new_tokens": min(limit, choice.choice([0, 0, 3])),
    }
    early_stopping, length_penalty = (
        choice.choice([True, False, "never"]),
        choice.choice([-0.5, 0.0, 0.6, 1.0, 2.0]),
    )
    num_return = choice.randint(1, beams)
    suppress = choice.choice([[], [1, 7]])
    settings = {"num_beams": beams, "num_return_sequences": num_return} | common
    if beams > 1:
        settings |= {"early_stopping": early_stopping, "length_penalty": length_penalty}
        config = BeamConfig(
            beam_size=beams,
            num_return=num_return,
            early_stopping=str(early_stopping).lower(),
            length_penalty=length_penalty,
            **common,
        )
    else:
        config = GreedyConfig(**common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=eos_ids or None,
            pad_token_id=VOCABULARY - 1,
            suppress_tokens=suppress or None,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
    ours = search(Wrapped(model), batch([prompt]), config, limits=[limit], eos_ids=eos_ids, suppress=suppress)[0]
    if beams == 1:
        expected = [(None, theirs.sequences[0])]
    else:
        # Slots that were never finished hold a placeholder score.
        scored = zip(theirs.sequences_scores.tolist(), theirs.sequences, strict=True)
        expected = [(score, ids) for score, ids in scored if score > -1e8]
    assert len(ours) == len(expected), number
    for hypothesis, (score, ids) in zip(ours, expected, strict=True):
        new = ids[len(prompt) :].tolist()
        ends = [place + 1 for place, token in enumerate(new) if token in eos_ids]
        # Behind the end token there is only fill.
        assert list(hypothesis.token_ids) == new[: ends[0] if ends else limit], number
        if score is not None:
            assert hypothesis.score == pytest.approx(score, abs=1e-4), number


@pytest.mark.parametrize("block", range(6))
def test_equals_generate(models, block):
    for number in range(block * 10, block * 10 + 10):
        compare(models, number)


@pytest.mark.slow
def test_equals_generate_at_length(models):
    for number in range(1000, 1400):
        compare(models, number)
