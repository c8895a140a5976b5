"""How runs are shown: tables for people, JSON for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from txtgen.commands.running.run_record import number, section
from txtgen.commands.runs import RunDetails, RunDifference, RunSummary, last_start
from txtgen.commands.showing.console import columns, table
from txtgen.commands.showing.formatting import formatted, moment, written
from txtgen.commands.showing.output import write_json, write_result

PARTS = ("embedding", "attention", "feed_forward", "norm", "head")

MEASURES = {
    "val_loss": ("loss", ".4f"),
    "val_bits_per_byte": ("bits per byte", ".4f"),
    "val_reward_margin": ("reward margin", ".4f"),
    "val_reward_accuracy": ("reward accuracy", ".1%"),
    "val_bleu": ("BLEU", ".2f"),
    "val_chrf": ("chrF", ".2f"),
    "val_known_bits_per_byte": ("bits per byte of known text", ".4f"),
    "val_forgotten_bits_per_byte": ("forgotten bits per byte", "+.4f"),
    "distance": ("distance from the base", ".3%"),
    **{f"distance_{part}": (f"distance, {part.replace('_', ' ')}", ".3%") for part in PARTS},
}
"""What validation finds: its name, and how it is written."""


def show_list(runs: Sequence[RunSummary], runs_path: str, as_json: bool) -> None:
    """Show runs, a line each."""
    if as_json:
        write_json([asdict(run) for run in runs])
    elif not runs:
        write_result(f"no runs in {runs_path}")
    else:
        heads = ("name", "command", "state", "step", "best", "parameters", "when", "size", "")
        columns("", heads, [_line(run) for run in runs], spare=("size", "when", "parameters", "command", "best"))


def _line(run: RunSummary) -> tuple[str, ...]:
    return (
        run.name,
        run.command or "?",
        run.state,
        _step(run),
        measured(run.best),
        "?" if run.parameters is None else f"{run.parameters:,}",
        moment(run.time),
        written(run.num_bytes, "bytes", 3),
        "; ".join(run.problems),
    )


def show_run(details: RunDetails, as_json: bool) -> None:
    """Show one run."""
    if as_json:
        write_json(asdict(details))
        return
    run, about = details.summary, details.about
    rows: dict[str, object] = {
        "folder": run.path,
        "command": run.command or "?",
        "state": run.state + (f" ({run.reason})" if run.reason and run.reason != run.state else ""),
        "step": _step(run),
        "last heard of": moment(run.time),
        **_figures(run),
        "size": written(run.num_bytes, "bytes", 3),
        "checkpoints": ", ".join(details.checkpoints) or "none",
        "samples": f"{details.num_samples:,}",
    }
    if parameters := section(about, "parameters"):
        rows["parameters"] = ", ".join(f"{key} {value:,}" for key, value in parameters.items() if number(value))
    corpus = about.get("corpus")
    for count, source in enumerate(corpus if isinstance(corpus, list) else []):
        rows[f"source {count}"] = source_line(source)
    rows.update({f"environment, {key}": value for key, value in last_start(about).items()})
    rows.update({f"problem {count}": problem for count, problem in enumerate(run.problems, 1)})
    table("", rows)


def show_difference(difference: RunDifference, as_json: bool) -> None:
    """Show in what two runs differ, and their figures side by side."""
    if as_json:
        write_json(asdict(difference))
        return
    one, other = difference.runs
    heads = ("", one.name, other.name)
    if difference.config:
        columns("config", heads, _pairs(difference.config))
    else:
        write_result("the configs are the same")
    if difference.environment:
        columns("\nenvironment", heads, _pairs(difference.environment))
    left, right = _compared(one), _compared(other)
    keys = [key for key in left if left[key] != "" or right[key] != ""]
    columns("\nfigures", heads, [(key, left[key], right[key]) for key in keys])


def _pairs(values: dict[str, tuple[Any, Any]]) -> list[tuple[str, ...]]:
    return [(key, *("" if value is None else str(value) for value in pair)) for key, pair in values.items()]


def _compared(run: RunSummary) -> dict[str, str]:
    """The same figures of every run, "" where it has none."""
    best = {f"best {name}": formatted(run.best.get(key), spec) for key, (name, spec) in MEASURES.items()}
    figures = ("loss", "tokens", "time", "tokens per second", "MFU", "waiting for data", "peak memory")
    known = _figures(run)
    return {
        "state": run.state,
        "step": _step(run),
        **best,
        "best at step": formatted(run.best.get("step"), ",d"),
        **{key: str(known.get(key, "")) for key in figures},
        "parameters": formatted(run.parameters, ",d"),
    }


def _figures(run: RunSummary) -> dict[str, object]:
    rows: dict[str, object] = {}
    if run.best:
        rows["best"] = measured(run.best)
    last, typical = run.last, run.typical
    for figures, key, name, spec in (
        (last, "loss", "loss", ".4f"),
        (last, "tokens", "tokens", ",d"),
        (last, "seconds", "time", "duration"),
        (typical, "tokens_per_second", "tokens per second", ",.0f"),
        (typical, "mfu", "MFU", ".1%"),
        (typical, "data_wait_share", "waiting for data", ".1%"),
    ):
        if figure := formatted(figures.get(key), spec):
            rows[name] = figure
    if run.peak_memory_bytes is not None:
        rows["peak memory"] = written(run.peak_memory_bytes, "bytes", 3)
    return rows


def measured(best: dict[str, Any]) -> str:
    """What validation found, in a few words."""
    found = [
        f"{MEASURES[key][0]} {formatted(best[key], MEASURES[key][1])}"
        for key in ("val_loss", "val_reward_margin", "val_bleu", "val_chrf")
        if number(best.get(key)) is not None
    ]
    return f"{', '.join(found)} at {best['step']:,}" if found else ""


def source_line(source: Any) -> str:
    """A source of the corpus in a few words."""
    if not isinstance(source, dict):
        return "?"
    parts = [str(source.get("name", "?"))]
    for key, words, spec in (
        ("files", "files", ",d"),
        ("num_bytes", "bytes", ",d"),
        ("estimated_tokens", "tokens estimated", ",d"),
        ("bytes_per_token", "bytes per token", ".2f"),
        ("byte_fallback_rate", "byte fallback", ".2%"),
    ):
        if figure := formatted(source.get(key), spec):
            parts.append(f"{words} {figure}" if spec.endswith("%") else f"{figure} {words}")
    return ", ".join(parts)


def _step(run: RunSummary) -> str:
    return "?" if run.step is None else f"{run.step:,}" + ("" if run.steps is None else f" of {run.steps:,}")
