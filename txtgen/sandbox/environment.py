"""Where a template runs: what it can reach, and that every operation is paid."""

from datetime import date
from functools import partial
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from txtgen.sandbox.allowed import LOOP, METHODS
from txtgen.sandbox.budget import pay, pay_for, pay_times
from txtgen.sandbox.functions import FILTERS, FUNCTIONS, TESTS, Values, check_format, formatted_date, join, replace
from txtgen.sandbox.metering import METERING_FILTERS


class _Generation(Extension):
    """{% generation %} marks what is learnt; here it is a scope and no more."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Scope:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with lists of what exists, every operation paid.

    Args:
        today: what `strftime_now` tells.
    """

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, today: date) -> None:
        extensions = [_Generation, LoopControlExtension]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=pay_for)
        self.filters, self.tests = FILTERS | METERING_FILTERS, TESTS
        self.globals = {**FUNCTIONS, "strftime_now": partial(formatted_date, today)}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute that is listed, or else the item of that name."""
        if isinstance(obj, Undefined):
            return getattr(obj, attribute)  # raises
        kind = type(obj)
        if kind in METHODS and hasattr(kind, attribute):
            if attribute in METHODS[kind]:
                return getattr(obj, attribute)
            raise SecurityError(f"{kind.__name__}.{attribute} is not allowed")
        if kind is LoopContext and attribute in LOOP:
            return getattr(obj, attribute)
        return self._item(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item, or else the listed attribute of that name."""
        found = self._item(obj, argument)
        if isinstance(found, Undefined) and isinstance(argument, str) and type(obj) in METHODS:
            return self.getattr(obj, argument)
        return found

    def _item(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            return obj[argument]  # raises
        try:
            if isinstance(obj, Values) and isinstance(argument, str) and not argument.startswith("_"):
                return getattr(obj, argument)
            if type(obj) in METHODS or isinstance(obj, range):
                return obj[argument]
        except (AttributeError, TypeError, LookupError):
            pass
        return self.undefined(obj=obj, name=argument)

    def call(self, context: Context, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The result of a listed method or function, or of a macro."""
        for name in ("_loop_vars", "_block_vars"):
            kwargs.pop(name, None)  # the compiled code hands its variables on
        if isinstance(callee, Macro | Undefined):
            return context.call(callee, *args, **kwargs)
        pay_for(args)
        pay_for(kwargs)
        receiver, name = getattr(callee, "__self__", None), getattr(callee, "__name__", "")
        if type(receiver) is LoopContext and name in LOOP:
            return callee(*args, **kwargs)
        if any(callee is function for function in self.globals.values()):
            return pay_for(callee(*args, **kwargs))
        if name not in METHODS.get(type(receiver), ()):
            raise SecurityError(f"a {type(callee).__name__} is called, which is not allowed")
        pay_for(receiver)
        if isinstance(receiver, str) and name == "join":
            return join(args[0] if args else (), receiver)
        if isinstance(receiver, str) and name == "replace":
            return replace(receiver, *args, **kwargs)
        found = callee(*args, **kwargs)
        return pay_for(list(found) if name in ("items", "keys", "values") else found)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator."""
        if operator == "*":
            value, times = (right, left) if isinstance(left, int | float) else (left, right)
            if isinstance(times, int) and not isinstance(value, int | float):
                pay_times(value, times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            pay(right * left.bit_length())
        elif operator == "%" and isinstance(left, str):
            check_format(left)
            pay_times(right, left.count("%"))
        return pay_for(super().call_binop(context, operator, pay_for(left), pay_for(right)))
