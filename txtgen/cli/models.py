"""Commands on whole models: average, quantize, shortlist, evaluate, inspect, convert."""

from typing import Annotated, Literal

import typer

from txtgen.cli.options import (
    Adapters,
    Device,
    Dtype,
    Json,
    Model,
    QuantizationName,
    RunsPath,
    SetOptions,
    ShortlistFile,
)

convert_app = typer.Typer(no_args_is_help=True, help="Models in from Hugging Face's format and out to it; adapters.")

WeightsDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the weights written; auto is as they are.")
]


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
