"""Commands that go on from texts: generate, chat, score."""

import sys
from typing import Annotated

import typer

from txtgen.cli.options import (
    DECODING,
    MODEL_USE,
    NOTHING,
    PROMPTED,
    Given,
    Json,
    Model,
    Option,
    SetOptions,
    ShortlistFile,
    option,
    with_options,
)
from txtgen.errors import UsageError

STEPPING: dict[str, Option] = {
    "draft": option(str, "Let this smaller model guess: faster (greedy, sample).", metavar="MODEL"),
    "compile": option(bool, "Compile decoding steps. [default: on a GPU, for many prompts]", "--compile/--no-compile"),
}
"""How steps of a search are computed: keys of `GeneratingConfig`."""


@with_options(reading=PROMPTED, decoding=DECODING, stepping=STEPPING)
def generate(
    model: Model = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Text to go on from; may repeat.")] = None,
    input: Annotated[
        str | None, typer.Option(metavar="FILE", help="A prompt a line, or .jsonl with prompt or messages; - is stdin.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="For the results; the same command goes on if it was killed.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the way of --output.")] = False,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes of one thread that share the work.")] = 0,
    decoding: Given = NOTHING,
    stepping: Given = NOTHING,
    shortlist: ShortlistFile = None,
    gap: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Stands in a prompt for what is to be filled in, such as ___.")
    ] = None,
    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="The text is JSON of the schema in this file.")
    ] = None,
    reading: Given = NOTHING,
    json_output: Json = False,
    settings: SetOptions = None,
) -> None:
    """Generate text from prompts; without any, on a terminal, in a session."""
    from txtgen.commands.ahead import verifying
    from txtgen.config.commands import GenerateConfig
    from txtgen.config.flags import from_flags

    tree = {
        **reading,
        **stepping,
        "model": model,
        "prompts": prompt or [],
        "input": said_or_piped(input, prompt, "prompt", session=True),
        "output": output,
        "overwrite": overwrite,
        "workers": workers,
        "decoding": drafted(decoding, stepping),
        "shortlist": shortlist,
        "gap": gap,
        "json_schema": json_schema,
        "json_output": json_output,
    }
    config = from_flags(GenerateConfig, tree, settings)
    with verifying(config.model, config.runs_path):
        from txtgen.commands import generate as command
    command.run(config)


@with_options(use=MODEL_USE, decoding=DECODING, stepping=STEPPING)
def chat(
    model: Model = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the system says first.")] = None,
    decoding: Given = NOTHING,
    stepping: Given = NOTHING,
    use: Given = NOTHING,
    settings: SetOptions = None,
) -> None:
    """Talk with a chat model: at a terminal, or a turn of the user a line of what is piped in."""
    from txtgen.commands.ahead import verifying
    from txtgen.config.commands import ChatConfig
    from txtgen.config.flags import from_flags

    tree = {**use, **stepping, "model": model, "system": system, "decoding": drafted(decoding, stepping)}
    config = from_flags(ChatConfig, tree, settings)
    with verifying(config.model, config.runs_path):
        from txtgen.commands import chat as command
    command.run(config)


@with_options(reading=PROMPTED)
def score(
    model: Model = None,
    target: Annotated[list[str] | None, typer.Option(help="Text to score; may repeat.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Stands before the text, or is its source; may repeat.")
    ] = None,
    input: Annotated[
        str | None, typer.Option(metavar="FILE", help="A text a line, or .jsonl with target and prompt; - is stdin.")
    ] = None,
    end: Annotated[bool, typer.Option("--end/--no-end", help="Score the end of a text too.")] = True,
    reading: Given = NOTHING,
    json_output: Json = False,
    settings: SetOptions = None,
) -> None:
    """Tell how likely a model finds texts: log-probability of each token and of all, perplexity."""
    from txtgen.commands.ahead import verifying
    from txtgen.config.commands import ScoreConfig
    from txtgen.config.flags import from_flags

    tree = {
        **reading,
        "model": model,
        "targets": target or [],
        "prompts": prompt or [],
        "input": said_or_piped(input, target, "text", "--target"),
        "end": end,
        "json_output": json_output,
    }
    config = from_flags(ScoreConfig, tree, settings)
    with verifying(config.model, config.runs_path):
        from txtgen.commands import score as command
        from txtgen.commands.showing.result_tables import report_scores
    report_scores(command.run(config), config.json_output)


def said_or_piped(
    input: str | None, given: list[str] | None, what: str, flag: str = "--prompt", session: bool = False
) -> str | None:
    """The file to read: the one that was said; standard input if nothing was, and something is piped in.

    Raises:
        UsageError: there is nothing to read, and no terminal for a session, or none is wanted.
    """
    if input is not None or given:
        return input
    if not sys.stdin.isatty():
        return "-"
    if session and sys.stdout.isatty():
        return None
    raise UsageError(f"there is no {what}", "", f"give {flag} TEXT, --input FILE, or pipe {what}s in")


def drafted(decoding: Given, stepping: Given) -> Given:
    """Settings of generation, speculation among them where there is a draft model and no other is asked for."""
    return {"speculation": {"kind": "draft"}, **decoding} if "draft" in stepping else decoding
