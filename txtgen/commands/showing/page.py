"""report.html: one page that tells of one run, complete in itself, made of nothing but what its folder holds."""

import base64
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import txtgen
from txtgen.commands.running.run_record import (
    Columns,
    RunPaths,
    RunRecord,
    number,
    read_columns,
    read_lines,
    read_run,
    section,
    whole,
)
from txtgen.commands.runs import LAST, MEMORY, TYPICAL, RunSummary, last_start, summarise
from txtgen.commands.showing.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, Series, draw
from txtgen.commands.showing.formatting import formatted, moment, written
from txtgen.commands.showing.run_tables import MEASURES
from txtgen.errors import safe_text
from txtgen.files import replace_file

MAX_COLUMNS, MAX_PROMPTS, MAX_SAMPLE_CHARACTERS = 8, 24, 4_000
"""Of the samples: more than that nobody compares side by side."""

MAX_CONFIG_BYTES = 200_000

CURVES: tuple[tuple[str, Mapping[str, str], dict[str, Any]], ...] = (
    ("Loss (nats)", {"loss": "training", "val_loss": "validation"}, {"clip_first": True}),
    ("Reward of the chosen answer", {"reward_chosen": "training", "val_reward_chosen": "validation"}, {}),
    ("Reward of the rejected answer", {"reward_rejected": "training", "val_reward_rejected": "validation"}, {}),
    ("Margin of rewards", {"reward_margin": "training", "val_reward_margin": "validation"}, {}),
    ("Chosen over rejected", {"reward_accuracy": "training", "val_reward_accuracy": "validation"}, {"kind": "share"}),
    ("Validation, bits per byte", {"val_bits_per_byte": ""}, {"clip_first": True}),
    ("Validation, BLEU", {"val_bleu": ""}, {}),
    ("Validation, chrF", {"val_chrf": ""}, {}),
    ("Known text, bits per byte", {"val_known_bits_per_byte": ""}, {}),
    ("Distance from the base", {"distance": ""}, {"from_zero": True}),
    ("Learning rate", {"learning_rate": ""}, {"from_zero": True}),
    ("Gradient norm before clipping", {"grad_norm": ""}, {}),
    ("Tokens per second", {"tokens_per_second": ""}, {"from_zero": True, "kind": "count"}),
    ("Model FLOP utilisation", {"mfu": ""}, {"from_zero": True, "kind": "share"}),
    ("Waiting for data", {"data_wait_share": ""}, {"from_zero": True, "kind": "share"}),
    ("Peak memory", {"peak_memory_bytes": ""}, {"from_zero": True, "kind": "bytes"}),
)


def write_page(folder: Path) -> Path:
    """Write report.html into a run folder, whole or not at all. Returns where it is.

    Raises:
        ResourceError: it cannot be written.
    """
    paths = RunPaths(folder)
    text = render(folder)
    with replace_file(paths.page) as handle:
        handle.write(text.encode())
    return paths.page


def render(folder: Path) -> str:
    """The page of a run, as HTML. What cannot be read of the run is said on it."""
    record = read_run(folder)
    wanted = {*LAST, *TYPICAL, MEMORY, *(key for _, keys, _ in CURVES for key in keys)}
    columns = read_columns(record.paths.metrics, wanted)
    page = files("txtgen.commands.showing") / "templates"
    style, script = ((page / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = safe_text
    environment.filters["points"] = lambda curve: json.dumps([line.points for line in curve.lines])
    template = environment.from_string((page / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        # Nothing runs, styles or loads but these very texts, whatever a sample or a config holds.
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        width=WIDTH,
        height=HEIGHT,
        frame={
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "top": TOP,
            "bottom": HEIGHT - BOTTOM,
            "width": WIDTH - RIGHT - LEFT,
            "height": HEIGHT - BOTTOM - TOP,
        },
        version=txtgen.__version__,
        run=record,
        when=moment(record.time),
        tiles=_tiles(summarise(record, columns)),
        curves=_curves(record, columns),
        samples=_samples(record),
        corpus=_corpus(record.about),
        reading=_reading(record.about),
        parameters=_parameters(record.about),
        environment=_environment(record.about),
        lineage=_lineage(record),
        config=_config(record.paths),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode()


def _tiles(run: RunSummary) -> list[tuple[str, str]]:
    """The figures that one looks for first: (name, value)."""
    tiles = [(f"best {name}", formatted(run.best.get(key), spec)) for key, (name, spec) in MEASURES.items()]
    if run.best:
        tiles.append(("best at step", formatted(run.best.get("step"), ",d")))
    tiles += [
        ("training loss, last", formatted(run.last.get("loss"), ".4f")),
        ("tokens", written(run.last["tokens"], "large") if "tokens" in run.last else ""),
        ("time", formatted(run.last.get("seconds"), "duration")),
        ("tokens per second", formatted(run.typical.get("tokens_per_second"), ",.0f")),
        ("model FLOP utilisation", formatted(run.typical.get("mfu"), ".1%")),
        ("waiting for data", formatted(run.typical.get("data_wait_share"), ".1%")),
        ("peak memory", "" if run.peak_memory_bytes is None else written(run.peak_memory_bytes, "bytes", 3)),
        ("parameters", "" if run.parameters is None else written(run.parameters, "large")),
        ("size of the folder", written(run.num_bytes, "bytes", 3)),
    ]
    return [(name, value) for name, value in tiles if value]


def _curves(record: RunRecord, columns: Columns) -> list[Curve]:
    marks = [step for start in _starts(record.about) if (step := whole(start.get("step")))]
    drawn = [
        draw(title, [_series(columns, key, name) for key, name in keys.items()], marks=marks, **options)
        for title, keys, options in CURVES
    ]
    return [curve for curve in drawn if curve is not None]


def _series(columns: Columns, key: str, name: str) -> Series:
    steps, values = (np.array(column) for column in columns[key])
    order = np.argsort(steps, kind="stable")
    return Series(name, steps[order], values[order])


def _samples(record: RunRecord) -> dict[str, Any]:
    """Prompts, and what was made of them at some steps. rows: a prompt and a text for each of the steps."""
    texts: dict[str, dict[int, str]] = {}
    for line in read_lines(record.paths.samples, record.problems):
        prompt, text = line.get("prompt"), line.get("text")
        if isinstance(prompt, str) and isinstance(text, str):
            texts.setdefault(prompt, {})[line["step"]] = text
    steps = sorted({step for row in texts.values() for step in row})
    shown = _spread(steps, MAX_COLUMNS)
    rows = [
        {"prompt": _shortened(prompt), "texts": [_shortened(row.get(step, "")) for step in shown]}
        for prompt, row in list(texts.items())[:MAX_PROMPTS]
    ]
    return {"steps": shown, "rows": rows, "num_steps": len(steps), "num_prompts": len(texts)}


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """The first, the last, and others evenly between them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SAMPLE_CHARACTERS else text[:MAX_SAMPLE_CHARACTERS] + " ..."


def _corpus(about: dict[str, Any]) -> list[dict[str, str]]:
    found = about.get("corpus")
    heads = (
        ("files", "files", ",d"),
        ("bytes", "num_bytes", ",d"),
        ("documents, about", "estimated_documents", ",d"),
        ("tokens, about", "estimated_tokens", ",d"),
        ("bytes per token", "bytes_per_token", ".2f"),
        ("byte fallback", "byte_fallback_rate", ".2%"),
        ("sampled bytes", "sampled_bytes", ",d"),
    )
    sources = [source for source in found if isinstance(source, dict)] if isinstance(found, list) else []
    return [
        {
            "source": str(source.get("name", "?")),
            **{head: formatted(source.get(key), spec) for head, key, spec in heads},
        }
        for source in sources
    ]


def _reading(about: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was met in the corpus that is worth knowing: (what, how often, where first)."""
    found = section(about, "reading")
    bad = found.get("bad_examples")
    rows = [
        ("records read", found.get("records"), ""),
        ("bad, left out", found.get("bad_records"), bad),
        ("cut, too long", found.get("cut_examples"), ""),
    ]
    rows += [
        (what, odd.get("count"), odd.get("places"))
        for what, odd in section(found, "oddities").items()
        if isinstance(odd, dict)
    ]
    return [
        (what, formatted(count, ",d"), "; ".join(map(str, places)) if isinstance(places, list) else "")
        for what, count, places in rows
        if number(count)
    ]


def _parameters(about: dict[str, Any]) -> list[tuple[str, str]]:
    parts = section(about, "parameters")
    return [(key.replace("_", " "), formatted(value, ",d")) for key, value in parts.items() if number(value)]


def _starts(about: dict[str, Any]) -> list[dict[str, Any]]:
    starts = about.get("starts")
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def _environment(about: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(key.replace("_", " "), str(value)) for key, value in last_start(about).items() if value is not None]
    for start in _starts(about)[1:]:
        rows.append(("resumed", f"after step {start.get('step')}, {moment(number(start.get('time')))}"))
    return rows


def _lineage(record: RunRecord) -> list[tuple[str, str]]:
    parents = record.about.get("parents")
    rows = [("base model", record.about.get("base")), ("seed", record.config.get("seed"))]
    rows += [("parent, SHA-256", parent) for parent in (parents if isinstance(parents, list) else [])]
    tokenizer = section(record.about, "tokenizer")
    if tokenizer:
        rows.append(("tokenizer", f"{tokenizer.get('kind')}, {formatted(tokenizer.get('vocabulary'), ',d')} tokens"))
    return [(name, str(value)) for name, value in rows if value is not None]


def _config(paths: RunPaths) -> str:
    try:
        with open(paths.config, "rb") as file:
            return file.read(MAX_CONFIG_BYTES).decode(errors="replace")
    except OSError:
        return ""
