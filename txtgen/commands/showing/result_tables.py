"""What evaluate, inspect, tokenizer and others found, shown: tables for people, JSON for programs."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from txtgen.commands.average import Averaged
from txtgen.commands.check import ResumeCheck
from txtgen.commands.convert import Conversion, Merged
from txtgen.commands.evaluate import Evaluation
from txtgen.commands.inspect import Inspection
from txtgen.commands.quantize import Quantized
from txtgen.commands.shortlist import ShortlistMade
from txtgen.commands.showing.console import columns, duration, table
from txtgen.commands.showing.output import write_json
from txtgen.commands.tokenizer import TokenizerSummary, TokenizerTraining
from txtgen.config.decoding import DecodingConfig
from txtgen.config.model import ModelConfig
from txtgen.generator import Score
from txtgen.lexicon import Coverage


def report_evaluation(evaluation: Evaluation, as_json: bool) -> None:
    """Show what was measured."""
    if as_json:
        write_json(asdict(evaluation))
        return
    loss, translation = evaluation.loss, evaluation.translation
    rows: dict[str, object] = {
        "model": evaluation.model,
        "loss": f"{loss.loss:.4f} nats per token",
        "perplexity": f"{loss.perplexity:.3f} per token",
        "bits per byte": f"{loss.bits_per_byte:.4f}",
        "tokens": f"{loss.tokens:,}",
        "bytes": f"{loss.bytes:,}",
    }
    for name, part in evaluation.parts.items():
        rows[f"loss, {name}"] = f"{part.loss:.4f} nats per token, {part.tokens:,} tokens"
    if translation is not None:
        rows["BLEU"] = f"{translation.bleu:.2f}   {translation.bleu_signature}"
        rows["chrF"] = f"{translation.chrf:.2f}   {translation.chrf_signature}"
        rows["sentences"] = f"{translation.sentences:,}"
    if evaluation.shortlist is not None:
        rows["short-list"] = _coverage(evaluation.shortlist)
    if (texts := evaluation.texts) is not None:
        rows["generated"] = f"{texts.texts:,} texts of {texts.words:.1f} words"
        rows["ended by themselves"] = f"{texts.ended:.1%}"
        rows["distinct words, pairs"] = f"{texts.distinct_1:.1%}, {texts.distinct_2:.1%}"
        rows["repeated runs of 4"] = f"{texts.repeated_4:.1%}"
    table("", rows)


def report_shortlist(made: ShortlistMade, as_json: bool) -> None:
    """Show what was learnt from pairs."""
    if as_json:
        write_json(asdict(made))
        return
    table(
        "",
        {
            "written": made.path,
            "for": made.model,
            "pairs": f"{made.pairs:,}",
            "tokens": f"the {made.frequent:,} most frequent, and {made.per_token:,} for each token of the source",
            "of these pairs": _coverage(made.coverage),
            "sha256": made.fingerprint,
        },
    )


def _coverage(coverage: Coverage) -> str:
    return f"{coverage.share:.2%} of the tokens of the targets, by {coverage.tokens:,.0f} tokens a source"


def report_scores(scores: Iterable[Score], as_json: bool) -> None:
    """Show how likely texts are: a line each; of a single one, every token."""
    if as_json:
        for score in scores:
            write_json(asdict(score))
        return
    found = list(scores)
    if len(found) > 1:
        rows = [(f"{s.index + 1}", f"{s.logprob:.4f}", f"{s.perplexity:.4f}", len(s.tokens), s.text) for s in found]
        columns("", ("text", "log-probability", "perplexity", "tokens", ""), rows)
        return
    (score,) = found
    columns("", ("token", "log-probability", "probability"), [
        (repr(token)[1:-1], f"{logprob:.4f}", f"{math.exp(logprob):.4f}")
        for token, logprob in zip(score.tokens, score.token_logprobs, strict=True)
    ])  # fmt: skip
    rows_of_all = {"log-probability": f"{score.logprob:.4f}", "perplexity": f"{score.perplexity:.4f}"}
    table("", {**rows_of_all, "tokens": len(score.tokens)})


def report_conversion(conversion: Conversion, as_json: bool) -> None:
    """Show what was read and written."""
    if as_json:
        write_json(asdict(conversion))
        return
    table(
        "",
        {
            "written": conversion.path,
            "family": conversion.family,
            "parameters": f"{conversion.parameters:,} in {conversion.tensors} tensors",
            "weights": f"{conversion.num_bytes / 1e6:,.1f} MB of {conversion.dtype}",
            "tokenizer": conversion.tokenizer,
            "chat": conversion.chat,
        },
    )


def report_merge(merged: Merged, as_json: bool) -> None:
    """Show what was made part of what."""
    if as_json:
        write_json(asdict(merged))
        return
    rows: dict[str, object] = {"model": merged.model}
    rows |= {f"adapter {number}": path for number, path in enumerate(merged.adapters, 1)}
    rows |= {"written": merged.path, "parameters": f"{merged.parameters:,}", "sha256": merged.fingerprint}
    table("", rows)


def report_check(check: ResumeCheck, as_json: bool) -> None:
    """Show how a continuation compares, step by step and as a whole."""
    if as_json:
        write_json(asdict(check))
        return
    lines = []
    for trace in check.steps:
        other = check.others.get(trace.step)
        mark = "" if other is None else "same" if other == trace.loss else "DIFFERENT"
        lines.append((str(trace.step), trace.batch, repr(trace.loss), "" if other is None else repr(other), mark))
    columns("", ("step", "batch", "loss", f"loss of {check.against}", ""), lines)
    rows: dict[str, object] = {"continued": f"{check.path}, from step {check.start}", "against": check.against}
    rows |= {name: "same" if same else "DIFFERENT" for name, same in check.same.items()}
    rows |= {"machine": check.machine or "as the run was made on", "resuming is": check.verdict}
    table("", rows)


def report_average(averaged: Averaged, as_json: bool) -> None:
    """Show what was averaged into what."""
    if as_json:
        write_json(asdict(averaged))
        return
    rows: dict[str, object] = {f"checkpoint {number}": path for number, path in enumerate(averaged.parents, 1)}
    table(
        "",
        {
            **rows,
            "written": averaged.path,
            "parameters": f"{averaged.parameters:,}",
            "sha256": averaged.fingerprint,
        },
    )


def report_quantization(quantized: Quantized, as_json: bool) -> None:
    """Show what was quantised, and how much smaller it is."""
    if as_json:
        write_json(asdict(quantized))
        return
    share = quantized.bytes_after / quantized.bytes_before
    table(
        "",
        {
            "model": quantized.parent,
            "written": quantized.path,
            "parameters": f"{quantized.parameters:,}, in {quantized.kind}",
            "weights": f"{quantized.bytes_after / 1e6:,.1f} MB, {share:.0%} of {quantized.bytes_before / 1e6:,.1f} MB",
            "sha256": quantized.fingerprint,
        },
    )


def report_inspection(inspection: Inspection, as_json: bool) -> None:
    """Show what a checkpoint says of itself."""
    if as_json:
        write_json(asdict(inspection))
        return
    model, training = inspection.config["model"], inspection.training
    rows: dict[str, object] = {
        "file": inspection.path,
        "size": f"{inspection.file_bytes / 1e6:,.1f} MB",
        **({"sha256": inspection.fingerprint} if inspection.fingerprint else {}),
        "parameters": f"{inspection.parameters:,} in {len(inspection.tensors)} tensors",
        **_adapter_rows(inspection.config["adapter"]),
        **({"quantised to": inspection.config["quantization"]} if inspection.config["quantization"] else {}),
        "architecture": ", ".join(f"{key} {_shown(value)}" for key, value in _changed(ModelConfig, model).items()),
        "tokenizer": f"{inspection.tokenizer['kind']}, {inspection.tokenizer['vocabulary']:,} tokens, "
        f"sha256 {inspection.tokenizer['fingerprint'][:16]}",
        "chat": (inspection.config["chat"] or {}).get("kind", "no"),
        "generation": ", ".join(
            f"{key} {_shown(value)}" for key, value in _changed(DecodingConfig, inspection.config["generation"]).items()
        ),
    }
    rows.update({f"lineage, {key}": value for key, value in inspection.lineage.items() if value not in (None, [])})
    if training is not None:
        rows["resumable"] = f"at step {training['step']:,}, after {duration(training['seconds'])}"
    table("", rows)


def _adapter_rows(record: dict[str, Any] | None) -> dict[str, object]:
    """Of an adapter, what it is and of which model."""
    if record is None:
        return {}
    facts = {key: value for key, value in record["adapter"].items() if value not in (None, [], False, 0.0)}
    return {
        "adapter": ", ".join(f"{key} {_listed(value)}" for key, value in facts.items()),
        "base model": f"{record['base_path']}, weights' sha256 {record['base_sha256'][:16]}",
    }


def _listed(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _changed(kind: Any, section: dict[str, Any]) -> dict[str, Any]:
    """What a section of a config says beside its defaults: its kind first of all."""
    config = TypeAdapter(kind).validate_json(json.dumps(section))
    tag = "strategy" if "strategy" in section else "kind"
    default = type(config)().plain()
    return {tag: section[tag]} | {key: value for key, value in section.items() if value != default[key]}


def _shown(value: Any) -> str:
    """A value, a section of the config by its kind."""
    return str(value["kind"]) if isinstance(value, dict) else str(value)


def report_training(training: TokenizerTraining, as_json: bool) -> None:
    """Show what a tokenizer was trained on."""
    if as_json:
        write_json({**asdict(training), "path": str(training.path)})
        return
    sample = {name.replace("_", " "): value for name, value in asdict(training.sample).items()}
    rows: dict[str, object] = {"file": training.path, "pieces": f"{training.vocab_size:,}"}
    table("", {**rows, "sha256": training.fingerprint, **sample})


def report_tokenizer(summary: TokenizerSummary, as_json: bool) -> None:
    """Show a tokenizer, the pieces of a text, and how it fares on files."""
    if as_json:
        rates = [
            {
                **asdict(file),
                "bytes_per_token": file.bytes_per_token,
                "byte_fallback_rate": file.byte_fallback_rate,
                "unknown_rate": file.unknown_rate,
            }
            for file in summary.files
        ]
        write_json({**asdict(summary), "lossless": summary.lossless, "files": rates})
        return
    special = summary.special
    table(
        "",
        {
            "kind": summary.kind,
            "pieces": f"{summary.vocab_size:,}, of them {summary.num_byte_pieces} single bytes",
            "special": f"pad {special.pad_id}, unk {special.unk_id}, bos {special.bos_id}, eos {special.eos_id}",
            "control": ", ".join(f"{symbol} {number}" for symbol, number in summary.control_ids.items()) or "none",
            "sha256": summary.fingerprint,
            "lossless": "yes" if summary.lossless else "no, it loses " + "; ".join(summary.losses),
        },
    )
    if summary.tokens:
        table("tokens", {f"{t.start}-{t.end}": f"{t.piece!r}  {t.id}" for t in summary.tokens})
    if summary.files:
        table(
            "files",
            {
                file.path: f"{file.num_bytes:,} bytes, {file.num_tokens:,} tokens, "
                f"{file.bytes_per_token:.2f} bytes per token, byte fallback {file.byte_fallback_rate:.2%}, "
                f"unknown {file.unknown_rate:.2%}"
                for file in summary.files
            },
        )
