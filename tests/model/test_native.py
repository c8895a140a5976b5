"""Machine code beside PyTorch, which is the slow way that it must agree with."""

import copy
import logging
import os
import random
import threading

import pytest
import torch
import torch.nn.functional as F
from test_state import Prompts, any_model, extend, start, wander
from tiny_models import ARCHITECTURES, POSITIONS, VOCAB, random_ids, source_for, tiny_model

import txtgen.model.native as native
import txtgen.model.stepping as stepping
from txtgen.config.decoding import BeamConfig, ContrastiveConfig, GreedyConfig, SampleConfig
from txtgen.config.decoding_values import DraftModel, PromptLookup
from txtgen.config.model import NgramConfig
from txtgen.decode import PromptBatch, search
from txtgen.errors import ResourceError, UsageError
from txtgen.model import step_model
from txtgen.model.native import NativeTransformer
from txtgen.model.quantize import BLOCK, quantize_model
from txtgen.native import UnavailableError, load_library

OPTIONS = {
    "as_usual": {},
    "modern": {"norm": "rms_norm", "gated": True, "activation": "silu", "num_kv_heads": 2, "qk_norm": True},
    "window": {"sliding_window": 3, "full_attention_layers": (1,), "tie_embeddings": False, "activation": "gelu_tanh"},
    "post": {"norm_position": "post", "activation": "relu", "embedding_norm": True, "scale_embeddings": True},
    "bare": {"attention_bias": False, "ffn_bias": False, "norm_bias": False, "activation": "relu_squared"},
    "wide": {"d_model": 72, "d_ff": 100, "head_dim": 20, "num_ffn_hidden_layers": 3, "attention_output_bias": False},
    "output": {"output_bias": True, "scale_output": True, "logit_softcap": 5.0, "attention_scale": 1.0},
    "ngrams": {"ngrams": NgramConfig(max_order=4, num_buckets=64)},
}
KINDS = ["float32", "bfloat16", "float16", "int8", "int4"]
both = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_position = pytest.mark.parametrize("position", POSITIONS)
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def library():
    try:
        return load_library()
    except UnavailableError as error:
        pytest.skip(f"no machine code: {error}")


def prompts(model, rows=3, length=7) -> PromptBatch:
    """Of unequal length."""
    lengths = torch.tensor([length - 2 * row % 5 for row in range(rows)])
    return PromptBatch(random_ids(rows, length, seed=5), lengths, **source_for(model, rows))


def in_kind(model, kind: str):
    """A copy with its weights in another kind, and what PyTorch computes with the same numbers in float32."""
    quick = copy.deepcopy(model).float()
    if kind.startswith("int"):
        quantize_model(quick, kind)
        return quick, quick
    quick = quick.to(getattr(torch, kind))
    return quick, copy.deepcopy(quick).float()


@pytest.fixture
def short_cells(monkeypatch):
    """Keys and values of PyTorch are rounded to bfloat16 in attention."""
    attention = F.scaled_dot_product_attention

    def rounded(queries, keys, values, **options):
        return attention(queries, keys.bfloat16().float(), values.bfloat16().float(), **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", rounded)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(2.0, expected.std().item()))


def close_but_for_rounding(found, expected, unrounded):
    """Two numbers that differ by a hair may be rounded apart, and then everything after them moves a little;
    not in every row."""
    apart, rounding = (found - expected).abs(), (expected - unrounded).abs()
    assert apart.amax((1, 2)).min() < 1e-5 * max(1.0, expected.std().item())
    assert apart.mean() < rounding.mean() / 2


def read(way, prompt: PromptBatch) -> torch.Tensor:
    """Logits of the tokens after a prompt, after one more token, three more, and again one more."""
    rows = len(prompt)
    first, state = way.prefill(prompt, int(prompt.lengths.max()) + 5)
    logits = [first[:, None]]
    logits += [way.extend(random_ids(rows, count, seed=count), state) for count in (1, 3, 1)]
    return torch.cat(logits, 1)


@pytest.mark.parametrize("options", OPTIONS)
@every_position
@both
def test_logits_are_those_of_pytorch(library, architecture, position, options):
    model = tiny_model(architecture, position, **OPTIONS[options]).float()
    prompt = prompts(model)
    close(read(NativeTransformer(model, library), prompt), read(model, prompt))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@both
def test_short_numbers_are_computed_with_in_float32(library, request, architecture, kind):
    model, exact = in_kind(tiny_model(architecture, "learned", d_model=72), kind)
    prompt = prompts(model, rows=9)
    found, unrounded = read(NativeTransformer(model, library), prompt), read(exact, prompt)
    request.getfixturevalue("short_cells")
    close_but_for_rounding(found, read(exact, prompt), unrounded)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@both
@pytest.mark.parametrize("options", ["as_usual", "modern", "wide", "output"])
def test_quantised_weights_meet_rounded_inputs(library, monkeypatch, request, architecture, kind, options):
    model, _ = in_kind(tiny_model(architecture, "rotary", init_std=0.1, **OPTIONS[options]), kind)
    prompt = prompts(model, rows=9)
    found = read(NativeTransformer(model, library), prompt)
    unrounded, linear = read(model, prompt), F.linear
    request.getfixturevalue("short_cells")

    def rounded(x, weight, bias=None):
        blocks = F.pad(x, (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
        size = blocks.abs().amax(-1, keepdim=True)
        codes = (blocks * torch.where(size > 0, 127 / size, 0)).round()
        return linear((codes * (size / 127)).flatten(-2)[..., : x.shape[-1]], weight, bias)

    monkeypatch.setattr(F, "linear", rounded)
    expected = read(model, prompt)
    close_but_for_rounding(found, expected, unrounded)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_products_of_the_largest_codes_do_not_overflow(library, kind):
    model = tiny_model("decoder", "rotary", tie_embeddings=False, d_model=64).float()
    signs = torch.cat([torch.ones(1, 64), -torch.ones(1, 64), random_ids(VOCAB - 2, 64) % 2 * 2.0 - 1.0])
    with torch.no_grad():
        model.lm_head.weight.copy_(signs)
    model, _ = in_kind(model, kind)
    for hidden in (signs, signs.repeat(2, 1)):
        close(NativeTransformer(model, library).head(hidden), model.head(hidden))


@every_kind
@pytest.mark.parametrize("outputs", [1, 13, 33, 70])
@pytest.mark.parametrize("width", [1, 3, 31, 34, 97])
def test_matrices_of_any_size_are_arranged_alike(library, kind, width, outputs):
    """Inputs are whole numbers with the largest one in every block, so that rounding to 8 bits changes none."""
    sizes = {"d_model": width, "num_heads": 1, "head_dim": 2, "vocab_size": outputs, "tie_embeddings": False}
    model, exact = in_kind(tiny_model("decoder", "learned", output_bias=True, **sizes), kind)
    hidden = random_ids(19, width) * 16.0 - 96.0
    hidden[:, ::BLOCK] = 127.0
    way = NativeTransformer(model, library)
    found = way.head(hidden)
    close(found, exact.head(hidden))
    for rows in (1, 2, 7, 16):  # few rows are multiplied in another way than many
        assert torch.equal(way.head(hidden[:rows]), found[:rows])


@every_kind
@both
def test_vectors_and_what_the_head_makes_of_them_are_the_logits(library, architecture, kind):
    model, exact = in_kind(tiny_model(architecture, "rotary", scale_output=True), kind)
    way, prompt, more = NativeTransformer(model, library), prompts(model), random_ids(3, 2)
    logits, state = way.prefill(prompt, 12)
    hidden, other = way.prefill_hidden(prompt, 12)
    rows = torch.arange(3)
    assert torch.equal(way.head(hidden[rows, prompt.lengths - 1]), logits)
    assert torch.equal(way.head(way.extend_hidden(more, other)), way.extend(more, state))
    if kind == "float32":
        expected = exact.prefill_hidden(prompt, 12)[0]
        for row, length in enumerate(prompt.lengths.tolist()):
            close(hidden[row, :length], expected[row, :length])


@both
@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_operations(library, architecture, seed):
    choose = random.Random(seed)
    model = any_model(architecture, choose).float()
    wander(model, choose, NativeTransformer(model, library), atol=1e-4)


@both
def test_beams_that_go_on_and_end_share_what_they_have_in_common(library, architecture):
    model = tiny_model(architecture, "rotary", num_kv_heads=2).float()
    way = NativeTransformer(model, library)
    _, state, reference = start(model, [3, 5, 1], capacity=22, way=way)
    choose, beams = random.Random(0), 3
    orders = [[row for row in range(3) for _ in range(beams)]]
    for step in range(12):
        for order in orders:
            state.select(torch.tensor(order))
            reference.select(order)
        extend(way, state, reference, 1, step, atol=1e-4)
        prompts_left = len(reference.rows) // beams
        order = [beams * row + choose.randrange(beams) for row in range(prompts_left) for _ in range(beams)]
        orders = [order]
        if step in (4, 8):  # a prompt is done
            gone = choose.randrange(prompts_left)
            orders.append([row for row in range(len(order)) if row // beams != gone])


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [None, 5])
def test_sequences_that_share_keys_and_values_compute_the_same_bits_as_alone(library, kind, window):
    model, _ = in_kind(tiny_model("decoder", "alibi", num_kv_heads=2, head_dim=5, sliding_window=window), kind)
    way, choose = NativeTransformer(model, library), random.Random(1)
    prompt = random_ids(2, 5)
    _, state = way.prefill(PromptBatch(prompt, torch.tensor([5, 5])), 24)
    rows = prompt.tolist()
    for step in range(16):
        order = sorted(choose.randrange(len(rows)) for _ in range(6))
        rows = [list(rows[row]) for row in order]
        state.select(torch.tensor(order))
        if step % 7 == 6:  # keys and values are copied
            rows = [row[:-2] for row in rows]
            state.truncate(state.lengths - 2)
        tokens = random_ids(6, 1, seed=step)
        for row, new in zip(rows, tokens.tolist(), strict=True):
            row.extend(new)
        found, whole = way.extend(tokens, state)[:, 0], torch.tensor(rows)
        alone = [way.prefill(PromptBatch(row[None], torch.tensor([len(row)])), 24)[0][0] for row in whole]
        assert torch.equal(found, torch.stack(alone))


@every_kind
@both
def test_a_row_depends_on_nothing_but_itself(library, architecture, kind):
    model, _ = in_kind(tiny_model(architecture, "rotary", d_model=72, d_ff=100, head_dim=20), kind)
    way, prompt = NativeTransformer(model, library), prompts(model, rows=9)
    together = read(way, prompt)
    for row in range(9):
        length = int(prompt.lengths[row])
        alone = PromptBatch(prompt.input_ids[row : row + 1, :length], prompt.lengths[row : row + 1])
        if prompt.source_ids is not None:
            source = prompt.source_ids[row][prompt.source_mask[row]][None]
            alone = PromptBatch(alone.input_ids, alone.lengths, source, torch.ones_like(source, dtype=torch.bool))
        first, state = way.prefill(alone, length + 5)
        assert torch.equal(first[0], together[row, 0])
        for count, place in ((1, 1), (3, 2), (1, 5)):
            tokens = random_ids(9, count, seed=count)[row : row + 1]
            assert torch.equal(way.extend(tokens, state)[0], together[row, place : place + count])


@every_kind
def test_the_number_of_threads_changes_nothing(library, kind):
    model, _ = in_kind(tiny_model("encoder_decoder", "t5_relative", d_model=72, d_ff=100, head_dim=20), kind)
    way, prompt = NativeTransformer(model, library), prompts(model, rows=9)
    alone = read(way, prompt)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(torch.equal(read(way, prompt), alone) for _ in range(5))
    finally:
        torch.set_num_threads(before)


@both
@pytest.mark.parametrize("bidirectional", [False, True])
def test_long_prompts_are_read_in_parts(library, monkeypatch, architecture, bidirectional):
    model = tiny_model(architecture, "alibi").float()
    prompt = prompts(model, rows=5)
    flags = torch.tensor([True, False, True, True, False]) if bidirectional else None
    whole = Prompts(prompt.input_ids, prompt.lengths, prompt.source_ids, prompt.source_mask, flags)
    expected = model.prefill(whole, 20)[0]
    for rows in (1, 2, 8, 100):
        monkeypatch.setattr(native, "ROWS_AT_ONCE", rows)
        close(NativeTransformer(model, library).prefill(whole, 20)[0], expected)


def test_a_source_without_tokens_is_looked_at_whole(library):
    model = tiny_model("encoder_decoder", "rotary").float()
    prompt = prompts(model)
    prompt.source_mask[1] = False
    close(read(NativeTransformer(model, library), prompt), read(model, prompt))


def test_rotations_reach_as_far_as_they_are_needed(library, monkeypatch):
    monkeypatch.setattr("txtgen.model.position.LONG", 4)
    model = tiny_model("decoder", "rotary").float()
    way = NativeTransformer(model, library)
    close(
        way.prefill(Prompts(random_ids(1, 2), torch.tensor([2])), 3)[0],
        model.prefill(Prompts(random_ids(1, 2), torch.tensor([2])), 3)[0],
    )
    prompt = prompts(model, length=17)
    close(read(way, prompt), read(model, prompt))


@both
@pytest.mark.parametrize(
    "config",
    [
        GreedyConfig(),
        GreedyConfig(no_repeat_ngram_size=2),
        BeamConfig(beam_size=4, num_return=3),
        SampleConfig(num_return=3, top_p=0.9),
        SampleConfig(num_return=3, speculation=PromptLookup(max_ngram=1)),
        ContrastiveConfig(penalty_alpha=0.6, top_k=3),
    ],
    ids=["greedy", "filtered", "beam", "sample", "speculative", "contrastive"],
)
def test_search_finds_the_same(library, architecture, config):
    for seed in range(3):
        model = tiny_model(architecture, "rotary", seed=seed).float()
        found, expected = (
            search(way, prompts(model, rows=4), config, limits=[9, 6, 9, 3], eos_ids=(2,))
            for way in (NativeTransformer(model, library), model)
        )
        for quick, slow in zip(found, expected, strict=True):
            assert [h.token_ids for h in quick] == [h.token_ids for h in slow]
            assert [h.score for h in quick] == pytest.approx([h.score for h in slow], abs=1e-4)


@both
@every_kind
def test_speculation_changes_no_bit(library, architecture, kind):
    model, _ = in_kind(tiny_model(architecture, "rotary"), kind)
    quick, draft = NativeTransformer(model, library), NativeTransformer(tiny_model(architecture).float(), library)
    for speculation in (PromptLookup(max_ngram=2), DraftModel(num_tokens=3)):
        plain, config = GreedyConfig(), GreedyConfig(speculation=speculation)
        arguments = {"limits": [12, 5, 16], "eos_ids": (2,), "draft": draft}
        found, expected = (search(quick, prompts(model), each, **arguments) for each in (config, plain))
        for (mine,), (its,) in zip(found, expected, strict=True):
            assert (mine.token_ids, mine.logprob) == (its.token_ids, its.logprob)


def test_later_changes_of_the_weights_do_not_count(library):
    model = tiny_model("decoder", "rotary", tie_embeddings=False).float()
    way, prompt = NativeTransformer(model, library), prompts(model)
    before = read(way, prompt)
    with torch.no_grad():
        model.decoder.layers[0].feed_forward.up_proj.weight.zero_()
    assert torch.equal(read(way, prompt), before)


@every_kind
def test_weights_that_are_not_finite_show(library, kind):
    model, _ = in_kind(tiny_model("decoder", "rotary"), kind)
    with torch.no_grad():
        model.decoder.layers[1].feed_forward_norm.weight[3] = float("nan")
    assert not read(NativeTransformer(model, library), prompts(model)).isfinite().any()


# -- what it refuses


@both
def test_what_does_not_fit_is_refused_as_by_pytorch(library, architecture):
    model = tiny_model(architecture, "learned").float()
    prompt = prompts(model)
    for way in (model, NativeTransformer(model, library)):
        with pytest.raises(UsageError, match="of 25 tokens is too long"):
            way.prefill(prompt, 25)
        with pytest.raises(UsageError, match="a prompt of 7 tokens does not fit"):
            way.prefill(prompt, 6)
        _, state = way.prefill(prompt, 8)
        way.extend(random_ids(3, 1), state)
        with pytest.raises(UsageError, match="a sequence of 9 tokens does not fit"):
            way.extend(random_ids(3, 1), state)
        with pytest.raises(UsageError, match="cannot cut"):
            state.truncate(torch.tensor([9, 1, 1]))
    with pytest.raises(UsageError, match="2 rows"):
        way.extend(random_ids(2, 1), state)
    source = {} if architecture == "encoder_decoder" else {"source_ids": random_ids(3, 2)}
    with pytest.raises(UsageError, match="source"):
        way.prefill(PromptBatch(prompt.input_ids, prompt.lengths, **source), 8)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_outside_the_vocabulary_is_not_looked_up(library, token):
    model = tiny_model("decoder", "rotary").float()
    way = NativeTransformer(model, library)
    _, state = way.prefill(prompts(model, rows=1), 9)
    with pytest.raises(IndexError):
        way.extend(torch.tensor([[token]]), state)
    with pytest.raises(IndexError):
        way.prefill(Prompts(torch.tensor([[1, token]]), torch.tensor([2])), 9)


def test_what_it_does_not_know_it_declines(library):
    with pytest.raises(UnavailableError, match="float64"):
        NativeTransformer(tiny_model(), library)
    model = tiny_model().float()
    model.decoder.layers[0].feed_forward.up_proj = torch.nn.Bilinear(16, 16, 24)
    with pytest.raises(UnavailableError, match="Bilinear"):
        NativeTransformer(model, library)


# -- which way is gone


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
@every_position
@both
def test_the_comparison_passes(library, architecture, position, kind):
    model, _ = in_kind(tiny_model(architecture, position, ngrams=NgramConfig(), sliding_window=5), kind)
    assert isinstance(step_model(model, "require"), NativeTransformer)
    assert step_model(model, "off") is model


def test_machine_code_that_is_wrong_is_not_used(library, monkeypatch, caplog):
    class Wrong:
        """Does nothing when it should read."""

        def __getattr__(self, name):
            return (lambda *_: 0) if name == "read" else getattr(library, name)

    monkeypatch.setattr(stepping, "load_library", Wrong)
    model = tiny_model().float()
    assert step_model(model, "auto") is model
    assert "generating without machine code: it is wrong on this machine" in caplog.text
    with pytest.raises(ResourceError, match="it is wrong on this machine"):
        step_model(model, "require")


def test_without_machine_code_pytorch_computes(monkeypatch, caplog):
    def missing():
        raise UnavailableError("no C++ compiler is installed")

    monkeypatch.setattr(stepping, "load_library", missing)
    model = tiny_model().float()
    with caplog.at_level(logging.WARNING):
        assert step_model(model, "auto") is model
    assert [record.getMessage() for record in caplog.records] == [
        "generating without machine code: no C++ compiler is installed"
    ]
    with pytest.raises(ResourceError, match="no C\\+\\+ compiler") as caught:
        step_model(model, "require")
    assert caught.value.exit_code == 6


# -- threads and processes


def test_several_threads_may_generate_at_once(library):
    model = tiny_model("encoder_decoder", "rotary").float()
    way, prompt = NativeTransformer(model, library), prompts(model)
    expected, found = read(way, prompt), []
    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=lambda: found.append(read(way, prompt))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(1)
    assert len(found) == 4
    assert all(torch.equal(one, expected) for one in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_has_threads_of_its_own(library):
    model = tiny_model().float()
    way, prompt = NativeTransformer(model, library), prompts(model)
    torch.set_num_threads(2)
    try:
        expected = read(way, prompt)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(read(way, prompt), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(1)
