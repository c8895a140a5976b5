"""The live line of a run."""

import io
import re

import pytest
from rich.console import Console
from rich.progress import Progress

from txtgen.commands.showing.console import _Row, columns


def test_a_narrow_terminal_does_without_columns_that_can_be_spared(monkeypatch, capsys) -> None:
    rows = [("a run of mine", "finished", "12 of 12", "120,000"), ("another", "killed", "3 of 12", "1,200")]
    for width, heads in ((80, "name state step size"), (36, "name state step"), (26, "name state")):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(Console, "is_terminal", True)
        columns("", ("name", "state", "step", "size"), rows, spare=("size", "step"))
        lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
        assert lines[0].split() == heads.split()
        assert len(lines) == 3
    monkeypatch.setattr(Console, "is_terminal", False)
    columns("", ("name", "state", "step", "size"), rows, spare=("size", "step"))
    assert "size" in capsys.readouterr().out


FIGURES = ["loss 1.2345", "val 1.3456", "12,345 tok/s", "mfu 45%", "waiting 7%"]


@pytest.mark.parametrize(("width", "shown"), [(30, 0), (40, 1), (50, 1), (62, 2), (70, 3), (80, 4), (100, 5), (200, 5)])
def test_a_narrow_terminal_loses_the_bar_first_then_figures_but_never_what_is_left(width, shown) -> None:
    written = io.StringIO()
    console = Console(width=width, file=written, force_terminal=True, color_system=None)
    progress = Progress(_Row(), console=console, expand=True)
    progress.add_task("step", total=100_000, completed=12_345, figures=FIGURES)
    console.print(progress.get_renderable())
    (line,) = written.getvalue().splitlines()
    assert len(line) == width
    assert "12345/100000" in line
    assert line.rstrip().endswith("-:--:--")
    assert [figure for figure in FIGURES if figure in line] == FIGURES[:shown]
    assert ("━" in line) == (width > 95)
