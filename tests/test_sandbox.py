"""Templates of strangers: the text that transformers renders, and no harm from hostile ones."""

import re
import time
import warnings
from contextlib import suppress
from datetime import date
from typing import Any

import pytest
from chat_templates import CHATML, TEMPLATES
from hypothesis import given, settings
from hypothesis import strategies as st

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
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template([messages], chat_template=source, add_generation_prompt=reply, **TOKENS)
    return str(rendered[0][0])


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


def test_the_date_stands_still() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y, %-d. 100%%') }}", DAY)
    assert template.render([USER], True, {}) == "26 Jul 2024, 26. 100%"


DOUBLING = "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
GROWING = {
    "loops": "{% for a in range(999) %}{% for b in range(999) %}{% for c in range(999) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "range": "{% for a in range(10**12) %}{% endfor %}",
    "earning": "{% set a = [-10**15]|map('pay a body')|list %}{{ [[1]]|map('pay each item', -10**15)|list|length }}"
    "{% for a in range(10**7) %}{% endfor %}",
    "huge range": "{{ range(10**18)|list }}",
    "conditions": "{% for a in range(999) %}{% for b in range(999) if b < 0 %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "callers": "{% macro f(n) %}{% if n %}{% call f(n-1) %}{% endcall %}{% call f(n-1) %}{% endcall %}{% endif %}"
    "{% endmacro %}{{ f(40) }}",
    "joined": DOUBLING.format(start="'ab'", step="ns.x ~ ns.x"),
    "added": DOUBLING.format(start="'ab'", step="ns.x + ns.x"),
    "added lists": DOUBLING.format(start="[1]", step="ns.x + ns.x"),
    "nested lists": DOUBLING.format(start="[1]", step="[ns.x, ns.x]"),
    "nested dicts": DOUBLING.format(start="{}", step="{'a': ns.x, 'b': ns.x}") + "{{ ns.x }}",
    "formatted": DOUBLING.format(start="'ab'", step="'%s%s' % (ns.x, ns.x)"),
    "set blocks": "{% set x %}{% for i in range(9999) %}" + "x" * 9_000 + "{% endfor %}{% endset %}",
    "output": "{% for i in range(9999) %}" + "x" * 9_000 + "{% endfor %}",
    "times": "{{ 'a' * 10**9 }}",
    "times turned": "{{ 10**9 * 'a' }}",
    "list times": "{{ [1] * 10**9 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "small power": "{{ 2 ** 70 }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "star": "{{ '%*d' % (10**9, 1) }}",
    "precision": "{{ '%.1000000000f' % 1 }}",
    "join": "{{ range(999)|join('a' * 99999) }}",
    "join method": "{{ ('a' * 99999).join(['b'] * 999) }}",
    "replace": "{{ ('a' * 99999)|replace('a', 'b' * 9999) }}",
    "replace nothing": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "indent": "{{ ('a\\n' * 99999)|indent(99999) }}",
    "compare": "{% set a = [0] * 9999 %}{% set b = [0] * 9999 %}{% for i in range(9999) %}{% if a == b %}{% endif %}"
    "{% endfor %}",
    "contain": "{% set a = 'a' * 999999 %}{% for i in range(99999) %}{% if 'ab' in a %}{% endif %}{% endfor %}",
    "slices": "{% set a = 'a' * 999999 %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "list slices": "{% set a = [0] * 9999 %}{% for i in range(9999) %}{% set b = a[1:] %}{% endfor %}",
    "methods": "{% set a = 'ß' * 99999 %}{% for i in range(9999) %}{% set b = a.upper() %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep text": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep sums": "{{ " + "+".join(["1"] * 5000) + " }}",
    "deep nots": "{{ " + "not " * 20_000 + "1 }}",
    "deep loops": "{% for i in [1] %}" * 25 + "{% endfor %}" * 25,
    "braces": "{" * 90_000,
    "comments": "{#" * 20_000,
    "many parts": "{{ a }}" * 14_000,
    "digits": "{{ " + "9" * 5000 + " }}",
    "json": DOUBLING.format(start="[1]", step="[ns.x]") * 40 + "{{ ns.x|tojson(indent=99999) }}",
}
REACHING = {
    "classes": "{{ ''.__class__.__mro__ }}",
    "class items": "{{ ''['__class__'] }}",
    "class attributes": "{{ messages|map(attribute='__class__')|list|join }}{{ [1]|attr('__class__') }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "functions": "{{ raise_exception.__globals__ }}",
    "macro": "{% macro f() %}{% endmacro %}{{ f._func }}",
    "loop": "{% for m in messages %}{{ loop._iterable }}{% endfor %}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "center method": "{{ 'a'.center(10**9) }}",
    "lipsum": "{{ lipsum(10**9) }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'x' as y %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "append": "{{ messages.append(1) }}",
    "pop": "{{ messages[0].pop('role') }}",
    "call": "{{ messages() }}",
    "date": "{{ strftime_now('%1000000000d') }}",
    "escaping": "{% autoescape true %}{% endautoescape %}",
    "syntax": "{% if %}",
    "zero": "{{ 1 // 0 }}",
    "types": "{{ 'a' + none }}",
}


@pytest.mark.parametrize("source", [*GROWING.values(), *REACHING.values()], ids=[*GROWING, *REACHING])
def test_hostile_templates_fail_at_once(source: str) -> None:
    began = time.process_time()
    with pytest.raises(CheckpointError, match="chat template cannot be used") as caught:
        ChatTemplate(source, DAY).render([USER], True, TOKENS)
    assert time.process_time() - began < 3, "a second and what a busy machine adds"
    assert caught.value.where == "format.template"
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "source",
    [
        "{{ namespace({'__class__': 1})['__class__'] }}",
        "{{ messages|map(attribute='__class__')|list|length }}",
        "{{ messages['__class__'] }}{{ raise_exception['__globals__'] }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ [ns, ns] }}{{ ns['_Namespace__attrs'] }}",
        "{% macro f() %}{% endmacro %}{{ f['_func'] }}{{ f.name }}",
        "{% for m in messages %}{{ loop['_iterable'] }}{% endfor %}",
    ],
)
def test_what_is_within_cannot_be_reached(source: str) -> None:
    try:
        found = ChatTemplate(source, DAY).render([USER], True, TOKENS)
    except CheckpointError:
        return
    assert found in ("", "1", "[<Namespace>, <Namespace>]")


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


PARTS = st.sampled_from(
    re.findall(
        r"\S+|\n",
        "{{ }} {% %} {# #} {%- -%} for in if endfor endif else macro endmacro set messages loop namespace ( ) [ ] ' 1 "
        "range ** * + ~ | tojson join map . __class__ content m = == , : \n",
    )
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PARTS, max_size=30).map(" ".join) | st.text(max_size=30))
def test_any_text_is_rendered_or_refused(source: str) -> None:
    with suppress(CheckpointError, DataError):
        ChatTemplate(source, DAY).render([USER], True, TOKENS)
