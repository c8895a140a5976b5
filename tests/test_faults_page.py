"""docs/faults.md names tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = re.compile(r"^\| (\d+) \|(.*)\|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
WANTED = {*range(1, 22), 33, 34, *range(52, 82), 87}


def test_every_fault_has_tests_and_they_exist() -> None:
    page = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = {int(number): NAMED.findall(cells) for number, cells in ROWS.findall(page)}
    assert rows.keys() == WANTED
    assert all(rows.values()), "a fault without a test"
    assert sum(map(len, rows.values())) == page.count("::"), "a test that is not named as path.py::name"
    for path in {path for named in rows.values() for path, _ in named}:
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        known = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        missing = {name for named in rows.values() for file, name in named if file == path} - known
        assert not missing, path
