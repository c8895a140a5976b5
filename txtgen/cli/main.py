"""The app: its commands in the order of its help, and what becomes of errors."""

import sys
from contextlib import suppress
from typing import Annotated

import typer

from txtgen import __version__
from txtgen.cli.generating import chat, generate, score
from txtgen.cli.models import average, convert_app, evaluate, inspect, quantize, shortlist
from txtgen.cli.preparing import config_app, data_app, tokenizer_app
from txtgen.cli.runs import check_app, runs_app
from txtgen.cli.training import cooldown, finetune, pretrain
from txtgen.commands.showing.output import write_exact, write_result
from txtgen.errors import TxtgenError, safe_text

app = typer.Typer(
    name="txtgen",
    help="From a folder of text to a working text generator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    pretrain,
    finetune,
    cooldown,
    average,
    quantize,
    shortlist,
    generate,
    chat,
    score,
    evaluate,
    inspect,
)
"""Under the names of their functions."""
GROUPS = {
    "tokenizer": tokenizer_app,
    "convert": convert_app,
    "data": data_app,
    "runs": runs_app,
    "check": check_app,
    "config": config_app,
}

for command in COMMANDS:
    app.command()(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    """From a folder of text to a working text generator."""
    if version:
        write_result(f"txtgen {__version__} (Python {sys.version.split()[0]})")
        raise typer.Exit


def run(arguments: list[str]) -> int:
    """Run the command line. Returns the exit code; a TxtgenError is told in one line on stderr."""
    try:
        _run_app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except TxtgenError as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _run_app(arguments: list[str]) -> None:
    try:
        app(args=arguments, prog_name="txtgen")
    except OSError:
        write_exact("")  # is it typer's help that could not be written? What is left of it fails again here
        raise


def complain(error: TxtgenError) -> int:
    """Write an error to stderr, escaped; returns its exit code."""
    if not error.told:
        with suppress(OSError, ValueError, AttributeError):  # nobody may be there to read it
            sys.stderr.write(safe_text(f"error: {error}") + "\n")
    return error.exit_code
