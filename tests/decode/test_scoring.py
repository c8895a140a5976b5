"""How likely tokens are: as a model says of whole rows, and as every strategy says of what it finds."""

import pytest
import torch
from decode_fakes import TableModel, batch, random_case
from hypothesis import given
from hypothesis import strategies as st

from txtgen.config.decoding import BeamConfig, GreedyConfig, SampleConfig
from txtgen.decode import scoring, search, token_logprobs
from txtgen.errors import DivergedError

TOKENS = st.integers(0, 8)
ROWS = st.lists(
    st.tuples(st.lists(TOKENS, min_size=1, max_size=5), st.lists(TOKENS, min_size=1, max_size=12)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("at_once", [1, 40, 2**24])
@given(rows=ROWS, seed=st.integers(0, 99))
def test_equals_the_model_token_by_token(at_once, rows, seed):
    """Rows of any lengths; however many logits are held at once. The fake model refuses tokens beyond its capacity."""
    model = TableModel(9, seed)
    prompts, targets = zip(*rows, strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "LOGITS_AT_ONCE", at_once)
        found = token_logprobs(model, batch(list(prompts)), targets)
    for prompt, target, logprobs in zip(prompts, targets, found, strict=True):
        expected = [model.log_probs([*prompt, *target[:place]])[token] for place, token in enumerate(target)]
        assert logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("config", [GreedyConfig(), SampleConfig(num_return=3, top_k=5), BeamConfig(num_return=3)])
def test_equals_the_logprob_of_hypotheses(config):
    for number in range(20):
        model, prompts, rules, limits, _ = random_case(number)
        options = {"limits": limits, "eos_ids": rules.eos_ids, "suppress": rules.suppress}
        results = search(model, batch(prompts), config.model_copy(update={"repetition_penalty": 1.3}), **options)
        asked = [prompt for prompt, found in zip(prompts, results, strict=True) for _ in found]
        hypotheses = [hypothesis for found in results for hypothesis in found]
        scores = token_logprobs(model, batch(asked), [hypothesis.token_ids for hypothesis in hypotheses])
        sums = [sum(logprobs) for logprobs in scores]
        assert sums == pytest.approx([hypothesis.logprob for hypothesis in hypotheses], abs=1e-4)


def test_rows_leave_the_batch_when_they_are_read():
    model = TableModel(9)
    token_logprobs(model, batch([[1], [2], [3, 4]]), [[1], [2, 3, 4], [5, 6, 7, 8, 1, 2]])
    assert model.rows_fed == [3, 2, 1]


def test_refuses_scores_that_are_not_finite():
    model = TableModel(9)
    model.last[3] = torch.nan
    with pytest.raises(DivergedError):
        token_logprobs(model, batch([[1]]), [[3, 4]])
