"""Statistics of a corpus are those of all its text, as far as a sample can tell."""

import json
import random

import pytest

from txtgen.config.data import DataConfig
from txtgen.config.loader import config_from_tree
from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.data import corpus_statistics
from txtgen.tokenizer import train_sentencepiece

LINES = [f"the {color} {animal} sees" for color in ("red", "green", "blue") for animal in ("cat", "dog", "fox")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(SentencePieceConfig(vocab_size=300), LINES * 20)[0]


def statistics(tree: dict, tokenizer, *more):
    return corpus_statistics(config_from_tree(DataConfig, tree), tokenizer, *more)


def test_a_small_corpus_is_counted_exactly(tmp_path, tokenizer) -> None:
    texts = [*LINES, "unseen 猫"]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (one,) = statistics({"sources": [{"kind": "text", "path": str(tmp_path), "documents": "line"}]}, tokenizer)
    ids = [token for text in texts for token in tokenizer.encode(text)]
    assert (one.files, one.documents, one.tokens, one.bad_records) == (1, len(texts), len(ids), 0)
    assert one.sampled_bytes == one.num_bytes == (tmp_path / "a.txt").stat().st_size
    assert one.text_bytes == sum(len(text.encode()) for text in texts)
    assert one.byte_tokens == sum(token in tokenizer.byte_ids for token in ids) >= 3
    assert (one.estimated_tokens, one.estimated_documents) == (len(ids), len(texts))
    assert one.bytes_per_token == one.text_bytes / len(ids)


def test_a_large_corpus_is_sampled_all_over(tmp_path, tokenizer, monkeypatch) -> None:
    """Half of it other text than the other half, and far more than is read."""
    sample_bytes = 1 << 17
    monkeypatch.setattr("txtgen.data.statistics.SAMPLE_BYTES", sample_bytes)
    monkeypatch.setattr("txtgen.data.statistics.BLOCK_SAMPLE_BYTES", 1 << 12)
    draw = random.Random(0)
    easy = "".join(draw.choice(LINES) + "\n" for _ in range(30_000))
    hard = "".join(f"猫狗{draw.randrange(10)}\n" for _ in range(len(easy) // 8))
    (tmp_path / "a.txt").write_text(easy + hard, encoding="utf-8")
    (one,) = statistics({"sources": [{"kind": "text", "path": str(tmp_path), "documents": "line"}]}, tokenizer)
    assert one.sampled_bytes < 1.1 * sample_bytes < 0.5 * one.num_bytes
    tokens = sum(map(len, tokenizer.encode_batch((easy + hard).splitlines())))
    assert one.estimated_tokens == pytest.approx(tokens, rel=0.1)
    assert one.estimated_documents == pytest.approx(easy.count("\n") + hard.count("\n"), rel=0.1)


def test_json_around_the_text_is_no_text(tmp_path, tokenizer) -> None:
    rows = [json.dumps({"id": "x" * 100, "text": text}) for text in LINES * 30]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, "no json"]) + "\n")
    (one,) = statistics({"sources": [{"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}]}, tokenizer)
    assert one.bad_records == 1
    assert one.text_bytes == 30 * sum(map(len, LINES))
    assert one.estimated_tokens == pytest.approx(30 * sum(map(len, map(tokenizer.encode, LINES))), rel=0.01)


def test_each_side_of_pairs_has_its_tokenizer(tmp_path, tokenizer) -> None:
    other = train_sentencepiece(SentencePieceConfig(vocab_size=280), ["un deux trois quatre"] * 50)[0]
    (tmp_path / "a.en").write_text("\n".join(LINES))
    (tmp_path / "a.fr").write_text("\n".join(["un deux"] * len(LINES)))
    source = {"kind": "parallel", "source_path": str(tmp_path / "a.en"), "target_path": str(tmp_path / "a.fr")}
    tree = {"sources": [source], "objective": {"kind": "seq2seq"}}
    (one,) = statistics(tree, other, tokenizer)
    assert one.tokens == sum(map(len, map(tokenizer.encode, LINES))) + len(LINES) * len(other.encode("un deux"))
    assert one.sampled_bytes == one.num_bytes


def test_every_source_is_told(tmp_path, tokenizer) -> None:
    (tmp_path / "a.txt").write_text("the cat\n" * 100_000)
    (tmp_path / "b.txt").write_text("the dog\n")
    sources = [{"kind": "text", "path": str(tmp_path / name)} for name in ("a.txt", "b.txt")]
    one, other = statistics({"sources": sources}, tokenizer)
    assert other.documents == 1
    assert one.facts()["estimated_tokens"] > 1000 * other.facts()["estimated_tokens"] > 0
