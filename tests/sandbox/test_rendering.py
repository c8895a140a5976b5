"""Templates of strangers: the text that transformers renders."""

import warnings
from datetime import date

import pytest
from chat_templates import CHATML, TEMPLATES

from txtgen.errors import CheckpointError, DataError
from txtgen.sandbox import ChatTemplate

DAY = date(2024, 7, 26)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM, USER, ASSISTANT = (
    {"role": "system", "content": "  Answer in verse.\n"},
    {"role": "user", "content": " Why is the sky blue? \n"},
    {"role": "assistant", "content": "\n<think>\nhm\n</think>\n\nBecause of x < y & 'z'. "},
)
CONVERSATIONS = {
    "user": [USER],
    "reply": [USER, ASSISTANT],
    "more": [USER, ASSISTANT, USER],
    "system": [SYSTEM, USER],
    "all": [SYSTEM, USER, ASSISTANT, USER, {"role": "assistant", "content": "Yes."}],
    "two replies": [USER, ASSISTANT, ASSISTANT],
    "empty": [{"role": "user", "content": ""}],
}


def transformers_text(source: str, messages: list[dict[str, str]], reply: bool) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers")
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=reply, **TOKENS)
    return rendered[0]


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("style", TEMPLATES)
def test_equals_transformers(style: str, conversation: str, reply: bool) -> None:
    messages = CONVERSATIONS[conversation]
    template = ChatTemplate(TEMPLATES[style], DAY)
    try:
        expected = transformers_text(TEMPLATES[style], messages, reply)
    except Exception as error:
        told = str(error)
        with pytest.raises(DataError, match="refuses the conversation") as caught:
            template.render(messages, reply, TOKENS)
        assert told in str(caught.value)
    else:
        assert template.render(messages, reply, TOKENS) == expected


def test_undefined_names_are_nothing() -> None:
    source = "{{ nothing }}{% if tools %}x{% endif %}{{ messages[0].name }}{% for a in gone %}{{ a }}{% endfor %}|"
    assert ChatTemplate(source, DAY).render([USER], True, {}) == "|"
    with pytest.raises(CheckpointError, match=r"UndefinedError: 'a' is undefined"):
        ChatTemplate("{{ a.b }}", DAY).render([USER], True, {})


def test_formats_of_percent_are_those_of_python() -> None:
    source = "{{ '%s|%-5d|%+.2f|%(a b)s|%%' | string }}{{ '%(a b)5.1f%% %(c)#x' % {'a b': 2, 'c': 255} }}"
    assert ChatTemplate(source, DAY).render([USER], True, {}) == "%s|%-5d|%+.2f|%(a b)s|%%" + "  2.0% 0xff"
    assert ChatTemplate("{{ '%-100s|%03d' % ('a', 7) }}", DAY).render([USER], True, {}) == "a" + " " * 99 + "|007"


def test_the_date_stands_still() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y, %-d. 100%%') }}", DAY)
    assert template.render([USER], True, {}) == "26 Jul 2024, 26. 100%"


def test_what_a_template_raises_is_escaped() -> None:
    template = ChatTemplate("{{ raise_exception('\x1b[2J' ~ 'no \u202e' ~ 'a' * 9999) }}", DAY)
    with pytest.raises(DataError, match=r"refuses the conversation: \\x1b\[2Jno \\u202ea+; messages") as caught:
        template.render([USER], True, TOKENS)
    assert len(caught.value.what) < 400


def test_long_conversations_are_rendered() -> None:
    turns = [{"role": role, "content": "long " * 200} for _ in range(300) for role in ("user", "assistant")]
    for source in TEMPLATES.values():
        ChatTemplate(source, DAY).render(turns, True, TOKENS)
    text = ChatTemplate(CHATML, DAY).render([{"role": "user", "content": "a" * 3_000_000}], True, TOKENS)
    assert len(text) > 3_000_000
