import math

import pytest
import torch
from tiny_models import random_ids, source_for, tiny_config, tiny_model
from torch import Tensor, nn

from txtgen.model.layers import FeedForward, Layer, make_activation, make_norm

EXACT = {"rtol": 0, "atol": 1e-12}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def copy_attention(ours, theirs: nn.MultiheadAttention) -> None:
    """Put our weights into torch's own attention."""
    theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
    theirs.out_proj.load_state_dict(ours.o_proj.state_dict())


@torch.no_grad()
def reference_stack(stack, norm_first: bool, activation: str, cross: bool) -> nn.ModuleList:
    """torch's own layers with our weights. In training mode, because evaluation takes another path."""
    kind = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    layers = nn.ModuleList()
    for ours in stack.layers:
        layer = kind(16, 4, 24, 0.0, activation, batch_first=True, norm_first=norm_first, dtype=torch.float64)
        copy_attention(ours.self_attention, layer.self_attn)
        layer.linear1.load_state_dict(ours.feed_forward.up_proj.state_dict())
        layer.linear2.load_state_dict(ours.feed_forward.down_proj.state_dict())
        norms = [ours.self_attention_norm, ours.feed_forward_norm]
        if cross:
            copy_attention(ours.cross_attention, layer.multihead_attn)
            norms.insert(1, ours.cross_attention_norm)
        for name, norm in zip(("norm1", "norm2", "norm3"), norms, strict=False):
            getattr(layer, name).load_state_dict(norm.state_dict())
        layers.append(layer.train())
    return layers


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_the_stacks_are_torchs_own_with_our_weights(norm_position, activation):
    model = tiny_model("encoder_decoder", "none", norm_position=norm_position, activation=activation)
    ids, sources = random_ids(3, 6), source_for(model, 3)
    hidden = ~sources["source_mask"]
    source = model.token_embedding(sources["source_ids"])
    for layer in reference_stack(model.encoder, norm_position == "pre", activation, cross=False):
        source = layer(source, src_key_padding_mask=hidden)
    target = model.token_embedding(ids)
    if norm_position == "pre":
        source = model.encoder.final_norm(source)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for layer in reference_stack(model.decoder, norm_position == "pre", activation, cross=True):
        target = layer(target, source, tgt_mask=future, memory_key_padding_mask=hidden)
    if norm_position == "pre":
        target = model.decoder.final_norm(target)
    positions, segments = torch.arange(6)[None], torch.ones(3, 6)
    torch.testing.assert_close(model.hidden(ids, positions, segments, **sources), target, **EXACT)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_where_the_norms_are(norm_position):
    layer = Layer(tiny_config(norm_position=norm_position, position="none"), cross=False).double()
    x = normal(2, 3, 16)
    attend, feed = lambda y: 2.0 * y, lambda y: y.sin()
    layer.self_attention.forward = lambda y, pattern, cache: attend(y)
    layer.feed_forward.forward = feed
    first, second = layer.self_attention_norm, layer.feed_forward_norm
    if norm_position == "pre":
        middle = x + attend(first(x))
        expected = middle + feed(second(middle))
    else:
        middle = first(x + attend(x))
        expected = second(middle + feed(middle))
    torch.testing.assert_close(layer(x, None), expected, **EXACT)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("hidden_layers", [1, 2, 3])
def test_feed_forward(gated, hidden_layers):
    config = tiny_config(gated=gated, num_ffn_hidden_layers=hidden_layers, activation="silu")
    block = FeedForward(config).double()
    x = normal(2, 16)

    def silu(y: Tensor) -> Tensor:
        return y / (1.0 + (-y).exp())

    def linear(y: Tensor, proj) -> Tensor:
        return y @ proj.weight.T + proj.bias

    y = linear(x, block.up_proj)
    y = silu(linear(x, block.gate_proj)) * y if gated else silu(y)
    assert len(block.hidden_projs) == hidden_layers - 1
    for proj in block.hidden_projs:
        y = silu(linear(y, proj))
    torch.testing.assert_close(block(x), linear(y, block.down_proj), **EXACT)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("relu", lambda x: max(x, 0.0)),
        ("relu_squared", lambda x: max(x, 0.0) ** 2),
        ("gelu", lambda x: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
        ),
        ("silu", lambda x: x / (1.0 + math.exp(-x))),
    ],
)
def test_activations(name, formula):
    for x in (-3.0, -0.5, 0.0, 0.7, 4.0):
        got = make_activation(name)(torch.tensor(x, dtype=torch.float64)).item()
        assert got == pytest.approx(formula(x), abs=1e-12)


def test_norms():
    x = normal(3, 16)
    centred = x - x.mean(-1, keepdim=True)
    layer_norm = make_norm(tiny_config(norm_eps=1e-3)).double()
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(layer_norm(x), expected, **EXACT)
    rms_norm = make_norm(tiny_config(norm="rms_norm", norm_eps=1e-3)).double()
    torch.testing.assert_close(rms_norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt(), **EXACT)
    assert make_norm(tiny_config(norm_bias=False)).bias is None


def test_the_embedding_norm_comes_first():
    model = tiny_model(position="none", embedding_norm=True)
    ids = random_ids(1, 4)
    inner = tiny_model(position="none")
    inner.load_state_dict({k: v for k, v in model.state_dict().items() if "embedding_norm" not in k})
    x = model.decoder.embedding_norm(model.token_embedding(ids))
    pattern = inner.decoder.pattern(torch.arange(4)[None], None, torch.float64, causal=True)
    expected = model.head(inner.decoder(x, pattern))
    torch.testing.assert_close(model(ids, torch.arange(4)[None], torch.ones(1, 4)), expected, **EXACT)
