"""Conversations as examples: what is learnt of them, what becomes of long ones, and what is said of odd ones."""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from data_fakes import BOS, EOS, ByteTokenizer, data_config, objective_of, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from txtgen.chat import encode_chat
from txtgen.config.chat_formats import TextChatFormat, TokensChatFormat
from txtgen.config.loader import load_config
from txtgen.config.model import DecoderConfig
from txtgen.config.objectives import ChatObjective
from txtgen.config.runs import FinetuneConfig
from txtgen.data import StreamReport, build_objective, train_stream
from txtgen.data.report import MAX_NAMED, Oddity
from txtgen.data.types import IGNORE, BadRecord, ChatRecord, Message, Origin
from txtgen.data.workers import sum_up
from txtgen.errors import ConfigError, DataError
from txtgen.model import build_model

HERE = Origin(0, "x", 0)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORMATS = {
    "tokens": {"kind": "tokens"},
    "text": {"kind": "text"},
    "template": {"kind": "template", "template": TEMPLATE, "bos_token": "<s>"},
}
WORDS = st.text("abc", min_size=1, max_size=9)
EXCHANGES = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=7)


def chat(*turns):
    return ChatRecord(tuple(Message(*turn) for turn in turns), HERE)


def chat_objective(max_length=64, **settings):
    data = data_config({"kind": "chat", "path": "x"}, objective={"kind": "chat", **settings})
    return objective_of(data, max_length)


def seq2seq_objective(max_length=64, max_source_length=64):
    data = data_config({"kind": "chat", "path": "x"}, objective={"kind": "seq2seq"})
    return objective_of(data, max_length, max_source_length)


def turns_of(exchanges, system=""):
    opening = [("system", system)] if system else []
    return opening + [turn for q, a in exchanges for turn in (("user", q), ("assistant", a))]


def learnt(example):
    """The scored texts of an example, each up to and without its end."""
    labels = [label for label in example.labels.tolist() if label != IGNORE]
    return bytes(label if label != EOS else 0 for label in labels).decode().split("\0")


@pytest.mark.parametrize("format", FORMATS)
@given(exchanges=EXCHANGES, system=st.sampled_from(["", "be kind"]))
def test_the_end_of_every_scored_turn_is_learnt(format, exchanges, system):
    turns = turns_of(exchanges, system)
    (example,) = chat_objective(1000, format=FORMATS[format])(chat(*turns))
    assert (example.labels == EOS).sum() == len(exchanges)
    for place in np.flatnonzero(example.labels == EOS):
        assert example.labels[place - 1] != IGNORE  # it ends what was learnt, and is not alone
    closing = "\n" if format == "template" else ""
    texts = learnt(example)
    assert [text.removeprefix(closing) for text in texts] == [answer for _, answer in exchanges] + [""]


@given(exchanges=EXCHANGES)
def test_with_two_roles_both_learn_to_end(exchanges):
    (example,) = chat_objective(1000, roles=["user", "assistant"])(chat(*turns_of(exchanges)))
    assert (example.labels == EOS).sum() == 2 * len(exchanges)


def test_a_role_whose_turns_would_never_end_is_refused():
    with pytest.raises(ValueError, match=r"format\.user.*says nothing after \{content\}"):
        ChatObjective(roles=("user",), format=TextChatFormat(user="User: {content}"))
    ChatObjective(roles=("user", "assistant"), format=TextChatFormat())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("system", ["", "be kind"])
@settings(max_examples=30)
@given(exchanges=EXCHANGES, length=st.integers(50, 90))
def test_a_long_conversation_is_split_and_every_turn_is_learnt_once(format, system, exchanges, length):
    turns = turns_of(exchanges, system)
    objective = chat_objective(length, format=FORMATS[format])
    examples = objective(chat(*turns))
    texts = [text.strip("\n") for example in examples for text in learnt(example)[: (example.labels == EOS).sum()]]
    assert texts == [answer for _, answer in exchanges]
    assert all(len(example.labels) <= length for example in examples)
    assert [example.cut for example in examples] == [len(examples) > 1] + [False] * (len(examples) - 1)
    # Each part is what a conversation of these very turns gives, and no two neighbours would fit into one.
    groups, rest = [], list(exchanges)
    for example in examples:
        count = int((example.labels == EOS).sum())
        groups.append(rest[:count])
        del rest[:count]
        (alone,) = objective(chat(*turns_of(groups[-1], system)))
        assert np.array_equal(alone.input_ids, example.input_ids)
        assert np.array_equal(alone.labels, example.labels)
    for one, other in pairwise(groups):
        assert len(objective(chat(*turns_of([one[-1], *other], system)))) > 1


@pytest.mark.parametrize("format", ["tokens", "text"])
@pytest.mark.parametrize("roles", [("system", "assistant"), ("system", "user", "assistant"), ("system", "user")])
@settings(max_examples=30)
@given(exchanges=EXCHANGES, asked=st.lists(WORDS, max_size=2), length=st.integers(50, 90))
def test_a_system_message_before_every_part_is_learnt_in_the_first(format, roles, exchanges, asked, length):
    """Every scored turn once, also where what is left before the parts is the system message and unanswered turns."""
    turns = [("system", "be kind"), *(("user", each) for each in asked), *turns_of(exchanges)]
    options = {"format": FORMATS[format] if format == "tokens" else {**FORMATS[format], "system": "{content}\1"}}
    if format == "text":
        options["format"] |= {"user": "User: {content}\1", "assistant": "Assistant: {content}\1"}
    objective = chat_objective(length, roles=roles, **options)
    examples = objective(chat(*turns))
    texts = [text.strip("\1") for each in examples for part in learnt(each) for text in part.split("\1")]
    assert [text for text in texts if text] == [content for role, content in turns if role in roles]
    assert all("be kind" in ByteTokenizer().decode(each.input_ids) for each in examples)


def test_only_the_system_message_is_learnt_of_a_conversation_without_other_scored_turns():
    turns = turns_of([("a long question " * 2, "a long answer " * 2)], "be kind")
    (example,) = chat_objective(40, roles=["system"])(chat(*turns))
    assert learnt(example) == ["be kind", ""]


@given(exchanges=EXCHANGES, length=st.integers(50, 90), system=st.sampled_from(["", "be kind"]))
def test_the_oldest_turns_are_dropped(exchanges, length, system):
    record = chat(*turns_of(exchanges, system))
    (example,) = chat_objective(length, long_conversations="drop_oldest")(record)
    last = chat_objective(length)(record)[-1]
    assert np.array_equal(example.labels, last.labels)
    assert example.cut == (len(chat_objective(length)(record)) > 1)


def test_what_is_said_after_the_last_scored_turn_goes_first():
    turns = [("user", "hi"), ("assistant", "yo"), ("user", "a very long question that nobody answers")]
    (example,) = chat_objective(12)(chat(*turns))
    assert learnt(example) == ["yo", ""]
    assert example.cut


def test_a_turn_that_is_too_long_by_itself_is_cut_at_its_end():
    turns = turns_of([("a", "b"), ("q", "long answer " * 9), ("c", "d")])
    first, second, third = chat_objective(20)(chat(*turns))
    assert learnt(second) == [("long answer " * 9)[: 20 - 4]]
    assert (learnt(first), learnt(third)) == (["b", ""], ["d", ""])
    (cut,) = chat_objective(20, long_conversations="cut_end")(chat(*turns))
    assert learnt(cut)[0] == "b"
    assert (len(cut.labels), cut.cut) == (20, True)


def test_a_conversation_of_thousands_of_turns():
    turns = turns_of([("q", "a")] * 2_000)
    assert len(chat_objective(24)(chat(*turns))) == 500


@given(exchanges=EXCHANGES, answer=WORDS, system=st.sampled_from(["", "be kind"]))
def test_an_encoder_reads_the_latest_turns_that_fit(exchanges, answer, system):
    turns = [*turns_of(exchanges, system), ("user", "last?"), ("assistant", answer)]
    example = seq2seq_objective(64, 40)(chat(*turns))[-1]
    for count in range(len(exchanges), -1, -1):
        left = [*turns_of(exchanges[len(exchanges) - count :], system), ("user", "last?")]
        source = [*encode_chat(left, TokensChatFormat(), ByteTokenizer(), reply=True)[0], EOS]
        if len(source) <= 40:
            break
    assert example.source_ids.tolist() == source
    assert example.cut == (count < len(exchanges))


ODD = {
    "a system message after the beginning": [("user", "a"), ("system", "s"), ("assistant", "b")],
    "the assistant speaks first": [("system", "s"), ("assistant", "b"), ("user", "a"), ("assistant", "b")],
    "two turns of the user in a row": [("user", "a"), ("user", "b"), ("assistant", "c")],
    "two turns of the assistant in a row": [("user", "a"), ("assistant", "b"), ("assistant", "c")],
    "an empty turn of the user": [("user", " "), ("assistant", "b")],
    "an empty turn of the assistant": [("user", "a"), ("assistant", "")],
}
GOOD = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "bye")]


def write_chats(path, conversations):
    return write_jsonl(
        path, [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in conversations]
    )


def test_odd_conversations_are_counted_and_named_by_line(tmp_path):
    path = write_chats(tmp_path / "x.jsonl", [GOOD, *ODD.values(), GOOD, GOOD])
    data = data_config({"kind": "chat", "path": str(path)}, objective={"kind": "chat"})
    report = StreamReport()
    list(islice(train_stream(data, objective_of(data, 32), batch_tokens=64, length=32, seed=0, report=report), 30))
    assert set(report.oddities) == set(ODD)
    for line, what in enumerate(ODD, start=2):
        assert set(report.oddities[what].places) == {f"{path}:{line}"}
        assert 0 < report.oddities[what].count < report.records
    both = StreamReport()
    sum_up([report, report, StreamReport()], both)  # as of several workers
    assert both.oddities == {
        what: Oddity(2 * found.count, (found.places * 2)[:MAX_NAMED]) for what, found in report.oddities.items()
    }


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([("user", "a"), ("bot", "b")], "unknown role 'bot'; the roles are system, user, assistant"),
        ([("user", "a")], "nothing to learn: no turn of assistant"),
        ([], "the list 'messages' holds no message"),
    ],
)
def test_conversations_that_cannot_be_learnt_stop_the_run_or_are_skipped(tmp_path, messages, told):
    path = write_chats(tmp_path / "x.jsonl", [GOOD, messages])
    source = {"kind": "chat", "path": str(path)}
    data = data_config(source, objective={"kind": "chat"})
    options = {"batch_tokens": 64, "length": 32, "seed": 0}
    with pytest.raises(DataError, match=told) as caught:
        list(islice(train_stream(data, objective_of(data, 32), **options), 9))
    assert f"{path}:2" in caught.value.where
    data = data_config(source, objective={"kind": "chat"}, on_bad_record="skip", max_bad_fraction=0.5)
    report = StreamReport()
    list(islice(train_stream(data, objective_of(data, 32), **options, report=report), 9))
    assert report.bad_examples[0].startswith(f"{path}:2: {told}")


def test_a_format_with_an_unknown_role_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "data:\n  sources: [{kind: chat, path: x}]\n"
        "  objective: {kind: chat, format: {kind: text, bot: 'Bot: {content}'}}\n"
    )
    with pytest.raises(ConfigError, match="bot"):
        load_config(FinetuneConfig, path)
    path.write_text("data:\n  sources: [{kind: chat, path: x}]\n  objective: {kind: chat, roles: [bot]}\n")
    with pytest.raises(ConfigError, match="roles"):
        load_config(FinetuneConfig, path)


@pytest.mark.parametrize("mixture", [False, True])
def test_conversations_that_share_a_row_do_not_see_one_another(tmp_path, mixture):
    """Row for row, a model scores packed conversations, and documents beside them, as if each were alone."""
    chats = [turns_of([(f"q{n}", f"a{n}")] * (1 + n % 3), "s" * (n % 2)) for n in range(12)]
    sources = [{"kind": "chat", "path": str(write_chats(tmp_path / "x.jsonl", chats))}]
    objective = {"kind": "chat"}
    if mixture:
        (tmp_path / "y.txt").write_text("".join(f"some text {n}\n" for n in range(30)))
        sources.append({"path": str(tmp_path / "y.txt"), "documents": "line"})
        objective = {"kind": "mixture", "parts": [{"kind": "chat"}, {"kind": "causal_lm"}]}
    data = data_config(*sources, objective=objective)
    shape = DecoderConfig(vocab_size=307, d_model=16, num_layers=2, num_heads=2, d_ff=16, max_length=96)
    model = build_model(shape).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    built = build_objective(data.objective, ByteTokenizer(), max_length=96)
    for batch in islice(train_stream(data, built, batch_tokens=192, length=96, seed=0), 3):
        together = model(batch.input_ids, batch.positions, batch.segment_ids, separate=batch.separate)
        for row in range(2):
            segments = batch.segment_ids[row]
            assert segments.max() > 2
            for number in range(1, int(segments.max()) + 1):
                own = segments == number
                ids = batch.input_ids[row][own][None]
                alone = model(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids, dtype=torch.int32))
                assert torch.allclose(together[row][own], alone[0], atol=1e-12)
    assert BOS in ids[0].tolist() or mixture


def test_bad_records_are_told_for_every_role_that_is_missing():
    with pytest.raises(BadRecord, match="no turn of system or assistant"):
        chat_objective(roles=["system", "assistant"])(chat(("user", "hi")))
