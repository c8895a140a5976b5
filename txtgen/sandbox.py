"""Chat templates of imported models: programs by strangers, rendered within bounds and kept away from all else.

jinja2's sandbox keeps a template from Python's insides, but not from eating all time and memory. So a rendering has
a number of units to spend: each step costs one, each text and each list what its size demands. Steps are counted by
nodes that are put into the syntax tree: every body that can run more than once begins by paying for itself. Only
listed kinds of nodes, filters, tests, methods and functions exist.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from functools import wraps
from typing import Any, NoReturn, cast

from jinja2 import nodes, pass_context
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from txtgen.errors import CheckpointError, DataError, safe_text

Function = Callable[..., Any]

UNITS = 400_000
"""What a rendering may spend: about half a second."""

CHARACTERS = 64
"""So many characters cost a unit; a character of the messages gives one more unit to spend."""

MAX_OUTPUT = 1_000_000
"""Characters of a rendered conversation, beside four times those of its messages."""

MAX_NODES, MAX_DEPTH = 10_000, 100


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KINDS = _words(
    "Template Output TemplateData Const Name NSRef Assign AssignBlock If For Macro CallBlock Call Keyword Filter Test "
    "FilterBlock With Scope Break Continue Getattr Getitem Slice List Tuple Dict Pair Concat Compare Operand CondExpr "
    "And Or Not Neg Pos Add Sub Mul Div FloorDiv Mod Pow"
)
_FILTERS = _words(
    "abs capitalize count d default dictsort first float int items last length list lower map max min reject "
    "rejectattr reverse select selectattr sort string title trim unique upper"
)
_TESTS = _words(
    "boolean defined divisibleby eq equalto even false float ge greaterthan gt in integer iterable le lessthan lower "
    "lt mapping ne none number odd sameas sequence string true undefined upper == != < <= > >="
)
_METHODS: dict[type, frozenset[str]] = {
    str: _words(
        "capitalize count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace isupper join "
        "lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
        "splitlines startswith strip title upper"
    ),
    dict: _words("get items keys values"),
    list: _words("count index"),
    tuple: _words("count index"),
}
_FREE = _words(
    "boolean count d default defined divisibleby even false first float integer iterable last length mapping none "
    "number odd sameas sequence string true undefined"
)
"""Filters and tests that take no longer for more."""
_LOOP = _words("changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0")
_PAY, _EACH, _MADE, _CUT, _JOINED = "pay a body", "pay each item", "pay a value", "pay a slice", "join texts"
"""Filters of our own, by names that no template can write."""


class _TooMuch(TemplateError):
    """A template has spent what it had."""


class _Raised(TemplateError):
    """A template refuses the conversation."""


class _Budget:
    def __init__(self, units: int) -> None:
        self.left = units

    def pay(self, units: int) -> None:
        self.left -= max(units, 0)  # nothing earns
        if self.left < 0:
            raise _TooMuch("it loops, or makes texts, without end")


_budget: ContextVar[_Budget] = ContextVar("budget")


def _pay_for(value: Any) -> Any:
    """The value, paid by its size: texts by their length, what holds others with all in it."""
    budget, stack = _budget.get(), [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            budget.pay(1 + len(item) // CHARACTERS)
            continue
        if isinstance(item, list | tuple | set):
            budget.pay(len(item))
            stack.extend(item)
        elif isinstance(item, dict):
            budget.pay(len(item))
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, range):
            budget.pay(len(item))
        elif isinstance(item, int) and item.bit_length() > 64:
            raise _TooMuch("it makes numbers of more than 64 bits")
        budget.pay(1)
    return value


def _pay_times(value: Any, times: int) -> None:
    """Pays for so many copies of a value."""
    budget = _budget.get()
    before = budget.left
    _pay_for(value)
    budget.pay((before - budget.left) * max(times - 1, 0))


class ChatTemplate:
    """A template, ready to render conversations.

    Args:
        source: the Jinja text.
        today: what `strftime_now` tells, whatever day it is, so that a conversation always gives the same text.

    Raises:
        CheckpointError: it is no template, or does what none may do.
    """

    def __init__(self, source: str, today: date) -> None:
        with _guarded(UNITS):
            environment = _Environment(today)
            tree = environment.parse(source)
            _check(tree)
            metered = _Meter().visit(tree)
            code = environment.compile(metered)
            self._template = Template.from_code(environment, code, environment.make_globals(None))

    def render(self, messages: Sequence[Mapping[str, str]], reply: bool, tokens: Mapping[str, str]) -> str:
        """The text of a conversation.

        Args:
            messages: the turns, each with its role and content.
            reply: open a turn of the assistant at the end.
            tokens: spellings by the names that templates use, such as "bos_token".

        Raises:
            DataError: the template refuses the conversation.
            CheckpointError: the template fails, or exceeds what a rendering may spend.
        """
        size = sum(len(text) for message in messages for text in message.values())
        limit, parts, length = MAX_OUTPUT + 4 * size, [], 0
        with _guarded(UNITS + size):
            values = {"messages": [dict(message) for message in messages], "tools": None, "documents": None}
            for part in self._template.generate(**values, add_generation_prompt=reply, **tokens):
                length += len(part)
                if length > limit:
                    raise _TooMuch(f"it writes more than {limit} characters")
                parts.append(part)
        return "".join(parts)


@contextmanager
def _guarded(units: int) -> Iterator[None]:
    """With so much to spend; whatever a template's code raises becomes one of our errors."""
    token = _budget.set(_Budget(units))
    try:
        yield
    except _Raised as error:
        told = _shown(error)
        raise DataError(
            f"the chat template refuses the conversation: {told}", "messages", "change the turns"
        ) from error
    except RecursionError as error:
        raise _fault("it is nested or calls itself too deeply") from error
    except _TooMuch as error:
        raise _fault(_shown(error)) from error
    except Exception as error:
        # It runs a stranger's program, which can fail in every way that Python knows.
        raise _fault(f"{type(error).__name__}: {_shown(error)}") from error
    finally:
        _budget.reset(token)


def _shown(error: Exception) -> str:
    return safe_text(" ".join(str(error)[:300].split()))


def _fault(reason: str) -> CheckpointError:
    return CheckpointError(
        f"the chat template cannot be used: {reason}", "format.template", "mend it, or set format.kind to text"
    )


# -- what the tree may hold, and the nodes that pay


def _check(tree: nodes.Template) -> None:
    """Refuses what no chat template needs, before anything runs."""
    stack: list[tuple[nodes.Node, int]] = [(tree, 0)]
    count = 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise _TooMuch(f"it has more than {MAX_NODES} parts, or nests them more than {MAX_DEPTH} deep")
        name = getattr(node, "attr", None) if isinstance(node, nodes.Getattr | nodes.NSRef) else None
        if type(node).__name__ not in _KINDS:
            raise SecurityError(f"line {node.lineno} uses {type(node).__name__.lower()}, which is not allowed")
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"line {node.lineno} reaches for the attribute {name}")
        if isinstance(node, nodes.Name) and node.name in ("self", "super"):
            raise SecurityError(f"line {node.lineno} uses {node.name}")
        if isinstance(node, nodes.For) and node.recursive:
            raise SecurityError(f"line {node.lineno} has a recursive loop")
        stack.extend((child, depth + 1) for child in node.iter_child_nodes())


def _cost(part: nodes.Node) -> int:
    """The units of running a part of the tree once; inner bodies pay for themselves."""
    if isinstance(part, nodes.TemplateData):
        return 1 + len(part.data) // CHARACTERS
    inner = part.body if isinstance(part, nodes.For | nodes.Macro | nodes.CallBlock) else ()
    return 1 + sum(_cost(child) for child in part.iter_child_nodes() if not any(child is other for other in inner))


def _filtered(value: nodes.Expr, name: str, *arguments: int) -> nodes.Filter:
    constants = [nodes.Const(argument, lineno=value.lineno) for argument in arguments]
    return nodes.Filter(value, name, constants, [], None, None, lineno=value.lineno)


def _paying(body: list[nodes.Node]) -> list[nodes.Node]:
    lineno = body[0].lineno if body else 1
    cost = nodes.Const(sum(map(_cost, body)), lineno=lineno)
    return [nodes.ExprStmt(_filtered(cost, _PAY), lineno=lineno), *body]


class _Meter(NodeTransformer):
    """Puts the paying nodes in."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        test = _cost(node.test) if node.test else 0
        node.body = _paying(node.body)
        self.generic_visit(node)
        node.iter = _filtered(cast(nodes.Expr, node.iter), _EACH, 1 + test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        node.body = _paying(node.body)
        self.generic_visit(node)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        node.body = _paying(node.body)
        self.generic_visit(node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = self._paid(node.expr)
        for operand in node.ops:
            operand.expr = self._paid(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, _CUT)  # slices do not go through the environment
        return node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, _MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, _MADE) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, _MADE)

    def _paid(self, node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else _filtered(node, _MADE)


# -- what a template can reach


class _Generation(Extension):
    """{% generation %} marks what is learnt; here it is a scope and no more."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Scope:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _Values(Namespace):
    """namespace(), which shows nothing of what it holds."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with lists of what exists, every operation paid."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, today: date) -> None:
        extensions = [_Generation, LoopControlExtension]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_pay_for)
        self.filters = _paid_functions(self.filters, _FILTERS)
        self.filters |= {"indent": _indent, "join": _join, "replace": _replaced, "safe": _text, "tojson": _to_json}
        self.filters |= {_PAY: _pay_body, _EACH: _pay_each, _MADE: _pay_made, _CUT: _pay_slice, _JOINED: _join_texts}
        self.tests = _paid_functions(self.tests, _TESTS)

        def strftime_now(format: str) -> str:
            return _formatted_date(today, format)

        functions: list[Function] = [raise_exception, strftime_now, namespace]
        self.globals = {function.__name__: function for function in functions}
        self.globals |= {"range": _range, "dict": _dict}
        self._functions = tuple(self.globals.values())

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute that is listed, or else the item of that name."""
        if isinstance(obj, Undefined):
            return getattr(obj, attribute)  # raises
        kind = type(obj)
        if kind in _METHODS and hasattr(kind, attribute):
            if attribute in _METHODS[kind]:
                return getattr(obj, attribute)
            raise SecurityError(f"{kind.__name__}.{attribute} is not allowed")
        if kind is LoopContext and attribute in _LOOP:
            return getattr(obj, attribute)
        return self._item(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item, or else the listed attribute of that name."""
        found = self._item(obj, argument)
        if isinstance(found, Undefined) and isinstance(argument, str) and type(obj) in _METHODS:
            return self.getattr(obj, argument)
        return found

    def _item(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            return obj[argument]  # raises
        try:
            if isinstance(obj, _Values) and isinstance(argument, str) and not argument.startswith("_"):
                return getattr(obj, argument)
            if type(obj) in _METHODS or isinstance(obj, range):
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
        _pay_for(args)
        _pay_for(kwargs)
        receiver, name = getattr(callee, "__self__", None), getattr(callee, "__name__", "")
        if type(receiver) is LoopContext and name in _LOOP:
            return callee(*args, **kwargs)
        if any(callee is function for function in self._functions):
            return _pay_for(callee(*args, **kwargs))
        if name not in _METHODS.get(type(receiver), ()):
            raise SecurityError(f"a {type(callee).__name__} is called, which is not allowed")
        _pay_for(receiver)
        if isinstance(receiver, str) and name == "join":
            return _join(args[0] if args else (), receiver)
        if isinstance(receiver, str) and name == "replace":
            return _replaced(receiver, *args, **kwargs)
        found = callee(*args, **kwargs)
        return _pay_for(list(found) if name in ("items", "keys", "values") else found)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator."""
        if operator == "*" and not isinstance(left, int | float):
            _pay_times(left, right if isinstance(right, int) else 1)
        elif operator == "*" and not isinstance(right, int | float):
            _pay_times(right, left if isinstance(left, int) else 1)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _budget.get().pay(max(right, 0) * left.bit_length())
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _pay_times(right, left.count("%"))
        return _pay_for(super().call_binop(context, operator, _pay_for(left), _pay_for(right)))


def _paid_functions(known: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    # The filters string and float do work, the tests of these names do not.
    free = _FREE - {"string", "float"} if "length" in names else _FREE
    return {name: known[name] if name in free else _paid(known[name]) for name in names}


def _paid(function: Function) -> Function:
    """A filter or test of jinja2 that pays for what it is given and for what it gives, a list at once."""

    @wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        _pay_for(args)
        _pay_for(kwargs)
        found = function(*args, **kwargs)
        return _pay_for(list(found) if isinstance(found, Iterator) else found)

    return paid


# The context keeps jinja2 from working these out once and for all when it compiles.


@pass_context
def _pay_body(_context: Context, units: int) -> None:
    _budget.get().pay(units)


@pass_context
def _pay_each(_context: Context, items: Any, units: int) -> list[Any]:
    budget = _budget.get()
    found = []
    for item in items:
        budget.pay(units)
        found.append(item)
    return found


@pass_context
def _pay_made(_context: Context, value: Any) -> Any:
    return _pay_for(value)


@pass_context
def _pay_slice(_context: Context, value: Any) -> Any:
    if hasattr(value, "__len__"):
        _budget.get().pay(len(value) // CHARACTERS if isinstance(value, str) else len(value))
    return value


@pass_context
def _join_texts(_context: Context, values: list[Any]) -> str:
    return str(_pay_for("".join(map(str, _pay_for(values)))))


def _join(values: Any, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        raise SecurityError("join with an attribute is not allowed; use map before it")
    texts = [str(value) for value in _pay_for(values)]
    _pay_times(str(d), len(texts))
    return str(_pay_for(str(d).join(texts)))


def _replaced(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(_pay_for(text)), str(_pay_for(old)), str(_pay_for(new))
    times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    _budget.get().pay(times * (1 + len(new)) // CHARACTERS)
    replaced: str = text.replace(old, new, -1 if count is None else count)
    return replaced


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(width, MAX_OUTPUT)
    lines = str(_pay_for(text)).splitlines() or [""]
    _pay_times(margin, len(lines))
    if str(text).endswith("\n"):
        lines.append("")
    kept = [line if not line and not blank else margin + line for line in lines[1:]]
    return "\n".join([margin + lines[0] if first else lines[0], *kept])


def _text(value: Any) -> str:
    return str(_pay_for(value))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise SecurityError("tojson indents by 0 to 16 spaces")
    written = json.dumps(
        _pay_for(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return str(_pay_for(written))


def _check_format(text: str) -> None:
    """Refuses what makes long texts of short ones."""
    for width in re.findall(r"%(?:\([^)]*\))?([^a-zA-Z%]*)", text):
        if "*" in width or any(int(number[-9:]) > 100 or len(number) > 3 for number in re.findall(r"\d+", width)):
            raise _TooMuch("it formats with more than 100 columns")


def _formatted_date(today: date, format: str) -> str:
    if len(format) > 100 or not re.fullmatch(r"(?:[^%]|%-?[aAbBdHIjmMpSyY]|%%)*", format):
        raise SecurityError("strftime_now takes up to 100 characters, with the usual parts of a date and no widths")
    return today.strftime(format)


def raise_exception(message: Any) -> NoReturn:
    """For templates: refuses the conversation."""
    raise _Raised(str(message))


def namespace(*args: Any, **kwargs: Any) -> Namespace:
    """For templates: values that a loop can set."""
    return _Values(*args, **kwargs)


def _range(*args: int) -> range:
    return range(*args)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)
