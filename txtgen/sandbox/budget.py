"""What a rendering may spend, in units of steps and sizes: no clock, so a template always ends in the same way."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeVar

from jinja2.exceptions import SecurityError, TemplateError

Value = TypeVar("Value")

UNITS = 400_000
"""What a rendering may spend, beside one for each character of its messages: about half a second."""

CHARACTERS = 64
"""So many characters cost a unit."""

MAX_OUTPUT = 1_000_000
"""Characters of a rendered conversation, beside four times those of its messages."""


class TooMuch(TemplateError):
    """A template is too large, or has spent what it had."""


class _Budget:
    def __init__(self, units: int) -> None:
        self.left = units

    def pay(self, units: int) -> None:
        self.left -= max(units, 0)  # nothing earns
        if self.left < 0:
            raise TooMuch("it loops, or makes texts, without end")


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def spending(units: int) -> Iterator[None]:
    """With so many units to spend."""
    token = _budget.set(_Budget(units))
    try:
        yield
    finally:
        _budget.reset(token)


def pay(units: int) -> None:
    """Spends units.

    Raises:
        TooMuch: no more are left.
    """
    _budget.get().pay(units)


def pay_for(value: Value) -> Value:
    """The value, paid by its size: texts by their length, what holds others with all in it.

    Raises:
        TooMuch: it costs more than is left, or holds a number of more than 64 bits.
        SecurityError: it is or holds a function, whose text would tell an address.
    """
    budget = _budget.get()
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        match item:
            case str():
                budget.pay(1 + len(item) // CHARACTERS)
            case list() | tuple() | set():
                budget.pay(1 + len(item))
                stack += item
            case dict():
                budget.pay(1 + len(item))
                stack += [*item.keys(), *item.values()]
            case range():
                budget.pay(1 + len(item))
            case int() if item.bit_length() > 64:
                raise TooMuch("it makes numbers of more than 64 bits")
            case FunctionType() | MethodType() | BuiltinFunctionType() | partial():
                raise SecurityError("a function is used as a value, not called")
            case _:
                budget.pay(1)
    return value


def pay_times(value: Any, times: int) -> None:
    """Pays for so many copies of a value, and for one at least.

    Raises:
        TooMuch: as `pay_for`.
    """
    budget = _budget.get()
    before = budget.left
    pay_for(value)
    budget.pay((before - budget.left) * (times - 1))
