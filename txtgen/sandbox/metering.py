"""The nodes that pay. They are put into a syntax tree, and call filters of their own, by names that are no words.

A template can still reach these through map('...'), and gains nothing: they can only spend.
"""

from collections.abc import Iterable
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from txtgen.sandbox.budget import CHARACTERS, pay, pay_for

_PAY, _EACH, _MADE, _CUT, _JOINED = "pay a body", "pay each item", "pay a value", "pay a slice", "join texts"


def metered(tree: nodes.Template) -> nodes.Template:
    """The tree, changed in place so that what it does is paid for."""
    return cast(nodes.Template, _Meter().visit(tree))


class _Meter(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.For:
        test = _cost(node.test) if node.test else 0
        node.body = _paying(node.body)
        self.generic_visit(node)
        node.iter = _filtered(cast(nodes.Expr, node.iter), _EACH, 1 + test)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        node.body = _paying(node.body)
        return self.generic_visit(node)

    visit_CallBlock = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        parts: list[nodes.Compare | nodes.Operand] = [node, *node.ops]
        for part in parts:
            if not isinstance(part.expr, nodes.Const):
                part.expr = _filtered(part.expr, _MADE)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, _CUT)  # slices do not go through the environment
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return self.visit_List(node) if node.ctx == "load" else node

    def visit_List(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, _MADE)

    visit_Dict = visit_List


def _cost(part: nodes.Node) -> int:
    """The units of running a part of the tree once; inner bodies pay for themselves."""
    if isinstance(part, nodes.TemplateData):
        return 1 + len(part.data) // CHARACTERS
    inner = {"body"} if isinstance(part, nodes.For | nodes.Macro | nodes.CallBlock) else ()
    return 1 + sum(map(_cost, part.iter_child_nodes(exclude=inner)))


def _filtered(value: nodes.Expr, name: str, *arguments: int) -> nodes.Filter:
    constants = [nodes.Const(argument, lineno=value.lineno) for argument in arguments]
    return nodes.Filter(value, name, constants, [], None, None, lineno=value.lineno)


def _paying(body: list[nodes.Node]) -> list[nodes.Node]:
    lineno = body[0].lineno if body else 1
    cost = nodes.Const(sum(map(_cost, body)), lineno=lineno)
    return [nodes.ExprStmt(_filtered(cost, _PAY), lineno=lineno), *body]


# The context keeps jinja2 from working these out once and for all when it compiles.


@pass_context
def _pay_body(_context: Context, units: int) -> None:
    pay(units)


@pass_context
def _pay_each(_context: Context, items: Iterable[Any], units: int) -> list[Any]:
    found = []
    for item in items:
        pay(units)
        found.append(item)
    return found


@pass_context
def _pay_made(_context: Context, value: Any) -> Any:
    return pay_for(value)


@pass_context
def _pay_slice(_context: Context, value: Any) -> Any:
    if hasattr(value, "__len__"):
        pay(len(value) // CHARACTERS if isinstance(value, str) else len(value))
    return value


@pass_context
def _join_texts(_context: Context, values: list[Any]) -> str:
    return pay_for("".join(map(str, pay_for(values))))


METERING_FILTERS = {
    _PAY: _pay_body,
    _EACH: _pay_each,
    _MADE: _pay_made,
    _CUT: _pay_slice,
    _JOINED: _join_texts,
}
"""What the nodes call."""
