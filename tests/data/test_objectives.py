import numpy as np
import pytest
from data_fakes import BOS, CONTROL, EOS, ByteTokenizer, data_config, objective_of
from hypothesis import given
from hypothesis import strategies as st

from txtgen.config.objectives import CausalLmObjective
from txtgen.config.tokenizer import Framing
from txtgen.data import build_objective
from txtgen.data.examples import Examples, Span
from txtgen.data.types import IGNORE, BadRecord, ChatRecord, Message, Origin, PairRecord, TextRecord
from txtgen.errors import CheckpointError, ConfigError

HERE = Origin(0, "x", 0)
SYSTEM, USER, ASSISTANT = CONTROL.values()
TSV = {"kind": "tsv", "path": "x"}


def objective(kind, max_length=64, max_source_length=None, **settings):
    source = {"path": "x"} if kind == "causal_lm" else TSV
    return objective_of(data_config(source, objective={"kind": kind, **settings}), max_length, max_source_length)


def ids(*parts):
    """Token ids from text and ids."""
    return [token for part in parts for token in (part.encode() if isinstance(part, str) else [part])]


def chat(*turns):
    return ChatRecord(tuple(Message(*turn) for turn in turns), HERE)


@pytest.mark.parametrize(
    ("begins", "ends", "inputs", "labels"),
    [
        (True, True, ids(BOS, "abc"), ids("abc", EOS)),
        (True, False, ids(BOS, "ab"), ids("abc")),
        (False, True, ids("abc"), ids("bc", EOS)),
        (False, False, ids("ab"), ids("bc")),
    ],
)
def test_causal_lm_borders(begins, ends, inputs, labels):
    (example,) = objective("causal_lm")(TextRecord("abc", HERE, begins, ends))
    assert (example.input_ids.tolist(), example.labels.tolist()) == (inputs, labels)


def test_causal_lm_of_one_token_in_the_middle_is_nothing_and_of_a_megabyte_is_all_of_it():
    causal = objective("causal_lm", max_length=8)
    assert causal(TextRecord("a", HERE, False, False)) == []
    text = "long text " * 105_000
    (example,) = causal(TextRecord(text, HERE))
    assert not example.cut
    assert ByteTokenizer().decode(example.labels.tolist()) == text
    assert causal.scored_bytes(example.labels) == len(text)


@given(
    st.lists(
        st.builds(
            TextRecord,
            st.text("ab", max_size=3),
            st.builds(Origin, st.just(0), st.just("x"), st.integers(0)),
            st.booleans(),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(0, 2),
)
def test_causal_lm_of_many_texts_is_that_of_each(records, prefix):
    framing = Framing(prefix=(BOS,) * prefix, end=(EOS,))
    causal = build_objective(CausalLmObjective(), ByteTokenizer(), max_length=64, framing=framing)
    found = causal.columns(records, range(len(records)))
    expected = []
    for number, record in enumerate(records):
        tokens = [BOS] * prefix * record.begins + ids(record.text) + [EOS] * record.ends
        if len(tokens) > 1:
            expected.append((number, record.origin, tokens[:-1], tokens[1:]))
    examples = Span(found, 0, len(found)).each()
    assert [
        (number, example.origin, example.input_ids.tolist(), example.labels.tolist())
        for number, example in zip(found.records, examples, strict=True)
    ] == expected
    assert all(example.splittable and not example.cut for example in examples)


def test_outcomes_in_columns_are_the_same_outcomes():
    kinds = ("span_corruption", "prefix_lm", "fill_in_middle", "causal_lm", "chat", "seq2seq")
    records = [TextRecord("some text " * 30, HERE), PairRecord("a", "b", HERE), chat(("user", "hi"))]
    for kind in kinds:
        settings = {"num_sentinels": 40} if kind == "span_corruption" else {}
        made = objective(kind, 64, 64 if kind == "seq2seq" else None, **settings)
        outcomes = []
        for record in records:
            try:
                outcomes += made.batch([record], [5])
            except ConfigError:  # not for this objective
                outcomes.append([])
        again = Examples.of(outcomes).outcomes(len(outcomes))
        assert any(outcomes)
        for one, other in zip(outcomes, again, strict=True):
            if isinstance(one, BadRecord):
                assert one is other
            else:
                assert [plain_example(e) for e in one] == [plain_example(e) for e in other]


def plain_example(example):
    arrays = (example.input_ids, example.labels, example.source_ids)
    flags = (example.origin, example.bidirectional, example.splittable, example.cut)
    return [None if array is None else array.tolist() for array in arrays], flags


def test_chat_scores_the_content_and_end_of_the_chosen_roles():
    (example,) = objective("chat")(chat(("system", "s"), ("user", "hi"), ("assistant", "yo"), ("user", "bye")))
    tokens = ids(BOS, SYSTEM, "s", EOS, USER, "hi", EOS, ASSISTANT, "yo", EOS, USER, "bye", EOS)
    assert example.input_ids.tolist() == tokens[:-1]
    scored = [label for label in example.labels.tolist() if label != IGNORE]
    assert scored == ids("yo", EOS)
    assert all(label in (IGNORE, following) for label, following in zip(example.labels, tokens[1:], strict=True))


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def template_objective(kind, template=TEMPLATE, **settings):
    format = {"kind": "template", "template": template, "bos_token": "<s>", "eos_token": "</s>"}
    return objective(kind, format=format, **settings)


def test_a_template_writes_its_own_beginning_and_the_replies_are_scored():
    turns = chat(("user", "hi</s>"), ("assistant", "yo"), ("user", "bye"), ("assistant", ""))
    (example,) = template_objective("chat")(turns)
    tokens = ids(BOS, USER, "hi</s>", EOS, ASSISTANT, "yo", EOS, USER, "bye", EOS, ASSISTANT, EOS)
    assert example.input_ids.tolist() == tokens[:-1]
    assert [label for label in example.labels.tolist() if label != IGNORE] == ids("yo", EOS, EOS)
    assert all(label in (IGNORE, following) for label, following in zip(example.labels, tokens[1:], strict=True))
    first, second = template_objective("seq2seq")(turns)
    assert first.source_ids.tolist() == ids(BOS, USER, "hi</s>", EOS, ASSISTANT, EOS)
    assert second.labels.tolist() == [EOS]


@pytest.mark.parametrize("kind", ["chat", "seq2seq"])
def test_a_conversation_that_a_template_refuses_is_a_bad_record(kind):
    with pytest.raises(BadRecord, match="refuses the conversation: no system"):
        template_objective(kind)(chat(("system", "s"), ("user", "a"), ("assistant", "b")))
    with pytest.raises(CheckpointError, match="chat template cannot be used"):
        template_objective(kind, "{{ a.b }}")(chat(("user", "a"), ("assistant", "b")))


def test_a_template_that_rewrites_what_was_said_stops_the_run():
    template = "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' }};{% endfor %}"
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    with pytest.raises(ConfigError, match="turn by turn"):
        template_objective("chat", template)(chat(*turns))


def test_chat_of_a_pair_is_a_question_and_its_answer():
    a = objective("chat")(PairRecord("q", "a", HERE))[0]
    b = objective("chat")(chat(("user", "q"), ("assistant", "a")))[0]
    assert np.array_equal(a.input_ids, b.input_ids)
    assert np.array_equal(a.labels, b.labels)


def test_a_conversation_without_anything_to_learn_is_bad():
    with pytest.raises(BadRecord, match="no turn of assistant;"):
        objective("chat")(chat(("user", "hi")))
    with pytest.raises(BadRecord, match="within the first 10 tokens"):
        objective("chat", max_length=10)(chat(("user", "a long question"), ("assistant", "a")))
    assert objective("chat", roles=["user", "assistant"])(chat(("user", "hi")))


def test_a_long_conversation_is_cut():
    whole = objective("chat")(chat(("user", "hi"), ("assistant", "a long answer")))[0]
    cut = objective("chat", max_length=9)(chat(("user", "hi"), ("assistant", "a long answer")))[0]
    assert (whole.cut, cut.cut) == (False, True)
    assert np.array_equal(cut.input_ids, whole.input_ids[:9])
    assert np.array_equal(cut.labels, whole.labels[:9])


def test_seq2seq_of_a_pair():
    (example,) = objective("seq2seq")(PairRecord("source", "target", HERE))
    assert example.source_ids.tolist() == ids("source", EOS)
    assert example.input_ids.tolist() == ids(BOS, "target")
    assert example.labels.tolist() == ids("target", EOS)
    assert not example.cut


@given(st.text("ab", max_size=8), st.text("ab", max_size=8))
def test_seq2seq_cuts_what_is_too_long(source, target):
    (example,) = objective("seq2seq", max_length=5, max_source_length=4)(PairRecord(source, target, HERE))
    assert example.source_ids.tolist() == ids(source[:3], EOS)
    assert example.labels.tolist() == ids(target, EOS)[:5]
    assert example.input_ids.tolist() == ids(BOS, target)[:5]
    assert example.cut == (len(source) > 3 or len(target) > 4)


def test_seq2seq_of_a_conversation_has_an_example_for_every_reply():
    turns = [("assistant", "welcome"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    examples = objective("seq2seq")(chat(*turns))
    opening = ids(ASSISTANT, "welcome", EOS, USER, "a", EOS)
    assert [example.source_ids.tolist() for example in examples] == [
        [*opening, ASSISTANT, EOS],
        [*opening, *ids(ASSISTANT, "b", EOS, USER, "c", EOS, ASSISTANT, EOS)],
    ]
    assert [example.labels.tolist() for example in examples] == [ids("b", EOS), ids("d", EOS)]
    (_, last) = objective("seq2seq", max_source_length=4)(chat(*turns))
    assert last.source_ids.tolist() == ids("c", EOS, ASSISTANT, EOS)
    assert last.cut
    with pytest.raises(BadRecord, match="no assistant turn"):
        objective("seq2seq")(chat(("assistant", "hello")))


def test_pairs_and_conversations_in_one_batch_keep_their_order():
    records = [PairRecord("a", "b", HERE), chat(("user", "c"), ("assistant", "d")), PairRecord("e", "f", HERE)]
    outcomes = objective("seq2seq").batch(records, range(len(records)))
    assert [outcome[0].labels.tolist() for outcome in outcomes] == [ids(text, EOS) for text in "bdf"]


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("causal_lm", PairRecord("a", "b", HERE)),
        ("chat", TextRecord("a", HERE)),
        ("seq2seq", TextRecord("a", HERE)),
    ],
)
def test_records_that_do_not_fit_the_objective(kind, record):
    with pytest.raises(ConfigError, match="cannot serve the objective"):
        objective(kind)(record)


def test_bytes_are_those_of_the_scored_text():
    example = objective("chat")(chat(("user", "not this"), ("assistant", "aü世"), ("user", "nor this")))[0]
    assert objective("chat").scored_bytes(example.labels) == len("aü世".encode())
