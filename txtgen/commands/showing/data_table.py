"""What `txtgen data check` found, shown: tables and examples for people, JSON for programs."""

import sys
from collections.abc import Iterator
from dataclasses import asdict

from txtgen.commands.data import DataCheck
from txtgen.commands.showing.console import columns, marked, table
from txtgen.commands.showing.output import write_json, write_result
from txtgen.data import Sample, Survey

MAX_TOKENS = 400
"""Of an example, more are not shown."""

BAR_WIDTH = 40


def show_check(check: DataCheck, as_json: bool) -> None:
    """Show what was found."""
    if as_json:
        write_json(asdict(check))
        return
    parts = {"training": check.training} if check.validation is None else {
        "training": check.training, "validation": check.validation
    }  # fmt: skip
    figures = [_figures(found) for found in parts.values()]
    columns("", ("", *parts), [(name, *(each[name] for each in figures)) for name in figures[0]])
    for name, found in parts.items():
        _histogram(f"\ntokens of an example, {name}", found.lengths)
        _histogram(f"\ntokens of a source, {name}", found.source_lengths)
    for name, found in parts.items():
        for sample in found.samples:
            _sample(name, sample)
    complaints = [("error", told) for told in check.errors] + [("warning", told) for told in check.warnings]
    write_result("")
    for kind, told in complaints or [("", "nothing to complain of")]:
        write_result(f"{kind}: {told}" if kind else told)


def _figures(found: Survey) -> dict[str, str]:
    report = found.report

    def share(count: int, of: int) -> str:
        return f"{count:,} ({count / of:.2%})" if of else f"{count:,}"

    read = found.read_bytes / max(1, found.num_bytes)
    return {
        "bytes": f"{found.num_bytes:,}",
        "read": "all" if found.read_bytes >= found.num_bytes else f"{read:.2%}, a sample",
        "records": f"{report.records:,}",
        "held out": f"{report.held_out:,}",
        "blank": f"{found.blank:,}",
        "bad": share(report.bad_records, report.records),
        "repeated": share(found.repeated, found.compared),
        "in the training text": share(found.shared, found.sought) if found.sought else "",
        "too long": share(report.cut_examples, report.records),
        "examples": f"{found.examples:,}",
        "ending with the end": share(found.ending, found.examples),
        "tokens": f"{found.tokens:,}",
        "scored": share(found.scored_tokens, found.tokens),
        "single bytes": share(found.byte_tokens, found.tokens),
        "unknown": share(found.unknown_tokens, found.tokens),
        "tokens of an example": f"{found.tokens / max(1, found.examples):.1f}, at most {found.longest:,}",
    }


def _histogram(title: str, lengths: dict[int, int]) -> None:
    if not lengths:
        return
    most = max(lengths.values())
    rows: dict[str, object] = {}
    for power in range(min(lengths).bit_length() - 1, max(lengths).bit_length()):
        size = 1 << power
        bar = "#" * -(-BAR_WIDTH * lengths.get(size, 0) // most)
        rows[f"{size // 2 + 1 if power else 0:,} - {size:,}"] = f"{bar} {lengths.get(size, 0):,}"
    table(title, rows)


def _sample(name: str, sample: Sample) -> None:
    scored = sum(flag for *_, flag in sample.tokens)
    write_result(f"\n{name}, {sample.place}: {len(sample.tokens):,} tokens, {scored:,} scored")
    if sample.source:
        _tokens("source", [(piece, False) for piece, _ in sample.source])
    _tokens("target" if sample.source else "row", [(piece, flag) for piece, _, flag in sample.tokens])


def _tokens(what: str, tokens: list[tuple[str, bool]]) -> None:
    """Tokens in one line: scored ones in colour on a terminal, else between brackets."""
    shown, left = tokens[:MAX_TOKENS], len(tokens) - MAX_TOKENS
    more = f" ... and {left:,} more" if left > 0 else ""
    if not sys.stdout.isatty():
        write_result(f"{what}: {' '.join(_bracketed(shown))}{more}")
        return
    marked(what, [(_visible(piece), flag) for piece, flag in shown], more)


def _bracketed(tokens: list[tuple[str, bool]]) -> Iterator[str]:
    """The pieces, each run of scored ones between brackets."""
    before = False
    for piece, flag in [*tokens, ("", False)]:
        if flag != before:
            yield "[" if flag else "]"
        if piece:
            yield _visible(piece)
        before = flag


def _visible(piece: str) -> str:
    """A piece with what would break the line written out."""
    return repr(piece)[1:-1]
