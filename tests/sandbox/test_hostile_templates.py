"""Hostile templates do no harm: none runs without end, and none reaches what it is not given."""

import re
import time
from contextlib import suppress
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txtgen.errors import CheckpointError, DataError
from txtgen.sandbox import ChatTemplate

DAY = date(2024, 7, 26)
MESSAGES = [{"role": "user", "content": " Why is the sky blue? \n"}]

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
    "width behind a nested key": "{% set m = '%(a(b)c)600000000d' % {'a(b)c': 1} %}",
    "width behind a key": "{{ '%(a)600000000d' % {'a': 1} }}",
    "width of an indent": "{{ 'a'|indent(1000000000) }}",
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
    "function shown": "{{ raise_exception }}",
    "function joined": "{{ [dict, range]|join }}{{ [dict]|map('string')|join }}",
    "function in a list": "{{ [raise_exception] }}",
    "function appended": "{{ 'a' ~ strftime_now }}",
    "function formatted": "{{ '%s' % range }}",
    "method shown": "{{ 'a'.upper }}",
    "slice of a function": "{{ dict[1:] }}",
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
        ChatTemplate(source, DAY).render(MESSAGES, True, {})
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
        found = ChatTemplate(source, DAY).render(MESSAGES, True, {})
    except CheckpointError:
        return
    assert found in ("", "1", "[<Namespace>, <Namespace>]")


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
        ChatTemplate(source, DAY).render(MESSAGES, True, {})
