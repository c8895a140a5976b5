"""A tiny corpus of every kind, and runs on it through the command line."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

import txtgen.train.loss
import txtgen.train.preference
from txtgen.cli import run
from txtgen.commands.running import pacing, probe, session
from txtgen.model.lora import adapters_of

WORDS = {"cat": "Katze", "dog": "Hund", "fox": "Fuchs", "sun": "Sonne", "sea": "Meer", "car": "Auto"}

DECODER = """
data:
  sources: [{{kind: text, path: {folder}/text, documents: line}}]
  validation: {{fraction: 0.2}}
tokenizer: {{vocab_size: 300}}
model:
  {{kind: decoder, d_model: 16, num_layers: 1, num_heads: 2, d_ff: 32, max_length: 32, dropout: 0.1}}
train:
  steps: 6
  batch_tokens: 128
  validate_every: 3
  save_every: 2
  log_every: 1
  keep_last: 9
  optimizer: {{learning_rate: 0.01}}
samples: {{prompts: ["the cat"], decoding: {{strategy: greedy, max_new_tokens: 4}}}}
"""

TRANSLATOR = """
data:
  sources: [{{kind: tsv, path: {folder}/pairs.tsv}}]
  validation: {{fraction: 0.2}}
  objective: {{kind: seq2seq}}
tokenizer: {{vocab_size: 300}}
model:
  kind: encoder_decoder
  d_model: 16
  num_encoder_layers: 1
  num_decoder_layers: 1
  num_heads: 2
  d_ff: 32
  max_length: 32
  max_source_length: 32
  dropout: 0.1
train:
  steps: 4
  batch_tokens: 256
  validate_every: 2
  validation_metric: bleu
  validation_translations: 4
  save_every: 2
  log_every: 1
generation: {{strategy: beam, beam_size: 2, max_new_tokens: 8}}
"""


@pytest.fixture
def workshop(tmp_path, monkeypatch) -> Path:
    """A current folder with text, pairs, chats and configs in it."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path)
    return tmp_path


@pytest.fixture
def a_second_a_step(monkeypatch) -> None:
    """Runs are fitted into their time by a clock that goes on a second a step, and stands still between steps."""
    now, log = [0.0], session.Session.log

    def tick(self, report) -> None:
        now[0] += 1.0
        log(self, report)

    class Ticking(pacing.TimeBudget):
        def __init__(self, seconds, most_steps, _spent, horizon) -> None:
            super().__init__(seconds, most_steps, 0.0, horizon, clock=lambda: now[0])

        def note(self, *_) -> None:
            """What lies between the steps takes no time."""

    monkeypatch.setattr(pacing, "TimeBudget", Ticking)
    monkeypatch.setattr(session.Session, "log", tick)


@pytest.fixture
def measured(monkeypatch) -> list[tuple]:
    """What goes through a model to be measured, at once: its rows of tokens, whether it is told what the base model
    says of them, and whether the model has adapters that are on. A dry run measures all that a run does."""
    seen, original = [], txtgen.train.loss.scored_hidden

    def scored_hidden(model, batch):
        if torch.is_inference_mode_enabled():
            rows = tuple(map(tuple, batch.input_ids.tolist()))
            seen.append((rows, batch.reference is not None, any(lora.active for lora in adapters_of(model).values())))
        return original(model, batch)

    for module in (txtgen.train.loss, txtgen.train.preference):
        monkeypatch.setattr(module, "scored_hidden", scored_hidden)
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(probe, "VALIDATION_SECONDS", float("inf"))
    return seen


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with finished runs in it: runs/decoder and runs/translator. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder)
    for name in ("decoder", "translator"):
        assert run(["pretrain", str(folder / f"{name}.yaml"), "--name", name, "--runs-path", str(folder / "runs")]) == 0
    return folder


@pytest.fixture
def decoder(trained) -> str:
    return str(trained / "runs" / "decoder")


@pytest.fixture
def translator(trained) -> str:
    return str(trained / "runs" / "translator")


@pytest.fixture
def stdin(monkeypatch):
    """Set what is piped in."""

    def pipe(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    pipe(b"")
    return pipe


def write_corpus(folder: Path) -> None:
    (folder / "text").mkdir()
    lines = [f"the {one} sees the {two}.\n" for one in WORDS for two in WORDS] * 4
    (folder / "text" / "a.txt").write_text("".join(lines), encoding="utf-8")
    pairs = [f"the {one} and the {two}\t{WORDS[one]} und {WORDS[two]}\n" for one in WORDS for two in WORDS]
    (folder / "pairs.tsv").write_text("".join(pairs * 2), encoding="utf-8")
    turns = [[("user", f"what is a {one}?"), ("assistant", f"a {one} is {WORDS[one]}.")] for one in WORDS]
    chats = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns * 8]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    (folder / "decoder.yaml").write_text(DECODER.format(folder=folder), encoding="utf-8")
    (folder / "translator.yaml").write_text(TRANSLATOR.format(folder=folder), encoding="utf-8")
