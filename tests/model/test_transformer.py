import pytest
import torch
import torch.nn.functional as F
from tiny_models import (
    ARCHITECTURES,
    POSITIONS,
    VOCAB,
    logits_of,
    plain,
    random_ids,
    source_for,
    tiny_config,
    tiny_model,
)
from torch import Tensor

from txtgen.decode.types import PromptBatch
from txtgen.errors import ConfigError, UsageError
from txtgen.model import build_model, count_parameters, init_weights

EXACT = {"rtol": 0, "atol": 1e-12}
both = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_position = pytest.mark.parametrize("position", POSITIONS)


def packed(ids: Tensor, borders: list[int]) -> dict[str, Tensor]:
    """Rows cut into documents at the borders; what follows the last border is padding."""
    positions, segments = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.int32)
    for number, (begin, end) in enumerate(zip([0, *borders], borders, strict=False), start=1):
        positions[:, begin:end] = torch.arange(end - begin)
        segments[:, begin:end] = number
    return {"input_ids": ids, "positions": positions, "segment_ids": segments}


@both
@every_position
def test_the_future_changes_nothing(architecture, position):
    model = tiny_model(architecture, position)
    ids = random_ids(2, 8)
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCAB
    sources = source_for(model, 2)
    before, after = logits_of(model, ids, **sources), logits_of(model, changed, **sources)
    torch.testing.assert_close(before[:, :5], after[:, :5], **EXACT)
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-3


@both
@every_position
def test_separate_documents_are_as_if_apart(architecture, position):
    model = tiny_model(architecture, position)
    ids, borders = random_ids(2, 12), [5, 6, 10]
    sources = source_for(model, 2)
    together = model(**packed(ids, borders), separate=True, **sources)
    assert together.isfinite().all()
    for begin, end in zip([0, *borders], borders, strict=False):
        apart = logits_of(model, ids[:, begin:end], **sources)
        torch.testing.assert_close(together[:, begin:end], apart, **EXACT)


@every_position
def test_documents_that_are_not_separate_see_what_came_before(position):
    model = tiny_model("decoder", position)
    ids = random_ids(1, 8)
    changed = ids.clone()
    changed[:, 1] = (changed[:, 1] + 1) % VOCAB
    before, after = (model(**packed(x, [4, 8])) for x in (ids, changed))
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("prefix", [0, 3])
@both
@every_position
def test_padding_changes_nothing(architecture, position, separate, prefix):
    model = tiny_model(architecture, position)
    ids, sources = random_ids(2, 10), source_for(model, 2)
    flags = torch.arange(10) < prefix
    flags = flags.expand(2, 10) if prefix else None
    padded = model(**packed(ids, [7]), separate=separate, bidirectional=flags, **sources)
    short = None if flags is None else flags[:, :7]
    alone = model(**packed(ids[:, :7], [7]), separate=separate, bidirectional=short, **sources)
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, :7], alone, **EXACT)


@every_position
def test_padding_of_the_source_changes_nothing(position):
    model = tiny_model("encoder_decoder", position)
    ids, sources = random_ids(3, 6), source_for(model, 3)
    padded = logits_of(model, ids, **sources)
    for row in range(3):
        source = sources["source_ids"][row][sources["source_mask"][row]][None]
        torch.testing.assert_close(
            padded[row : row + 1], logits_of(model, ids[row : row + 1], source_ids=source), **EXACT
        )


@both
@every_position
def test_rows_of_nothing_but_padding_are_harmless(architecture, position):
    model = tiny_model(architecture, position).train()
    inputs = packed(random_ids(2, 6), [])
    flags = torch.zeros(2, 6, dtype=torch.bool)
    sources = source_for(model, 2)
    if sources:
        sources["source_mask"][1] = False
        assert (model.encode(**sources)[1].amax(-1) == 0.0).all()
    for separate, bidirectional in ((False, None), (True, None), (True, flags)):
        logits = model(**inputs, separate=separate, bidirectional=bidirectional, **sources)
        assert logits.isfinite().all()
        logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@every_position
def test_a_bidirectional_prefix_sees_itself_whole(position):
    model = tiny_model("decoder", position)
    ids = random_ids(1, 10)
    flags = torch.zeros(1, 10, dtype=torch.bool)
    flags[:, :3] = flags[:, 5:7] = True
    inputs = packed(ids, [5, 10])

    def run(place: int) -> Tensor:
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % VOCAB
        return model(**{**inputs, "input_ids": changed}, bidirectional=flags)[0]

    base = model(**inputs, bidirectional=flags)[0]
    moved = {place: ((run(place) - base).abs().amax(-1) > 1e-9).tolist() for place in (2, 4, 6)}
    assert moved[2] == [True] * 10
    assert moved[4] == [False] * 4 + [True] * 6
    assert moved[6] == [False] * 5 + [True] * 5


@both
@every_position
def test_gradients_reach_every_parameter(architecture, position):
    options = {"qk_norm": True, "embedding_norm": True, "gated": True, "num_ffn_hidden_layers": 3}
    unshared = {"share_embeddings": False, "source_vocab_size": VOCAB} if architecture == "encoder_decoder" else {}
    model = tiny_model(architecture, position, tie_embeddings=False, activation="silu", **options, **unshared).train()
    logits = model(**plain(random_ids(2, 6)), **source_for(model, 2))
    F.cross_entropy(logits.flatten(0, 1), random_ids(12, seed=3)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@both
def test_a_sliding_window_hides_what_lies_further_back(architecture):
    model = tiny_model(architecture, "rotary", sliding_window=3)
    ids, sources = random_ids(1, 9), source_for(model, 1)
    changed = ids.clone()
    changed[:, 1] = (changed[:, 1] + 1) % VOCAB
    moved = (logits_of(model, ids, **sources) - logits_of(model, changed, **sources)).abs().amax(-1)[0] > 1e-9
    # Two layers pass on what each sees of the last three positions.
    assert moved.tolist() == [False] + [True] * 5 + [False] * 3
    model = tiny_model(architecture, "rotary", sliding_window=3, full_attention_layers=(0,))
    moved = (logits_of(model, ids, **sources) - logits_of(model, changed, **sources)).abs().amax(-1)[0] > 1e-9
    assert moved.tolist() == [False] + [True] * 8


@both
def test_a_window_as_long_as_the_row_hides_nothing(architecture):
    ids = random_ids(2, 9)
    for window in (9, 50):
        wide, plain_model = tiny_model(architecture, sliding_window=window), tiny_model(architecture)
        sources = source_for(wide, 2)
        torch.testing.assert_close(logits_of(wide, ids, **sources), logits_of(plain_model, ids, **sources), **EXACT)


@both
def test_separate_documents_within_a_window_are_as_if_apart(architecture):
    model = tiny_model(architecture, "rotary", sliding_window=2)
    ids, sources = random_ids(2, 12), source_for(model, 2)
    together = model(**packed(ids, [5, 6, 12]), separate=True, **sources)
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        torch.testing.assert_close(together[:, begin:end], logits_of(model, ids[:, begin:end], **sources), **EXACT)


def test_what_the_output_layer_adds_and_divides():
    model = tiny_model("decoder", output_bias=True, scale_output=True)
    hidden = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = hidden / 4 @ model.token_embedding.weight.T + model.output_bias
    torch.testing.assert_close(model.head(hidden), expected, **EXACT)
    assert count_parameters(model)["head"] == VOCAB


def test_attention_scale_replaces_the_square_root():
    ids = random_ids(2, 6)
    as_usual = tiny_model("decoder", attention_scale=0.5)  # heads are 4 wide
    torch.testing.assert_close(logits_of(as_usual, ids), logits_of(tiny_model("decoder"), ids), **EXACT)
    assert (logits_of(tiny_model("decoder", attention_scale=1.0), ids) - logits_of(as_usual, ids)).abs().max() > 1e-3


def test_biases_of_attention_can_differ():
    names = dict(tiny_model("decoder", attention_bias=True, attention_output_bias=False).named_parameters())
    assert "decoder.layers.0.self_attention.q_proj.bias" in names
    assert "decoder.layers.0.self_attention.o_proj.bias" not in names


@both
def test_names_of_parameters(architecture):
    names = {name for name, _ in tiny_model(architecture, "learned").named_parameters()}
    block = {f"{proj}_proj.{kind}" for proj in "qkvo" for kind in ("weight", "bias")}
    decoder = {f"decoder.layers.1.self_attention.{name}" for name in block}
    assert decoder <= names
    assert {"token_embedding.weight", "position_embedding.weight", "decoder.final_norm.bias"} <= names
    assert {
        "decoder.layers.0.feed_forward.up_proj.weight",
        "decoder.layers.0.feed_forward_norm.weight",
    } <= names
    assert not any("lm_head" in name or "gate_proj" in name or "hidden_projs" in name for name in names)
    crossed = {f"decoder.layers.1.cross_attention.{name}" for name in block} | {
        "decoder.layers.0.cross_attention_norm.bias"
    }
    encoder = {f"encoder.layers.1.self_attention.{name}" for name in block} | {"source_position_embedding.weight"}
    assert (crossed | encoder <= names) == (architecture == "encoder_decoder")


def test_names_of_optional_parameters():
    model = tiny_model(
        "encoder_decoder",
        "t5_relative",
        qk_norm=True,
        gated=True,
        num_ffn_hidden_layers=3,
        embedding_norm=True,
        norm="rms_norm",
        norm_position="post",
        tie_embeddings=False,
        share_embeddings=False,
        source_vocab_size=9,
        attention_bias=False,
        ffn_bias=False,
    )
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["source_embedding.weight"] == (9, 16)
    assert shapes["lm_head.weight"] == (VOCAB, 16)
    assert shapes["encoder.relative_bias.weight"] == shapes["decoder.relative_bias.weight"] == (8, 4)
    assert shapes["decoder.layers.0.cross_attention.q_norm.weight"] == (4,)
    assert shapes["encoder.layers.0.feed_forward.gate_proj.weight"] == (24, 16)
    assert shapes["encoder.layers.0.feed_forward.hidden_projs.1.weight"] == (24, 24)
    assert shapes["encoder.embedding_norm.weight"] == (16,)
    assert not any(name.endswith("bias") or "final_norm" in name for name in shapes)
    assert set(model.state_dict()) == set(shapes)


def test_a_tied_head_is_the_embedding():
    model = tiny_model()
    hidden = model.hidden(**plain(random_ids(2, 4)))
    torch.testing.assert_close(model.head(hidden), hidden @ model.token_embedding.weight.T, **EXACT)
    loose = tiny_model(tie_embeddings=False)
    hidden = loose.hidden(**plain(random_ids(2, 4)))
    torch.testing.assert_close(loose.head(hidden), hidden @ loose.lm_head.weight.T, **EXACT)


@both
def test_the_logits_are_the_head_of_the_hidden_states(architecture):
    model = tiny_model(architecture)
    inputs = {**plain(random_ids(2, 6)), **source_for(model, 2)}
    hidden = model.hidden(**inputs)
    torch.testing.assert_close(model(**inputs), torch.cat([model.head(hidden[:1]), model.head(hidden[1:])]), **EXACT)


def test_softcap_bounds_the_logits():
    ids = random_ids(2, 6)
    free, capped = tiny_model(), tiny_model(logit_softcap=0.5)
    expected = 0.5 * torch.tanh(logits_of(free, ids) / 0.5)
    torch.testing.assert_close(logits_of(capped, ids), expected, **EXACT)
    assert logits_of(capped, ids).abs().max() < 0.5 < logits_of(free, ids).abs().max()


def test_scaled_embeddings():
    ids = random_ids(1, 5)
    plain_model, scaled = tiny_model(position="none"), tiny_model(position="none", scale_embeddings=True)
    with torch.no_grad():
        scaled.token_embedding.weight.div_(4.0)
    torch.testing.assert_close(logits_of(scaled, ids) * 4.0, logits_of(plain_model, ids), **EXACT)


def test_unshared_sources_have_their_own_embedding():
    model = tiny_model("encoder_decoder", share_embeddings=False, source_vocab_size=VOCAB)
    ids, sources = random_ids(2, 4), source_for(model, 2)
    before = logits_of(model, ids, **sources)
    with torch.no_grad():
        model.source_embedding.weight.add_(torch.randn(VOCAB, 16, generator=torch.Generator().manual_seed(1)))
    assert (logits_of(model, ids, **sources) - before).abs().max() > 1e-3


def test_dropout_only_in_training():
    model = tiny_model(dropout=0.3, attention_dropout=0.3, ffn_dropout=0.3)
    ids = random_ids(2, 6)
    torch.testing.assert_close(logits_of(model, ids), logits_of(tiny_model(), ids), **EXACT)
    model.train()
    assert (logits_of(model, ids) - logits_of(model, ids)).abs().max() > 1e-3


@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "ffn_dropout"])
@both
def test_each_dropout_does_something(architecture, field):
    model = tiny_model(architecture, **{field: 0.5}).train()
    ids, sources = random_ids(2, 6), source_for(model, 2)
    assert (logits_of(model, ids, **sources) - logits_of(model, ids, **sources)).abs().max() > 1e-3


def test_dropout_of_embeddings():
    model = tiny_model(dropout=0.5).train()
    with torch.no_grad():
        for layer in model.decoder.layers:
            for proj in (layer.self_attention.o_proj, layer.feed_forward.down_proj):
                proj.weight.zero_()
                proj.bias.zero_()
    ids = random_ids(2, 6)
    assert (logits_of(model, ids) - logits_of(model, ids)).abs().max() > 1e-3


@pytest.mark.parametrize("autocast", [True, False])
@both
@every_position
def test_bfloat16_stays_close_and_in_its_dtype(architecture, position, autocast):
    exact = tiny_model(architecture, position, qk_norm=True, norm="rms_norm", num_kv_heads=2, logit_softcap=30.0)
    model = tiny_model(architecture, position, qk_norm=True, norm="rms_norm", num_kv_heads=2, logit_softcap=30.0)
    model = model.float() if autocast else model.bfloat16()
    ids, sources = random_ids(2, 6), source_for(model, 2)
    expected = logits_of(exact, ids, **sources)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = logits_of(model, ids, **sources)
        first, state = model.prefill(PromptBatch(ids[:, :4], torch.tensor([4, 3]), **sources), 8)
        second = model.extend(torch.stack([ids[0, 4:6], ids[1, 3:5]]), state)
    assert {x.dtype for x in (logits, first, second)} == {torch.float32}
    assert state.caches[0].keys.dtype == torch.bfloat16
    scale = expected.std()
    for got, wanted in (
        (logits, expected),
        (first, torch.stack([expected[0, 3], expected[1, 2]])),
        (second, torch.stack([expected[0, 4:6], expected[1, 3:5]])),
    ):
        assert (got - wanted).abs().max() < 0.25 * scale


def test_logits_keep_the_dtype_of_the_weights():
    ids = random_ids(1, 3)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        model = tiny_model().to(dtype)
        assert logits_of(model, ids).dtype == dtype
        logits, _ = model.prefill(PromptBatch(ids, torch.tensor([3])), 4)
        assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@every_position
def test_training_goes_on_after_generating_in_inference_mode(position):
    # An unusual length, so that the tables are made here.
    model = tiny_model("decoder", position, max_length=19)
    with torch.inference_mode():
        model.prefill(PromptBatch(random_ids(1, 3), torch.tensor([3])), 4)
    model.train()
    model(**plain(random_ids(1, 3))).sum().backward()
    assert model.token_embedding.weight.grad is not None


def test_a_huge_length_costs_nothing_and_changes_nothing():
    short, long = (tiny_model("decoder", "rotary", max_length=length) for length in (24, 10**9))
    ids = random_ids(2, 9)
    torch.testing.assert_close(logits_of(long, ids), logits_of(short, ids), rtol=0, atol=0)
    steps = [model.prefill(PromptBatch(ids, torch.tensor([9, 7])), 12) for model in (short, long)]
    (one, state), (other, far) = steps
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(short.extend(ids[:, :1], state), long.extend(ids[:, :1], far), rtol=0, atol=0)


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary"])
def test_too_long_a_sequence_is_refused(position):
    model = tiny_model("decoder", position)
    with pytest.raises(UsageError, match="25 tokens is too long"):
        logits_of(model, random_ids(1, 25))


@pytest.mark.parametrize(
    ("architecture", "options", "key"),
    [
        ("decoder", {"vocab_size": None}, "model.vocab_size"),
        ("encoder_decoder", {"vocab_size": None}, "model.vocab_size"),
        ("encoder_decoder", {"share_embeddings": False}, "model.source_vocab_size"),
    ],
)
def test_an_unknown_vocabulary_is_refused(architecture, options, key):
    with pytest.raises(ConfigError, match=key):
        build_model(tiny_config(architecture, **options))


@both
def test_parameters_are_counted_by_part_without_memory(architecture):
    config = tiny_config(architecture, "t5_relative", qk_norm=True, tie_embeddings=False)
    model = build_model(config, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    counts = count_parameters(model)
    stacks, blocks, norms = (2, 6, 12) if architecture == "encoder_decoder" else (1, 2, 5)
    assert counts["embedding"] == counts["head"] == VOCAB * 16
    assert counts["attention"] == blocks * 4 * (16 * 16 + 16) + stacks * 8 * 4
    assert counts["feed_forward"] == 2 * stacks * (16 * 24 + 24 + 24 * 16 + 16)
    assert counts["norm"] == norms * 32 + blocks * 2 * 4
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())


@both
@every_position
def test_a_model_from_meta_holds_the_same_as_one_built_at_once(architecture, position):
    config = tiny_config(architecture, position)
    one, two = build_model(config), build_model(config, device="meta").to_empty(device="cpu")
    init_weights(one, 3)
    two.load_state_dict(one.state_dict())
    ids = random_ids(2, 5)
    torch.testing.assert_close(
        logits_of(one, ids, **source_for(one, 2)), logits_of(two, ids, **source_for(two, 2)), rtol=0, atol=0
    )


@pytest.mark.slow
@both
@every_position
def test_it_compiles_as_one_graph(architecture, position):
    model = tiny_model(architecture, position)
    inputs = {**plain(random_ids(2, 6)), **source_for(model, 2)}
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), model(**inputs), **EXACT)
