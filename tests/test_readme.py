"""The commands that the documentation shows are ones that txtgen takes."""

import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from txtgen.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "README.zh.md", *(ROOT / "docs").glob("*.md")])
REDIRECTIONS = ("|", ">", "&")
GROUP = typer.main.get_command(app)


def commands(page: Path) -> list[list[str]]:
    """The arguments of each txtgen command in the blocks of code of a page; a line may end in a backslash."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [line.split("txtgen ", 1)[1] for line in lines if re.match(r"(echo .*\| )?txtgen ", line)]
    return [list(takewhile(lambda word: word not in REDIRECTIONS, shlex.split(line, comments=True))) for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_command_line_takes_every_command(page) -> None:
    for arguments in commands(page):
        command, name = GROUP, "txtgen"
        while isinstance(command, TyperGroup):
            name, *arguments = arguments
            assert name in command.commands, f"no command {name!r}"
            command = command.commands[name]
        command.make_context(name, arguments).close()


def test_the_chinese_readme_shows_the_commands_of_the_english_one() -> None:
    english, chinese = commands(ROOT / "README.md"), commands(ROOT / "README.zh.md")
    applications = [*commands(ROOT / "docs" / "applications.md"), *english]
    assert [command for command in chinese if command not in applications] == []
    assert {tuple(command[:1]) for command in chinese} >= {tuple(command[:1]) for command in english}
    assert len(english) > 30
