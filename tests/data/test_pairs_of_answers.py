"""Pairs of answers as rows: the same prompt twice, only the answers scored, and what is cut."""

import numpy as np
import pytest
from data_fakes import BOS, CONTROL, EOS, ByteTokenizer, data_config, write_jsonl

from txtgen.config.chat_formats import TextChatFormat
from txtgen.config.objectives import CausalLmObjective
from txtgen.config.tokenizer import Framing
from txtgen.data import build_objective, every_batch, train_stream
from txtgen.data.types import IGNORE, BadRecord, Message, Origin, PreferenceRecord
from txtgen.errors import ConfigError

HERE = Origin(0, "x", 0)
SYSTEM, USER, ASSISTANT = CONTROL.values()
SOURCE = {"kind": "preference", "path": "pairs.jsonl"}
RAW = TextChatFormat(user="{content}", assistant="{content}", separator="")


def objective(max_length=64, max_source_length=0, framing=None, **settings):
    config = data_config(SOURCE, objective={"kind": "dpo", **settings}).objective
    return build_objective(
        config, ByteTokenizer(), max_length=max_length, max_source_length=max_source_length, framing=framing
    )


def ids(*parts):
    return [token for part in parts for token in (part.encode() if isinstance(part, str) else [part])]


def sides(example):
    """Input and scored tokens of the chosen and of the rejected side."""
    found = []
    for place in (slice(0, example.rejected), slice(example.rejected, None)):
        labels = example.labels[place]
        found.append((example.input_ids[place].tolist(), labels[labels != IGNORE].tolist()))
    return found


def test_a_decoder_reads_the_prompt_before_either_answer():
    (example,) = objective()(PreferenceRecord("why?", "so", "no!", HERE))
    prompt = [BOS, USER, *ids("why?", EOS), ASSISTANT]
    assert sides(example) == [(prompt + ids("so"), ids("so", EOS)), (prompt + ids("no!"), ids("no!", EOS))]
    assert not example.cut


def test_of_a_conversation_only_the_answers_are_scored():
    turns = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    (example,) = objective()(PreferenceRecord(turns, "d", "e", HERE))
    start = [BOS, SYSTEM, *ids("s", EOS), USER, *ids("a", EOS), ASSISTANT, *ids("b", EOS), USER, *ids("c", EOS)]
    assert sides(example) == [([*start, ASSISTANT, *ids(text)], ids(text, EOS)) for text in ("d", "e")]


def test_a_continuation_has_no_roles():
    (example,) = objective(format=RAW.plain())(PreferenceRecord("once ", "upon", "a", HERE))
    assert sides(example) == [
        ([BOS, *ids("once upon")], ids("upon", EOS)),
        ([BOS, *ids("once a")], ids("a", EOS)),
    ]


def test_an_encoder_reads_the_source_once():
    framing = Framing(suffix=(EOS,), decoder_start=(BOS,), end=(EOS,))
    (example,) = objective(max_source_length=8, framing=framing)(PreferenceRecord("abc", "d", "ef", HERE))
    assert example.source_ids.tolist() == ids("abc", EOS)
    assert sides(example) == [([BOS, *ids("d")], ids("d", EOS)), ([BOS, *ids("ef")], ids("ef", EOS))]
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    with pytest.raises(ConfigError, match="the base model reads none"):
        objective(max_source_length=8)(PreferenceRecord(turns, "d", "e", HERE))
    (example,) = objective(max_source_length=32, format={"kind": "tokens"})(PreferenceRecord(turns, "d", "e", HERE))
    assert [scored for _, scored in sides(example)] == [ids("d", EOS), ids("e", EOS)]
    assert example.source_ids.tolist().count(USER) == 2


def test_of_what_is_too_long_both_sides_lose_the_same_beginning_and_then_the_end_of_the_answer():
    make = objective(max_length=10, format=RAW.plain())
    (example,) = make(PreferenceRecord("0123456789", "abc", "d", HERE))
    assert sides(example) == [
        ([BOS, *ids("456789abc")], ids("abc", EOS)),
        ([BOS, *ids("456789d")], ids("d", EOS)),
    ]
    assert example.cut
    (example,) = make(PreferenceRecord("0123456789", "a" * 20, "d", HERE))
    assert sides(example) == [([BOS, *ids("9aaaaaaaa")], ids("aaaaaaaaa")), ([BOS, *ids("9d")], ids("d", EOS))]
    with pytest.raises(BadRecord, match="the same within the first 10 tokens"):
        make(PreferenceRecord("0123456789", "a" * 20, "a" * 30, HERE))


def test_of_a_conversation_that_is_too_long_the_oldest_turns_go_from_both_sides():
    turns = tuple(Message(role, text) for role, text in [("system", "s"), ("user", "abcdef"), ("assistant", "ghi")])
    record = PreferenceRecord((*turns, Message("user", "j")), "k", "lm", HERE)
    (whole,) = objective()(record)
    assert not whole.cut
    (example,) = objective(max_length=12)(record)
    prompt = [BOS, SYSTEM, *ids("s", EOS), USER, *ids("j", EOS), ASSISTANT]
    assert sides(example) == [(prompt + ids(text), ids(text, EOS)) for text in ("k", "lm")]
    assert example.cut


def test_other_records_are_refused():
    with pytest.raises(ConfigError, match="cannot serve"):
        build_objective(CausalLmObjective(), ByteTokenizer(), max_length=8)(PreferenceRecord("a", "b", "c", HERE))


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)

    def text():
        return "x" * int(draw.integers(1, 12))

    lines = [{"prompt": f"{number} {text()}", "chosen": text() + "a", "rejected": text()} for number in range(50)]
    write_jsonl(tmp_path / "pairs.jsonl", lines)
    return data_config(SOURCE, objective={"kind": "dpo"}, validation={"fraction": 0.2})


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_batch_is_a_pass_over_all_pairs_with_documents_of_their_own(corpus, ranks):
    options = {"batch_tokens": 200, "length": 64, "seed": 0, "world_size": ranks}
    parts = [list(every_batch(corpus, objective(), rank=rank, **options)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    batches = [batch for part in parts for batch in part]
    offsets = [origin.offset for batch in batches for row in batch.origins for origin in row]
    assert len(offsets) == len(set(offsets)) == 50
    assert sum(batch.num_scored_rows for batch in batches) == 50
    for batch in batches:
        assert batch.separate
        assert batch.source_ids is None
        for answer in (1, 2):
            place = batch.segment_ids == answer
            counts = place.sum(-1)
            assert all(batch.positions[row][place[row]].tolist() == list(range(n)) for row, n in enumerate(counts))
        assert (batch.positions[batch.segment_ids == 0] == 0).all()


def test_the_stream_gives_whole_pairs_and_leaves_out_those_that_are_held_out(corpus):
    stream = train_stream(corpus, objective(), batch_tokens=200, length=64, seed=0)
    offsets = set()
    for _ in range(60):
        batch = next(stream)
        assert batch.input_ids.numel() <= 200
        assert all({1, 2} <= set(row.tolist()) for row in batch.segment_ids)
        offsets |= {origin.offset for row in batch.origins for origin in row}
    assert 30 < len(offsets) < 50
