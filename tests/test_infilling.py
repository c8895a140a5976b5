"""Texts with gaps: what a model is asked is what it was taught, and what it writes goes where it belongs."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from txtgen.checkpoint import LoadedModel
from txtgen.cli import run
from txtgen.config.checkpoint import CheckpointConfig, bidirectional_prompt
from txtgen.config.data import DataConfig
from txtgen.config.loader import config_from_tree
from txtgen.config.model import AlibiPosition, DecoderConfig, EncoderDecoderConfig, T5RelativePosition
from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.data import build_objective
from txtgen.data.examples import Examples, Span
from txtgen.data.objectives.noise import cut_spans
from txtgen.data.packing import Packer, Rows
from txtgen.data.report import StreamReport
from txtgen.data.types import Origin, TextRecord
from txtgen.decode import PromptBatch
from txtgen.errors import UsageError
from txtgen.generator import Generator
from txtgen.infilling import Gaps, with_gaps
from txtgen.model import build_model, init_weights
from txtgen.tokenizer import train_sentencepiece
from txtgen.train import batch_loss

WORDS = ("cat", "dog", "fox", "sun", "sea", "car")
TEXTS = [f"the {one} sees the {two} over there.\n" for one in WORDS for two in WORDS]
RECORD = TextRecord("the cat sees the dog", Origin(0, "x", 0))


def objective_config(**objective):
    return config_from_tree(DataConfig, {"sources": [{"kind": "text", "path": "x"}], "objective": objective}).objective


SPANS = objective_config(kind="span_corruption", num_sentinels=5)
MIDDLE = objective_config(kind="fill_in_middle", rate=1.0, spm_rate=0.0)
MASKS = objective_config(kind="denoising")


def trained(*objectives):
    symbols = [symbol for objective in objectives for symbol in objective.control_symbols]
    return train_sentencepiece(SentencePieceConfig(vocab_size=330).reserving(symbols), TEXTS)[0]


@pytest.fixture(scope="module")
def spans_tokenizer():
    return trained(SPANS)


@pytest.fixture(scope="module")
def middle_tokenizer():
    return trained(MIDDLE)


def loaded(tokenizer, kind="decoder", position=None, **described):
    size = {"d_model": 16, "num_heads": 2, "d_ff": 32, "max_length": 64, "init_std": 0.4, "vocab_size": len(tokenizer)}
    size |= {"position": position} if position else {}
    decoder = DecoderConfig(num_layers=2, **size)
    config = decoder if kind == "decoder" else EncoderDecoderConfig(max_source_length=64, **size)
    model = build_model(config)
    init_weights(model, 3)
    return LoadedModel(model, tokenizer, None, CheckpointConfig(model=config, **described))


def prompt_ids(generator, prompt, **options):
    return list(generator.generate([prompt], max_new_tokens=1, **options)[0].prompt_token_ids)


def test_a_middle_is_asked_for_as_it_was_taught(middle_tokenizer):
    objective = build_objective(MIDDLE, middle_tokenizer, max_length=64)
    generator = Generator(loaded(middle_tokenizer))
    between = middle_tokenizer.control_ids["<|fim_middle|>"]
    seen = set()
    for key in range(40):
        (example,) = objective(RECORD, key)
        tokens = [*example.input_ids.tolist(), int(example.labels[-1])]
        place = tokens.index(between)
        middle = middle_tokenizer.decode(tokens[place:])
        behind = tokens.index(middle_tokenizer.control_ids["<|fim_suffix|>"])
        prompt = f"{middle_tokenizer.decode(tokens[:behind])}___{middle_tokenizer.decode(tokens[behind:place])}"
        assert prompt_ids(generator, prompt, gap="___") == tokens[: place + 1]
        seen.add(middle)
    assert len(seen) > 20


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_spans_are_asked_for_as_they_were_taught(spans_tokenizer, kind):
    tokens = np.array(spans_tokenizer.encode("the cat sees the dog over there."))
    pieces = spans_tokenizer.pieces(tokens.tolist())
    starts = [place for place, piece in enumerate(pieces) if piece.startswith("\u2581")]
    hidden = np.zeros(len(tokens), bool)
    for word in (0, 3):  # cat and dog, whole words
        hidden[starts[word] : starts[word + 1]] = True
    sentinels = np.array([spans_tokenizer.control_ids[name] for name in SPANS.control_symbols])
    source, target = cut_spans(tokens, hidden, sentinels)
    special = spans_tokenizer.special
    framed = [special.bos_id, *source] if kind == "decoder" else [*source, special.eos_id]
    generator = Generator(loaded(spans_tokenizer, kind))
    assert prompt_ids(generator, "the ___ sees the ___ over there.", gap="___") == framed
    gaps = with_gaps(
        "the ___ sees the ___ over there.", "___", spans_tokenizer.encode, spans_tokenizer.control_ids,
        has_encoder=False, leading_space=False, where="",
    )  # fmt: skip
    assert gaps.filled(target.tolist()) == tokens.tolist()
    assert spans_tokenizer.decode(gaps.filled(target.tolist())) == "the cat sees the dog over there."


@given(st.lists(st.lists(st.integers(1, 50), max_size=4), min_size=2, max_size=5), st.data())
def test_fills_take_the_places_of_their_gaps(parts, data):
    marks = tuple(range(100, 110))
    gaps = Gaps("spans", tuple(map(tuple, parts)), marks)
    fills = [tuple(data.draw(st.lists(st.integers(1, 50), max_size=4))) for _ in parts[1:]]
    written = [token for mark, fill in zip(marks, fills, strict=False) for token in (mark, *fill)]
    more = data.draw(st.sampled_from([[], [marks[len(fills)], 7, 8]]))
    assert gaps.fills([*written, *more]) == fills
    expected = [*parts[0], *(token for fill, part in zip(fills, parts[1:], strict=True) for token in (*fill, *part))]
    assert gaps.filled([*written, *more]) == expected


def test_a_filled_text_keeps_what_was_given(spans_tokenizer, middle_tokenizer):
    for tokenizer, kinds in ((spans_tokenizer, ("decoder", "encoder_decoder")), (middle_tokenizer, ("decoder",))):
        for kind in kinds:
            generator = Generator(loaded(tokenizer, kind))
            (found,) = generator.generate("the cat … over there.", gap="…", max_new_tokens=9, strategy="sample", seed=2)
            (fill,) = found.fills
            before = "the cat" if tokenizer is spans_tokenizer else "the cat "
            assert found.text == f"{before}{fill} over there."
            assert found.prompt == "the cat … over there."
            assert json.loads(json.dumps(found.fills)) == [fill]


def test_a_mask_is_answered_with_the_whole_text():
    tokenizer = trained(MASKS)
    generator = Generator(loaded(tokenizer, "encoder_decoder"))
    (found,) = generator.generate("the <gap> sees", gap="<gap>", max_new_tokens=5)
    assert tokenizer.control_ids["<mask>"] in found.prompt_token_ids
    assert found.text == tokenizer.decode(found.token_ids)
    assert found.fills == ()


def test_sentinels_are_written_only_where_there_are_gaps(spans_tokenizer):
    model = loaded(spans_tokenizer, "encoder_decoder")
    sentinels = {spans_tokenizer.control_ids[name] for name in SPANS.control_symbols}
    options = {"strategy": "sample", "temperature": 5.0, "max_new_tokens": 60, "num_return": 5}
    written = [
        {token for result in Generator(model).generate("the ___ cat", **options, **more) for token in result.token_ids}
        for more in ({}, {"gap": "___"})
    ]
    assert not written[0] & sentinels
    assert written[1] & sentinels


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ("no gap", "decoder", "the prompt has no gap '___'"),
        ("a ___ b ___ c ___ d ___ e ___ f ___", "decoder", "has 6 gaps, and the model has tokens for 5"),
        ([{"role": "user", "content": "___"}], "decoder", "a conversation, which has no gaps"),
    ],
)
def test_prompts_that_cannot_be_filled_are_refused(prompt, kind, words, spans_tokenizer):
    with pytest.raises(UsageError, match=words):
        Generator(loaded(spans_tokenizer, kind)).generate([prompt], gap="___")


def test_gaps_that_are_filled_one_by_one_know_no_stop_string(spans_tokenizer, middle_tokenizer):
    with pytest.raises(UsageError, match="stop string ends a text"):
        Generator(loaded(spans_tokenizer)).generate(["a ___ b"], gap="___", stop="x")
    result = Generator(loaded(middle_tokenizer)).generate(["a ___ b"], gap="___", max_new_tokens=8)[0]
    stop = result.fills[0][2:3]
    cut = Generator(loaded(middle_tokenizer)).generate(["a ___ b"], gap="___", max_new_tokens=8, stop=stop)[0]
    assert cut.fills[0] == result.fills[0][: result.fills[0].index(stop)]
    assert cut.text == f"a {cut.fills[0]} b"


def test_models_that_learnt_no_gaps_are_refused(tokenizer, middle_tokenizer):
    with pytest.raises(UsageError, match=r"has 1 gaps, and the model has tokens for 0; .*use a model that learnt"):
        Generator(loaded(tokenizer)).generate("a ___", gap="___")
    with pytest.raises(UsageError, match="has 2 gaps, and the model has tokens for 1"):
        Generator(loaded(middle_tokenizer)).generate("a ___ b ___", gap="___")


@pytest.mark.parametrize("position", [None, AlibiPosition(), T5RelativePosition()])
def test_a_prompt_read_in_both_directions_is_scored_as_in_training(spans_tokenizer, position):
    """Generation from a prefix gives the log-probability that the loss of prefix_lm gives the same row."""
    model = loaded(spans_tokenizer, position=position, bidirectional_prompt=True)
    prompts = ["the cat sees", "the dog sees the fox over", "s"]
    found = Generator(model).generate(prompts, max_new_tokens=6)
    causal = Generator(loaded(spans_tokenizer, position=position)).generate(prompts, max_new_tokens=6)
    assert any(abs(one.logprob - other.logprob) > 1e-3 for one, other in zip(found, causal, strict=True))
    for result in found:
        ids = torch.tensor([[*result.prompt_token_ids, *result.token_ids]])
        known = len(result.prompt_token_ids)
        both = torch.zeros(1, ids.shape[1] - 1, dtype=torch.bool)
        both[:, :known] = True
        positions = torch.arange(ids.shape[1] - 1)[None]
        with torch.no_grad():
            logits = model.model(ids[:, :-1], positions, torch.ones_like(both).int(), bidirectional=both)
        logprobs = logits.log_softmax(-1)[0, known - 1 :]
        assert float(logprobs.gather(1, ids[0, known:, None]).sum()) == pytest.approx(result.logprob, abs=1e-4)
        alone = Generator(model, independent=True).generate(result.prompt, max_new_tokens=6)[0]
        assert alone.token_ids == result.token_ids


def test_only_some_prompts_of_a_batch_may_be_bidirectional(spans_tokenizer):
    model = loaded(spans_tokenizer).model
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    lengths = torch.tensor([4, 3])
    mixed, _ = model.prefill(PromptBatch(ids, lengths, bidirectional=torch.tensor([True, False])), 8)
    causal, _ = model.prefill(PromptBatch(ids, lengths), 8)
    both, _ = model.prefill(PromptBatch(ids, lengths, bidirectional=torch.tensor([True, True])), 8)
    torch.testing.assert_close(mixed[1], causal[1])
    torch.testing.assert_close(mixed[0], both[0])
    assert not torch.allclose(both[1], causal[1], atol=1e-4)


def test_the_loss_of_a_prefix_lm_is_that_of_its_rest():
    """In one layer no mask changes what is attended to from behind the prefix, so a causal model is the oracle."""
    tokenizer = trained(SPANS)
    config = DecoderConfig(d_model=16, num_heads=2, num_layers=1, max_length=64, vocab_size=len(tokenizer))
    model = build_model(config)
    init_weights(model, 1)
    objective = build_objective(objective_config(kind="prefix_lm"), tokenizer, max_length=64)
    examples = [objective(TextRecord(text, RECORD.origin), key)[0] for key, text in enumerate(TEXTS[:3])]
    rows = Rows(1, 64, objective.pad_id)
    Packer(lambda _tokens: [Span(Examples.of([examples]), 0, 3)], StreamReport()).fill(rows, 0)
    packed = rows.batch(objective)
    assert packed.bidirectional is not None
    total = 0.0
    for example in examples:
        ids = torch.from_numpy(example.input_ids)[None]
        positions = torch.arange(ids.shape[1])[None]
        with torch.no_grad():
            logprobs = model(ids, positions, torch.ones_like(ids).int()).log_softmax(-1)[0]
        for place in range(example.bidirectional - 1, ids.shape[1]):
            total -= float(logprobs[place, example.labels[place]])
    assert float(batch_loss(model, packed).nll) == pytest.approx(total, rel=1e-5)
    assert packed.num_scored == sum(len(e.labels) - e.bidirectional + 1 for e in examples)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"prefix_lm": 1}, True),
        ({"prefix_lm": 1, "span_corruption": 2}, True),
        ({"prefix_lm": 1, "causal_lm": 2}, False),
        ({"kind": "causal_lm"}, False),
    ],
)
def test_prompts_are_read_as_they_were_learnt(objective, expected):
    assert bidirectional_prompt(objective_config(**objective)) is expected


def test_gaps_on_the_command_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(TEXTS), encoding="utf-8")
    model = {"kind": "decoder", "d_model": 16, "num_layers": 1, "num_heads": 2, "max_length": 32}
    tree = {
        "data": {
            "sources": [{"kind": "text", "path": "text.txt", "documents": "line"}],
            "objective": {"causal_lm": 1, "fill_in_middle": 1},
        },
        "tokenizer": {"vocab_size": 330},
        "model": model,
        "train": {"steps": 2, "batch_tokens": 64},
        "samples": {"prompts": ["the ___ sees"], "gap": "___", "every": 1},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree), encoding="utf-8")
    assert run(["pretrain", "run.yaml", "--name", "run"]) == 0
    assert "sample  the ___ sees -> the " in capsys.readouterr().err
    command = ["generate", "runs/run", "--prompt", "the ___ sees", "--gap", "___", "--max-new-tokens", "4"]
    assert run(command) == 0
    shown = capsys.readouterr().out.removesuffix("\n")
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == shown == f"the {found['fills'][0]} sees"
    assert run(["generate", "runs/run", "--prompt", "nothing", "--gap", "___"]) == 2
