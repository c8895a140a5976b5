"""`txtgen runs list | show | diff`: what run folders tell. Nothing is written, no checkpoint is read."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from txtgen.commands.running.changes import flatten
from txtgen.commands.running.run_record import (
    Columns,
    RunRecord,
    find_run,
    find_runs,
    read_columns,
    read_lines,
    read_run,
)

LAST = ("loss", "tokens", "seconds")
TYPICAL = ("tokens_per_second", "mfu", "data_wait_share")
MEMORY = "peak_memory_bytes"
"""Metrics of which a summary tells the last value, the median, or the greatest."""

UNTOLD = ("name", "runs_path")
"""Keys in which any two runs differ."""


@dataclass(frozen=True)
class RunSummary:
    """A run in figures.

    state, problems, best: as in RunRecord. last: loss, tokens and seconds of the last step
    that was noted. typical: medians over the
    steps. peak_memory_bytes: the greatest. time: when it was last heard of, in seconds since 1970.
    """

    name: str
    path: str
    command: str | None
    state: str
    reason: str | None
    step: int | None
    steps: int | None
    best: dict[str, Any]
    last: dict[str, float]
    typical: dict[str, float]
    peak_memory_bytes: float | None
    parameters: int | None
    time: float | None
    num_bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class RunDetails:
    """A run in figures, and all that its folder says of it."""

    summary: RunSummary
    checkpoints: tuple[str, ...]
    num_samples: int
    about: dict[str, Any]
    config: dict[str, Any]


@dataclass(frozen=True)
class RunDifference:
    """config, environment: dotted keys in which two runs differ, with both values; None where a run lacks the key.
    runs: both in figures."""

    runs: tuple[RunSummary, RunSummary]
    config: dict[str, tuple[Any, Any]]
    environment: dict[str, tuple[Any, Any]]


def list_runs(runs_path: str = "runs") -> list[RunSummary]:
    """Every run under a folder, the one last heard of first; a damaged one says so."""
    runs = [summarise(read_run(path)) for path in find_runs(runs_path)]
    return sorted(runs, key=lambda run: run.time or 0.0, reverse=True)


def show(name: str, runs_path: str = "runs") -> RunDetails:
    """One run.

    Args:
        name: of the run, or the path of its folder.
        runs_path: where the runs are.

    Raises:
        CheckpointError: there is no such run.
    """
    record = read_run(find_run(name, runs_path))
    summary = _whole(record)
    checkpoints = sorted(path.name for path in record.paths.checkpoints.glob("step-*.pth"))
    named = [path.name for path in (record.paths.last, record.paths.best) if path.exists()]
    samples = read_lines(record.paths.samples, [])
    return RunDetails(summary, (*checkpoints, *named), len(samples), record.about, record.config)


def diff(one: str, other: str, runs_path: str = "runs") -> RunDifference:
    """In which keys of config and environment two runs differ, and their figures.

    Raises:
        CheckpointError: there is no such run.
    """
    records = [read_run(find_run(name, runs_path)) for name in (one, other)]
    config = _different(*(record.config for record in records))
    return RunDifference(
        runs=(_whole(records[0]), _whole(records[1])),
        config={key: values for key, values in config.items() if key not in UNTOLD},
        environment=_different(*(last_start(record.about) for record in records)),
    )


def _whole(record: RunRecord) -> RunSummary:
    return summarise(record, read_columns(record.paths.metrics, (*LAST, *TYPICAL, MEMORY)))


def last_start(about: dict[str, Any]) -> dict[str, Any]:
    """The environment in which the run went on last, less when and at which step."""
    starts = about.get("starts")
    last = starts[-1] if isinstance(starts, list) and starts else {}
    return {key: value for key, value in last.items() if key not in ("time", "step")} if isinstance(last, dict) else {}


def _different(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    left, right = dict(flatten(one)), dict(flatten(other))
    pairs = {key: (left.get(key), right.get(key)) for key in sorted({*left, *right})}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def summarise(record: RunRecord, columns: Columns | None = None) -> RunSummary:
    """A run in figures; those that need every line of its metrics only if `columns` hold them."""
    columns = columns or {}
    values = {key: column for key in (*LAST, *TYPICAL, MEMORY) if (column := columns.get(key, ((), ()))[1])}
    reason = record.status.get("reason")
    return RunSummary(
        name=record.name,
        path=str(record.paths.path),
        command=record.command,
        state=record.state,
        reason=reason if isinstance(reason, str) else None,
        step=record.step,
        steps=record.steps,
        best=record.best,
        last={key: values[key][-1] for key in LAST if key in values},
        typical={key: median(values[key]) for key in TYPICAL if key in values},
        peak_memory_bytes=max(values.get(MEMORY, ()), default=None),
        parameters=record.parameters,
        time=record.time,
        num_bytes=record.num_bytes,
        problems=tuple(record.problems),
    )
