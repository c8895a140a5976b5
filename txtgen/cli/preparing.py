"""Commands before a run: tokenizer, data, config."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from txtgen.cli.options import Json, SetOptions, sugar

tokenizer_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer, or look at one.")
data_app = typer.Typer(no_args_is_help=True, help="Look over what a run would learn from, before it is begun.")
config_app = typer.Typer(no_args_is_help=True, help="Show a config with everything resolved, or its JSON schema.")


@tokenizer_app.command("train")
def tokenizer_train(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Plain text, .gz too.")],
    out: Annotated[Path, typer.Option(help="Where to write the .model.")],
    algorithm: Annotated[Literal["unigram", "bpe", "char"], typer.Option(help="How pieces are found.")] = "unigram",
    vocab_size: Annotated[int, typer.Option(min=8, help="Pieces in all.")] = 8_000,
    character_coverage: Annotated[float, typer.Option(help="Share of characters with a piece of their own.")] = 0.9995,
    json_output: Json = False,
    settings: SetOptions = None,
) -> None:
    """Train a SentencePiece tokenizer."""
    from txtgen.commands import tokenizer as command
    from txtgen.commands.showing.result_tables import report_training
    from txtgen.config.flags import from_flags
    from txtgen.config.tokenizer import SentencePieceConfig

    tree = {"algorithm": algorithm, "vocab_size": vocab_size, "character_coverage": character_coverage}
    config = from_flags(SentencePieceConfig, tree, settings)
    report_training(command.train(config, files, out), json_output)


@tokenizer_app.command("show")
def tokenizer_show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A .model, .pth or run folder.")],
    text: Annotated[str | None, typer.Option(help="Show the pieces of this text.")] = None,
    files: Annotated[
        list[str] | None, typer.Option("--file", help="Measure the tokenizer on a file; may repeat.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Show pieces of a text, vocabulary size, bytes per token and byte-fallback rate."""
    from txtgen.commands import tokenizer as command
    from txtgen.commands.models import resolve_tokenizer
    from txtgen.commands.showing.result_tables import report_tokenizer

    report_tokenizer(command.show(resolve_tokenizer(model), text, files or ()), json_output)


@data_app.command("check")
def data_check(
    inputs: Annotated[
        list[str], typer.Argument(metavar="CONFIG.yaml | DATA...", help="Of a run, or data files and folders.")
    ],
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The model to finetune.")] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of more text, a sample is read.")] = 1_000_000_000,
    samples: Annotated[int, typer.Option(min=0, help="Examples to show.")] = 3,
    json_output: Json = False,
    settings: SetOptions = None,
) -> None:
    """Count what training would see: ends, cuts, repeats, bad and odd records; show examples token by token."""
    overrides = sugar({"base": base}, settings)
    from txtgen.commands import data as command
    from txtgen.commands.launching import read_run_config
    from txtgen.commands.showing.data_table import show_check
    from txtgen.config.commands import DataCheckConfig
    from txtgen.config.flags import from_flags

    config = from_flags(DataCheckConfig, {"max_bytes": max_bytes, "samples": samples, "json_output": json_output})
    found = command.check(config, read_run_config(tuple(inputs), base, overrides))
    show_check(found, config.json_output)
    raise typer.Exit(found.exit_code)


@config_app.command("show")
def config_show(
    path: Annotated[Path, typer.Argument(metavar="CONFIG.yaml")],
    settings: SetOptions = None,
) -> None:
    """Print a config with every default filled in."""
    from txtgen.commands import config as command
    from txtgen.commands.showing.output import write_result

    write_result(command.show(path, settings or ()), end="")


@config_app.command("schema")
def config_schema(
    command_name: Annotated[Literal["pretrain", "finetune"], typer.Argument(metavar="pretrain|finetune")] = "pretrain",
) -> None:
    """Print the JSON schema of a config, for editors."""
    from txtgen.commands import config as command
    from txtgen.commands.showing.output import write_result

    write_result(command.schema(command_name), end="")
