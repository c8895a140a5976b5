"""The filters, tests and functions of templates: those of jinja2, made to pay, and our own."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from functools import wraps
from typing import Any, NoReturn

from jinja2 import filters, tests
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.utils import Namespace

from txtgen.sandbox.allowed import FREE_FILTERS, FREE_TESTS, PAID_FILTERS, PAID_TESTS
from txtgen.sandbox.budget import CHARACTERS, TooMuch, pay, pay_for, pay_times


class Refused(TemplateError):
    """A template refuses the conversation."""


class Values(Namespace):
    """namespace(), which shows nothing of what it holds."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _paid(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test of jinja2 that pays for what it is given and for what it gives, a list at once."""

    @wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        pay_for(args)
        pay_for(kwargs)
        found = function(*args, **kwargs)
        return pay_for(list(found) if isinstance(found, Iterator) else found)

    return paid


def _listed(known: Mapping[str, Any], free: Iterable[str], paid: Iterable[str]) -> dict[str, Any]:
    return {name: known[name] for name in free} | {name: _paid(known[name]) for name in paid}


def join(values: Any, d: Any = "", attribute: Any = None) -> str:
    """The filter and the method, whose result is paid before it is made."""
    if attribute is not None:
        raise SecurityError("join with an attribute is not allowed; use map before it")
    texts = [str(value) for value in pay_for(values)]
    pay_times(str(d), len(texts))
    return pay_for(str(d).join(texts))


def replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    """The filter and the method, whose result is paid before it is made."""
    text, old, new = str(pay_for(text)), str(pay_for(old)), str(pay_for(new))
    times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    pay(times * (1 + len(new)) // CHARACTERS)
    return str(text.replace(old, new, -1 if count is None else count))


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if isinstance(width, int):
        pay(width // CHARACTERS)
    margin = width if isinstance(width, str) else " " * width
    lines = str(pay_for(text)).splitlines() or [""]
    pay_times(margin, len(lines))
    if str(text).endswith("\n"):
        lines.append("")
    kept = [line if not line and not blank else margin + line for line in lines[1:]]
    return "\n".join([margin + lines[0] if first else lines[0], *kept])


def _text(value: Any) -> str:
    return str(pay_for(value))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise SecurityError("tojson indents by 0 to 16 spaces")
    pay_for(value)
    return pay_for(
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )


FILTERS = _listed(filters.FILTERS, FREE_FILTERS, PAID_FILTERS)
FILTERS |= {"indent": _indent, "join": join, "replace": replace, "safe": _text, "tojson": _to_json}
TESTS = _listed(tests.TESTS, FREE_TESTS, PAID_TESTS)


_COLUMNS = r"(?:100|\d{0,2}+)"
_FORMAT = re.compile(rf"(?:[^%]++|%(?:\([^()]*+\))?[-+ #0]*+{_COLUMNS}(?:\.{_COLUMNS})?[hlL]?[diouxXeEfFgGcrsa%])*+")
"""What stands left of %: texts, and fields whose keys hold no parentheses, which Python would nest."""


def check_format(text: str) -> None:
    """Refuses formats that make long texts of short ones, and whatever else is not understood.

    Raises:
        TooMuch: it is one.
    """
    if not _FORMAT.fullmatch(text):
        raise TooMuch("it formats with more than 100 columns, or in a way that is not known")


def formatted_date(today: date, format: str) -> str:
    """A date as `strftime_now` writes it.

    Raises:
        SecurityError: the format holds what is no usual part of a date.
    """
    if len(format) > 100 or not re.fullmatch(r"(?:[^%]|%-?[aAbBdHIjmMpSyY]|%%)*", format):
        raise SecurityError("strftime_now takes up to 100 characters, with the usual parts of a date and no widths")
    return today.strftime(format)


def _raise_exception(message: Any) -> NoReturn:
    raise Refused(str(message))


# Functions, where jinja2 has the classes: dict[1:] would be a type, and slices do not go through the environment.


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _namespace(*args: Any, **kwargs: Any) -> Values:
    return Values(*args, **kwargs)


def _range(*args: int) -> range:
    return range(*args)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "dict": _dict,
    "namespace": _namespace,
    "raise_exception": _raise_exception,
    "range": _range,
}
