"""`txtgen data check`: what a run would learn from, looked over before it is begun."""

from dataclasses import dataclass
from typing import assert_never

from txtgen.checkpoint import load_checkpoint
from txtgen.commands.finetune import require_suitable
from txtgen.commands.models import resolve_model
from txtgen.commands.pretrain import new_tokenizers, sized
from txtgen.commands.running.vocabulary import with_tokenizers
from txtgen.commands.showing.console import ProgressDisplay
from txtgen.config.checkpoint import inherited
from txtgen.config.commands import DataCheckConfig
from txtgen.config.data import DataConfig, SubwordSampling
from txtgen.config.model import DecoderConfig, EncoderDecoderConfig
from txtgen.config.objectives import ObjectiveConfig
from txtgen.config.runs import FinetuneConfig, PretrainConfig, row_length
from txtgen.config.tokenizer import Framing
from txtgen.data import Objective, Survey, build_objective, survey
from txtgen.errors import ConfigError, DataError
from txtgen.tokenizer import Tokenizer

MUCH = 0.01
"""A share of examples or records that is worth a warning, where some are to be expected."""

MUCH_FALLBACK = 0.05
"""A share of single bytes among the tokens that tells of a tokenizer made for other text."""


Subject = tuple[
    PretrainConfig | FinetuneConfig, DecoderConfig | EncoderDecoderConfig, Tokenizer, Tokenizer | None, Framing | None
]
"""A config that leaves nothing open, its model, tokenizer and source tokenizer, and the framing of its base."""


@dataclass(frozen=True, slots=True)
class DataCheck:
    """What was found: of the training text, of the held-out text if there is any, and what of it keeps the run from
    going through (errors) or may be a mistake (warnings), in words."""

    training: Survey
    validation: Survey | None
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """That of a data error, if there is one."""
        return DataError.exit_code if self.errors else 0


def check(config: DataCheckConfig, run: PretrainConfig | FinetuneConfig) -> DataCheck:
    """Look over the data of a run: the examples that its first epoch and its validation would be made of.

    Raises:
        DataError: a source cannot be read or holds no text.
        TxtgenError: tokenizer, base model or objective cannot be had.
    """
    settled, model, tokenizer, source_tokenizer, framing = _subject(run)

    def objective(learnt: ObjectiveConfig, sampling: SubwordSampling | None = None) -> Objective:
        return build_objective(
            learnt,
            tokenizer,
            source_tokenizer,
            max_length=row_length(run.train.sequence_length, model, framing),
            max_source_length=model.source_length,
            framing=framing,
            sampling=sampling,
        )

    training, validation = survey(
        run.data,
        objective(settled.data.training_objective, run.data.subword_sampling),
        objective(settled.data.objective),
        source_tokenizer=source_tokenizer,
        seed=run.seed,
        max_bytes=config.max_bytes,
        num_samples=config.samples,
    )
    parts = {"training": training} if validation is None else {"training": training, "validation": validation}
    errors = [f"{name}: {error}" for name, found in parts.items() for error in _errors(found, run.data)]
    warnings = [f"{name}: {warning}" for name, found in parts.items() for warning in _warnings(found)]
    return DataCheck(training, validation, tuple(errors), tuple(warnings))


def _subject(run: PretrainConfig | FinetuneConfig) -> Subject:
    """What the run's objective is made of."""
    match run:
        case PretrainConfig():
            tokenizer, source_tokenizer = new_tokenizers(run, ProgressDisplay(0))
            model = sized(run.model, len(tokenizer), len(source_tokenizer or tokenizer))
            return run, model, tokenizer, source_tokenizer, None
        case FinetuneConfig(base=None):
            raise ConfigError("finetuning needs a base model", "base", "add --base MODEL, or base: in the config")
        case FinetuneConfig():
            path = resolve_model(run.base, run.runs_path)
            base = load_checkpoint(path, weights=False)
            base = with_tokenizers(base, run.tokenizer, run.source_tokenizer, str(path))
            require_suitable(base, run, str(path))
            about, framing = base.config, base.config.framing
            return inherited(run, about), about.model, base.tokenizer, base.source_tokenizer, framing
        case _:
            assert_never(run)


def _errors(found: Survey, data: DataConfig) -> list[str]:
    errors: list[str] = []
    report = found.report
    if report.bad_records and data.on_bad_record == "raise":
        errors.append(
            f"{report.bad_records:,} bad records, and the first stops the run: {'; '.join(report.bad_examples)}"
        )
    elif report.bad_records > data.max_bad_fraction * report.records:
        errors.append(
            f"{report.bad_records:,} of {report.records:,} records are bad, more than max_bad_fraction "
            f"{data.max_bad_fraction}: {'; '.join(report.bad_examples)}"
        )
    if not found.examples:
        errors.append(f"there is nothing to learn: {report.records:,} records, {report.bad_records:,} of them bad")
    return errors


def _warnings(found: Survey) -> list[str]:
    warnings: list[str] = []
    report = found.report
    if not found.examples:
        return warnings
    if report.cut_examples > MUCH * report.records:
        warnings.append(f"{report.cut_examples:,} of {report.records:,} records are too long, and cut or split")
    endless = found.examples - found.ending
    if not found.ending:
        warnings.append("no example ends with the end token, so the model would not learn to stop")
    elif report.cut_examples and endless > MUCH * found.examples:
        warnings.append(f"{endless:,} of {found.examples:,} examples have lost their end token")
    if found.repeated > MUCH * found.compared:
        warnings.append(f"{found.repeated:,} of {found.compared:,} records repeat another one")
    if found.shared:
        warnings.append(f"{found.shared:,} of {found.sought:,} records are in the training text too")
    if found.byte_tokens > MUCH_FALLBACK * found.tokens:
        warnings.append(
            f"{found.byte_tokens / found.tokens:.1%} of the tokens are single bytes: a tokenizer made for other text?"
        )
    if found.unknown_tokens:
        warnings.append(f"{found.unknown_tokens:,} tokens are unknown, and what they stood for is lost")
    for what, odd in report.oddities.items():
        warnings.append(f"{what}, in {odd.count:,} of {report.records:,} records, such as {', '.join(odd.places)}")
    return warnings
