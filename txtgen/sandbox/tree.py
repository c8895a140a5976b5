"""What the syntax tree of a template may hold."""

from jinja2 import nodes
from jinja2.exceptions import SecurityError

from txtgen.sandbox.allowed import KINDS
from txtgen.sandbox.budget import TooMuch

MAX_NODES, MAX_DEPTH = 10_000, 100


def check_tree(tree: nodes.Template) -> None:
    """Refuses what no chat template needs, before anything runs.

    Raises:
        SecurityError: it uses what none may use.
        TooMuch: it is too long or too deep.
    """
    stack: list[tuple[nodes.Node, int]] = [(tree, 0)]
    count = 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise TooMuch(f"it has more than {MAX_NODES} parts, or nests them more than {MAX_DEPTH} deep")
        kind = type(node).__name__
        if kind not in KINDS:
            raise SecurityError(f"line {node.lineno} uses {kind.lower()}, which is not allowed")
        if isinstance(node, nodes.Getattr | nodes.NSRef) and node.attr.startswith("_"):
            raise SecurityError(f"line {node.lineno} reaches for the attribute {node.attr}")
        if isinstance(node, nodes.Name) and node.name in ("self", "super"):
            raise SecurityError(f"line {node.lineno} uses {node.name}")
        if isinstance(node, nodes.For) and node.recursive:
            raise SecurityError(f"line {node.lineno} has a recursive loop")
        stack.extend((child, depth + 1) for child in node.iter_child_nodes())
