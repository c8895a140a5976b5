"""Whole models against transformers, where it is installed: random weights, the same logits."""

import pytest
import torch
from tiny_models import random_ids, tiny_model

transformers = pytest.importorskip("transformers")

IDS = random_ids(2, 9)


def logits(model) -> torch.Tensor:
    positions = torch.arange(9).expand(2, 9)
    with torch.no_grad():
        return model(IDS, positions, torch.ones(2, 9))


@torch.no_grad()
def test_gpt2():
    model = tiny_model("decoder", "learned", activation="gelu_tanh")
    config = transformers.GPT2Config(vocab_size=13, n_positions=24, n_embd=16, n_layer=2, n_head=4, n_inner=24)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    body = theirs.transformer
    body.wte.weight.copy_(model.token_embedding.weight)
    body.wpe.weight.copy_(model.position_embedding.weight)
    body.ln_f.load_state_dict(model.decoder.final_norm.state_dict())
    for block, layer in zip(body.h, model.decoder.layers, strict=True):
        attention = layer.self_attention
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        block.attn.c_attn.weight.copy_(torch.cat([part.weight for part in parts]).T)
        block.attn.c_attn.bias.copy_(torch.cat([part.bias for part in parts]))
        pairs = [
            (block.attn.c_proj, attention.o_proj),
            (block.mlp.c_fc, layer.feed_forward.up_proj),
            (block.mlp.c_proj, layer.feed_forward.down_proj),
        ]
        for conv, linear in pairs:
            conv.weight.copy_(linear.weight.T)
            conv.bias.copy_(linear.bias)
        block.ln_1.load_state_dict(layer.self_attention_norm.state_dict())
        block.ln_2.load_state_dict(layer.feed_forward_norm.state_dict())
    torch.testing.assert_close(logits(model), theirs(IDS).logits, rtol=0, atol=1e-11)


@torch.no_grad()
def test_llama():
    model = tiny_model(
        "decoder",
        "rotary",
        num_kv_heads=2,
        norm="rms_norm",
        activation="silu",
        gated=True,
        attention_bias=False,
        ffn_bias=False,
        tie_embeddings=False,
    )
    config = transformers.LlamaConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_theta=50.0,
        max_position_embeddings=24,
        bos_token_id=1,
        eos_token_id=2,
    )
    theirs = transformers.LlamaForCausalLM(config).double().eval()
    names = {
        "token_embedding": "model.embed_tokens",
        "decoder.final_norm": "model.norm",
        "decoder.layers": "model.layers",
        "self_attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
        "self_attention": "self_attn",
        "feed_forward": "mlp",
    }
    weights = {}
    for name, weight in model.state_dict().items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        weights[name] = weight
    theirs.load_state_dict(weights)
    # Their rotary tables are in single precision.
    torch.testing.assert_close(logits(model), theirs(IDS).logits, rtol=0, atol=1e-4)


def test_t5_buckets():
    from transformers.models.t5.modeling_t5 import T5Attention

    from txtgen.model.position import relative_buckets

    offsets = torch.arange(-300, 301)
    for bidirectional in (True, False):
        for size, far in ((32, 128), (64, 200), (8, 20)):
            theirs = T5Attention._relative_position_bucket(offsets, bidirectional, size, far)
            ours = relative_buckets(torch.tensor([[300]]), offsets[None] + 300, size, far, bidirectional)
            assert torch.equal(ours[0, 0], theirs)
