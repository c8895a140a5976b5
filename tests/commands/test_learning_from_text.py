"""Objectives on plain text through the command line: both architectures, mixtures, validation and evaluation."""

import json

import pytest

from txtgen.cli import run

TRAIN = ["--set", "train.steps=30", "--set", "train.validate_every=15", "--set", "train.optimizer.learning_rate=0.02"]
SMALL = ["--set", "tokenizer.vocab_size=420"]
MIXTURE = "{causal_lm: 2, prefix_lm: 1, span_corruption: 1, fill_in_middle: 1}"


def metrics_of(folder, key):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line[key] for line in lines if key in line]


def text_on_encoder_decoder(workshop, objective):
    """The config of an encoder-decoder that learns from text."""
    text = (workshop / "translator.yaml").read_text(encoding="utf-8")
    text = text.replace(
        "{kind: tsv, path: " + str(workshop) + "/pairs.tsv}", "{kind: text, path: text, documents: line}"
    )
    text = text.replace("{kind: seq2seq}", objective).replace("validation_metric: bleu", "validation_metric: loss")
    (workshop / "denoiser.yaml").write_text(text, encoding="utf-8")
    return ["pretrain", "denoiser.yaml", *SMALL, *TRAIN, "--name", "run"]


@pytest.mark.parametrize("kind", ["span_corruption", "denoising", "prefix_lm"])
def test_an_encoder_decoder_learns_from_text(workshop, kind, capsys) -> None:
    assert run(text_on_encoder_decoder(workshop, f"{{kind: {kind}}}")) == 0
    losses = metrics_of(workshop / "runs" / "run", "val_loss")
    assert losses[-1] < losses[0] < 7
    capsys.readouterr()
    assert run(["evaluate", "runs/run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"]["loss"] == pytest.approx(losses[-1], rel=1e-4)
    assert found["parts"] == {}
    assert run(["evaluate", "runs/run", "--data", "text/a.txt"]) == 0
    assert run(["generate", "runs/run", "--prompt", "the cat", "--max-new-tokens", "3"]) == 0


def test_a_mixture_is_measured_part_by_part(workshop, capsys) -> None:
    more = ["--set", f"data.objective={MIXTURE}", *SMALL, *TRAIN]
    assert run(["pretrain", "decoder.yaml", *more, "--name", "run"]) == 0
    folder = workshop / "runs" / "run"
    names = ("causal_lm", "prefix_lm", "span_corruption", "fill_in_middle")
    parts = {name: metrics_of(folder, f"val_loss_{name}") for name in names}
    assert all(losses[-1] < metrics_of(folder, "loss")[0] - 1 for losses in parts.values())
    weights = dict(zip(names, (2, 1, 1, 1), strict=True))
    whole = sum(weights[name] * losses[-1] for name, losses in parts.items()) / 5
    assert metrics_of(folder, "val_loss")[-1] == pytest.approx(whole)
    capsys.readouterr()
    assert run(["evaluate", "runs/run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: part["loss"] for name, part in found["parts"].items()} == pytest.approx(
        {name: losses[-1] for name, losses in parts.items()}, rel=1e-4
    )
    assert found["loss"]["tokens"] == sum(part["tokens"] for part in found["parts"].values())
    assert run(["evaluate", "runs/run"]) == 0
    assert "loss, prefix_lm" in capsys.readouterr().out


def test_a_mixture_resumes_as_if_it_had_not_stopped(workshop) -> None:
    constant = ["--set", "train.schedule={kind: constant}"]
    command = ["pretrain", "decoder.yaml", "--set", f"data.objective={MIXTURE}", *SMALL, *constant]
    assert run([*command, "--name", "straight"]) == 0
    assert run([*command, "--name", "run", "--steps", "4"]) == 0
    assert run([*command, "--name", "run", "--resume"]) == 0
    straight, resumed = (metrics_of(workshop / "runs" / name, "loss") for name in ("straight", "run"))
    assert straight[4:] == resumed[-2:]


def test_text_and_pairs_are_learnt_together(workshop) -> None:
    sources = "[{kind: text, path: text, documents: line}, {kind: tsv, path: pairs.tsv}]"
    more = ["--set", f"data.sources={sources}", "--set", "data.objective={span_corruption: 1, seq2seq: 1}"]
    more += ["--set", "train.validation_metric=bleu", "--set", "train.validate_every=2"]
    assert run(["pretrain", "translator.yaml", *more, *SMALL, "--name", "run"]) == 0
    folder = workshop / "runs" / "run"
    assert len(metrics_of(folder, "val_loss_seq2seq")) == len(metrics_of(folder, "val_loss_span_corruption")) > 0
    assert metrics_of(folder, "val_bleu")


def test_finetuning_an_encoder_decoder_on_text(workshop, capsys) -> None:
    assert run(text_on_encoder_decoder(workshop, "{kind: denoising}")) == 0
    assert run(["finetune", "text/a.txt", "--base", "runs/run", "--name", "more", "--steps", "2"]) == 0
    assert run(["finetune", "pairs.tsv", "--base", "runs/run", "--name", "pairs", "--steps", "2"]) == 0
    config = (workshop / "runs" / "more" / "config.yaml").read_text(encoding="utf-8")
    assert "kind: denoising" in config
    more = ["--set", "data.objective={kind: span_corruption}"]
    capsys.readouterr()
    assert run(["finetune", "text/a.txt", "--base", "runs/run", "--name", "spans", *more]) == 3
    assert (
        "needs 100 control symbols, <extra_id_0> to <extra_id_99>, and the tokenizer has 0" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("config", "more", "words"),
    [
        ("decoder", ["data.objective={kind: denoising}"], "denoising needs an encoder_decoder"),
        ("translator", ["data.objective={kind: causal_lm}"], "causal_lm needs a decoder"),
        ("decoder", ["data.objective={causal_lm: 1, chat: 1}"], "there is no source that chat could read"),
        ("decoder", ["data.objective={causal_lm: 1, seq2seq: 1}"], "data.objective.parts.1.kind: seq2seq needs an"),
        ("decoder", ["data.objective={kind: span_corruption}"], "not more than 364 special, control and byte pieces"),
        ("decoder", ["data.objective={kind: fill_in_middle, weight: 1.0}"], "only the parts of a mixture have one"),
        (
            "translator",
            [
                "data.objective={kind: prefix_lm}",
                "data.sources=[{kind: text, path: text}]",
                "source_tokenizer={}",
                "model.share_embeddings=false",
            ],
            "prefix_lm needs one tokenizer for both sides",
        ),
    ],
)
def test_what_does_not_fit_is_told(workshop, config, more, words, capsys) -> None:
    settings = [part for setting in more for part in ("--set", setting)]
    assert run(["pretrain", f"{config}.yaml", *settings]) == 3
    assert words in capsys.readouterr().err
