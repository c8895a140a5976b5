"""The command line: arguments become a config and go to one function each. No logic; no torch before it is needed."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from txtgen import __version__
from txtgen.errors import TxtgenError, UsageError, safe_text
from txtgen.options import (
    DECODING,
    MODEL_USE,
    PROMPTED,
    TRAINED,
    TRAINING,
    Adapters,
    Device,
    Dtype,
    QuantizationName,
    RunsPath,
    SetOptions,
    with_options,
)

app = typer.Typer(
    name="txtgen",
    help="From a folder of text to a working text generator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer, or look at one.")
convert_app = typer.Typer(no_args_is_help=True, help="Models in from Hugging Face's format and out to it; adapters.")
check_app = typer.Typer(no_args_is_help=True, help="Prove on a run what txtgen promises of it.")
data_app = typer.Typer(no_args_is_help=True, help="Look over what a run would learn from, before it is begun.")
runs_app = typer.Typer(no_args_is_help=True, help="List runs, show or compare them, write a run's report.html.")
config_app = typer.Typer(no_args_is_help=True, help="Show a config with everything resolved, or its JSON schema.")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(convert_app, name="convert")
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.add_typer(check_app, name="check")
app.add_typer(config_app, name="config")

Inputs = Annotated[
    list[str] | None, typer.Argument(metavar="CONFIG.yaml | TEXT...", help="A config, or text files and folders.")
]
WeightsDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the weights written; auto is as they are.")
]
ListedRuns = Annotated[str, typer.Option(help="Where the runs are.")]
Run = Annotated[str, typer.Argument(metavar="NAME", help="Of a run, or the path of its folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Draft = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Let this smaller model guess: faster (greedy, sample).")
]
ShortlistFile = Annotated[
    str | None, typer.Option("--shortlist", metavar="FILE", help="Of txtgen shortlist: score no other tokens, faster.")
]
Given = dict[str, Any]
"""What was given of a group of options."""
NOTHING: Given = {}
Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A .pth, run folder or Hugging Face folder. [default: the newest run]"),
]


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    """From a folder of text to a working text generator."""
    if version:
        typer.echo(f"txtgen {__version__} (Python {sys.version.split()[0]})")
        raise typer.Exit


@app.command()
@with_options(training=TRAINING)
def pretrain(inputs: Inputs = None, training: Given = NOTHING) -> None:
    """Train a new model, from a config or from text files with the built-in small config."""
    start_training("pretrain", inputs, None, training)


@app.command()
@with_options(training=TRAINING)
def finetune(
    inputs: Inputs = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The model to start from.")] = None,
    training: Given = NOTHING,
) -> None:
    """Go on training a model on other data, in far smaller steps."""
    start_training("finetune", inputs, base, training)


@app.command()
def cooldown(
    checkpoint: Annotated[
        str, typer.Option("--from", metavar="CHECKPOINT", help="A .pth with training state, or a run for its last.")
    ],
    steps: Annotated[int | None, typer.Option(help="In which the rate falls. [default: half of those done]")] = None,
    minutes: Annotated[float | None, typer.Option(help="The same in time.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the new run. [default: RUN-cooldown and a number]")] = None,
    runs_path: Annotated[str | None, typer.Option(help="Where the new run goes. [default: as its run said]")] = None,
    settings: SetOptions = None,
) -> None:
    """Finish a run in its stable phase: a new run goes on from its checkpoint while the learning rate falls."""
    from txtgen.commands import cooldown as command
    from txtgen.commands.running.signals import exit_code_of
    from txtgen.config.commands import CooldownConfig
    from txtgen.config.flags import from_flags

    tree = {"checkpoint": checkpoint, "steps": steps, "minutes": minutes, "name": name, "runs_path": runs_path}
    config = from_flags(CooldownConfig, tree, None)
    raise typer.Exit(exit_code_of(lambda: command.run(config, settings or []).exit_code))


@app.command()
def average(
    models: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="Each a .pth or a run folder.")],
    out: Annotated[str, typer.Option(metavar="MODEL.pth", help="To write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace MODEL.pth if it exists.")] = False,
    runs_path: RunsPath = "runs",
    json_output: Json = False,
) -> None:
    """Make one model of several checkpoints: the mean of their weights.

    With adapters: merge them first (convert merge).
    """
    from txtgen.commands import average as command
    from txtgen.commands.showing.result_tables import report_average
    from txtgen.config.commands import AverageConfig
    from txtgen.config.flags import from_flags

    tree = {"models": models, "output": out, "overwrite": overwrite, "runs_path": runs_path}
    report_average(command.run(from_flags(AverageConfig, tree, None)), json_output)


@app.command()
def quantize(
    out: Annotated[str, typer.Option(metavar="MODEL.pth", help="To write.")],
    model: Model = None,
    kind: Annotated[QuantizationName, typer.Option(help="Bits of a weight.")] = "int8",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace MODEL.pth if it exists.")] = False,
    runs_path: RunsPath = "runs",
    json_output: Json = False,
) -> None:
    """Write a model with its weights in 8 or 4 bits, for generation and evaluation.

    With adapters: merge them first (convert merge).
    """
    from txtgen.commands import quantize as command
    from txtgen.commands.showing.result_tables import report_quantization
    from txtgen.config.commands import QuantizeConfig
    from txtgen.config.flags import from_flags

    tree = {"model": model, "output": out, "kind": kind, "overwrite": overwrite, "runs_path": runs_path}
    report_quantization(command.run(from_flags(QuantizeConfig, tree, None)), json_output)


@app.command()
def shortlist(
    data: Annotated[list[str], typer.Option(metavar="PATH", help="Pairs, or the sources of --target; may repeat.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="To write.")],
    model: Model = None,
    target: Annotated[
        str | None, typer.Option(metavar="PATH", help="Line i is the target of line i of --data.")
    ] = None,
    frequent: Annotated[int, typer.Option(min=0, help="Frequent target tokens that are in every list.")] = 100,
    per_token: Annotated[int, typer.Option(min=1, help="Likeliest target tokens of each source token.")] = 20,
    max_pairs: Annotated[int, typer.Option(min=1, help="Of more pairs, the first ones are read.")] = 200_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    runs_path: RunsPath = "runs",
    json_output: Json = False,
) -> None:
    """Learn from pairs which tokens a translation may need, for generate --shortlist: faster where pieces are many."""
    from txtgen.commands import shortlist as command
    from txtgen.commands.showing.result_tables import report_shortlist
    from txtgen.config.commands import ShortlistConfig
    from txtgen.config.flags import from_flags

    tree = {
        "model": model,
        "runs_path": runs_path,
        "paths": data,
        "target": target,
        "output": out,
        "frequent": frequent,
        "per_token": per_token,
        "max_pairs": max_pairs,
        "overwrite": overwrite,
    }
    report_shortlist(command.run(from_flags(ShortlistConfig, tree, None)), json_output)


@app.command()
@with_options(reading=PROMPTED, decoding=DECODING)
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
    draft: Draft = None,
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
        "model": model,
        "prompts": prompt or [],
        "input": said_or_piped(input, prompt, "prompt", session=True),
        "output": output,
        "overwrite": overwrite,
        "workers": workers,
        "decoding": drafted(decoding, draft),
        "draft": draft,
        "shortlist": shortlist,
        "gap": gap,
        "json_schema": json_schema,
        "json_output": json_output,
    }
    config = from_flags(GenerateConfig, tree, settings)
    with verifying(config.model, config.runs_path):
        from txtgen.commands import generate as command
    command.run(config)


@app.command()
@with_options(use=MODEL_USE, decoding=DECODING)
def chat(
    model: Model = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the system says first.")] = None,
    decoding: Given = NOTHING,
    draft: Draft = None,
    use: Given = NOTHING,
    settings: SetOptions = None,
) -> None:
    """Talk with a chat model: at a terminal, or a turn of the user a line of what is piped in."""
    from txtgen.commands.ahead import verifying
    from txtgen.config.commands import ChatConfig
    from txtgen.config.flags import from_flags

    tree = {**use, "model": model, "system": system, "decoding": drafted(decoding, draft), "draft": draft}
    config = from_flags(ChatConfig, tree, settings)
    with verifying(config.model, config.runs_path):
        from txtgen.commands import chat as command
    command.run(config)


@app.command()
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


@app.command()
def evaluate(
    model: Model = None,
    adapters: Adapters = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Text, .jsonl or .tsv. [default: what its run held out]")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="PATH", help="Line i is the target of line i of --data.")
    ] = None,
    bleu_tokenizer: Annotated[
        Literal["13a", "zh", "none", "char", "intl"] | None,
        typer.Option(help="How sacreBLEU splits words. [default: as the model's run says, or 13a]"),
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a row of text. [default: as in the model's run]")
    ] = None,
    beam_size: Annotated[int | None, typer.Option(min=1, help="Translate by beam search of this width.")] = None,
    shortlist: ShortlistFile = None,
    translate: Annotated[bool, typer.Option(help="Translate pairs and score them.")] = True,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="Where to write the translations.")] = None,
    generate: Annotated[
        int, typer.Option(min=0, help="Go on from so many held-out beginnings, or reply, and tell what that is like.")
    ] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    runs_path: RunsPath = "runs",
    json_output: Json = False,
    settings: SetOptions = None,
) -> None:
    """Measure loss, perplexity and bits per byte; BLEU and chrF for pairs."""
    from txtgen.commands.ahead import verifying
    from txtgen.config.commands import EvaluateConfig
    from txtgen.config.flags import from_flags

    tree = {
        "model": model,
        "adapters": adapters or [],
        "runs_path": runs_path,
        "paths": data or [],
        "target": target,
        "bleu_tokenizer": bleu_tokenizer,
        "sequence_length": sequence_length,
        "decoding": {} if beam_size is None else {"strategy": "beam", "beam_size": beam_size},
        "shortlist": shortlist,
        "translate": translate,
        "output": output,
        "generate": generate,
        "device": device,
        "dtype": dtype,
    }
    config = from_flags(EvaluateConfig, tree, settings)
    with verifying(config.model, config.runs_path):
        from txtgen.commands import evaluate as command
        from txtgen.commands.showing.result_tables import report_evaluation
    report_evaluation(command.run(config), json_output)


@app.command()
def inspect(model: Model = None, runs_path: RunsPath = "runs", json_output: Json = False) -> None:
    """Show a checkpoint's config, lineage, sizes and checksums, without building the model."""
    from txtgen.commands import inspect as command
    from txtgen.commands.showing.result_tables import report_inspection

    report_inspection(command.run(model, runs_path), json_output)


@convert_app.command("from-hf")
def convert_from_hf(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="With config.json, tokenizer and weights.")],
    output: Annotated[str, typer.Argument(metavar="MODEL.pth", help="To write.")],
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weights to use instead, such as a finetuned state dict.")
    ] = None,
    dtype: WeightsDtype = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace MODEL.pth if it exists.")] = False,
    json_output: Json = False,
    settings: SetOptions = None,
) -> None:
    """Make a checkpoint of a model in Hugging Face's format."""
    from txtgen.commands import convert as command
    from txtgen.commands.showing.result_tables import report_conversion
    from txtgen.config.commands import ImportConfig
    from txtgen.config.flags import from_flags

    tree = {"folder": folder, "output": output, "weights": weights, "dtype": dtype, "overwrite": overwrite}
    report_conversion(command.from_hf(from_flags(ImportConfig, tree, settings)), json_output)


@convert_app.command("to-hf")
def convert_to_hf(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A .pth, run folder or Hugging Face folder.")],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="To write; new or empty.")],
    family: Annotated[
        str | None, typer.Option(help="To write it as. [default: the first that has such models]")
    ] = None,
    dtype: WeightsDtype = "auto",
    max_shard_bytes: Annotated[int, typer.Option(help="As large as a file of weights gets.")] = 5_000_000_000,
    json_output: Json = False,
    settings: SetOptions = None,
) -> None:
    """Write a model as a folder that transformers loads.

    With adapters: merge them first (convert merge).
    """
    from txtgen.commands import convert as command
    from txtgen.commands.showing.result_tables import report_conversion
    from txtgen.config.commands import ExportConfig
    from txtgen.config.flags import from_flags

    tree = {"model": model, "folder": folder, "family": family, "dtype": dtype, "max_shard_bytes": max_shard_bytes}
    report_conversion(command.to_hf(from_flags(ExportConfig, tree, settings)), json_output)


@convert_app.command("merge")
def convert_merge(
    out: Annotated[str, typer.Option(metavar="MODEL.pth", help="To write.")],
    model: Model = None,
    adapters: Adapters = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace MODEL.pth if it exists.")] = False,
    runs_path: RunsPath = "runs",
    json_output: Json = False,
) -> None:
    """Make adapters part of their model: one file that needs neither any more."""
    from txtgen.commands import convert as command
    from txtgen.commands.showing.result_tables import report_merge
    from txtgen.config.commands import MergeConfig
    from txtgen.config.flags import from_flags

    tree = {"model": model, "adapters": adapters or [], "output": out, "overwrite": overwrite, "runs_path": runs_path}
    report_merge(command.merge(from_flags(MergeConfig, tree, None)), json_output)


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


@runs_app.command("list")
def runs_list(runs_path: ListedRuns = "runs", json_output: Json = False) -> None:
    """List the runs, the latest first: state, step, best validation, parameters, size."""
    from txtgen.commands import runs as command
    from txtgen.commands.showing.run_tables import show_list

    show_list(command.list_runs(runs_path), runs_path, json_output)


@runs_app.command("show")
def runs_show(name: Run, runs_path: ListedRuns = "runs", json_output: Json = False) -> None:
    """Show one run: how far it is, how good, how fast, on what corpus and machine."""
    from txtgen.commands import runs as command
    from txtgen.commands.showing.run_tables import show_run

    show_run(command.show(name, runs_path), json_output)


@runs_app.command("diff")
def runs_diff(one: Run, other: Run, runs_path: ListedRuns = "runs", json_output: Json = False) -> None:
    """Show the config keys in which two runs differ, and their figures side by side."""
    from txtgen.commands import runs as command
    from txtgen.commands.showing.run_tables import show_difference

    show_difference(command.diff(one, other, runs_path), json_output)


@runs_app.command("report")
def runs_report(name: Run, runs_path: ListedRuns = "runs", json_output: Json = False) -> None:
    """Write report.html into a run's folder: curves, samples, config, corpus, machine, in one page."""
    from txtgen.commands.running.run_record import find_run
    from txtgen.commands.showing.output import write_json, write_result
    from txtgen.commands.showing.page import write_page

    path = str(write_page(find_run(name, runs_path)))
    if json_output:
        write_json({"path": path})
    else:
        write_result(path)


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


@check_app.command("resume")
def check_resume(
    run: Run,
    steps: Annotated[int | None, typer.Option(help="Continue so many steps, twice. [default: up to the last]")] = None,
    device: Device = "auto",
    runs_path: ListedRuns = "runs",
    json_output: Json = False,
) -> None:
    """Continue a copy from the checkpoint before the last, and compare batches, losses and weights."""
    from txtgen.commands import check as command
    from txtgen.commands.showing.result_tables import report_check
    from txtgen.config.commands import CheckConfig
    from txtgen.config.flags import from_flags

    tree = {"run": run, "steps": steps, "device": device, "runs_path": runs_path}
    found = command.run(from_flags(CheckConfig, tree))
    report_check(found, json_output)
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


def drafted(decoding: Given, draft: str | None) -> Given:
    """Settings of generation, speculation among them where there is a draft model and no other is asked for."""
    return decoding if draft is None else {"speculation": {"kind": "draft"}, **decoding}


def start_training(command: str, inputs: list[str] | None, base: str | None, given: Given) -> None:
    """Go the way of pretrain and finetune. given: of the options in TRAINING."""
    flags = {key: given.get(name) for name, key in TRAINED.items()}
    overrides = sugar({"base": base, **flags}, given.get("settings"))
    from txtgen.commands.launching import Request, launch

    learning = ("steps", "minutes", "dtype", "device", "settings")
    start = {name: value for name, value in given.items() if name not in learning}
    raise typer.Exit(launch(Request(command, tuple(inputs or ()), base=base, **start), overrides))


def sugar(flags: dict[str, Any], settings: list[str] | None) -> list[str]:
    """Flags as the config keys that they stand for, after the --set options, in the form of a --set option."""
    return [*(settings or ()), *(f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None)]


def run(arguments: list[str]) -> int:
    """Run the command line. Returns the exit code; a TxtgenError is told in one line on stderr."""
    try:
        app(args=arguments, prog_name="txtgen")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except TxtgenError as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130
    return 0


def complain(error: TxtgenError) -> int:
    """Write an error to stderr, escaped; returns its exit code."""
    if not error.told:
        with suppress(OSError, ValueError, AttributeError):  # nobody may be there to read it
            sys.stderr.write(safe_text(f"error: {error}") + "\n")
    return error.exit_code
