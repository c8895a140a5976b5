"""Greedy and beam search, and what sampling draws from, against transformers: tiny random models without a cache."""

import pytest
import torch
from huggingface_cases import Uncached, compare_all, distributions

VOCABULARY = 40


@pytest.fixture(scope="module", params=["gpt2", "bart"])
def model(request):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6
        )
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        init_std=0.6,
        pad_token_id=1,
        decoder_start_token_id=2,
    )
    return transformers.BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("block", range(4))
def test_equals_generate(model, block):
    compare_all(model, Uncached(model), range(block * 15, block * 15 + 15))


@pytest.mark.slow
def test_equals_generate_at_length(model):
    compare_all(model, Uncached(model), range(1000, 1400))


def test_sampling_draws_from_the_same_distribution(model):
    cut = 0
    for number in range(300):
        theirs, ours = distributions(model, number)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=lambda words, n=number: f"{n}: {words}")
        cut += bool((ours == 0).any())
    assert cut > 200
