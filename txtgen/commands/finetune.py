"""`txtgen finetune`: a trained model goes on learning, in far smaller steps."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from txtgen.checkpoint import Checkpoint, check_tokenizer, load_checkpoint
from txtgen.commands.console import ProgressDisplay
from txtgen.commands.job import Job
from txtgen.commands.models import resolve_model
from txtgen.commands.outlook import Section, outlook
from txtgen.commands.starting import Launch, Start, rows_so_far, start_run, with_learning_rates
from txtgen.commands.training import RunResult
from txtgen.commands.training import run as run_training
from txtgen.commands.weights import place, read_once, take_over
from txtgen.config.commands import FinetuneConfig, architecture_problems
from txtgen.config.model import DecoderConfig, EncoderDecoderConfig
from txtgen.distributed import World
from txtgen.errors import CheckpointError, ConfigError
from txtgen.model import Transformer, build_model
from txtgen.tokenizer import load_tokenizer

SMALLER = 0.1
"""Of the learning rate that pretraining has: finetuning should move the weights far less."""


def run(config: FinetuneConfig, launch: Launch | None = None) -> RunResult:
    """Finetune a model as the config says, or go on with an interrupted run.

    Raises:
        TxtgenError: the config, the base model, the corpus or the machine does not allow it.
    """
    config = with_learning_rates(config, SMALLER)
    with start_run(config, launch or Launch()) as start:
        display = ProgressDisplay(config.train.steps, quiet=not start.world.is_main)
        for warning in start.warnings:
            display.note(warning)
        return run_training(build(config, start, display), display)


def build(config: FinetuneConfig, start: Start, display: ProgressDisplay) -> Job:
    """The run that a config and a start make: the base model, or as far as it was saved."""
    base = start.resumed or read_once(lambda: _base(config), start.world)
    where = config.base or str(start.folder.path)
    model = prepare(base, config, where)
    start.require_memory(model, config.train)
    place(model, config.train.sharding, start.device, start.world)
    take_over(model, base, where, start.world)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    display.note(f"model: {trained:,} parameters to train on {start.device}, {start.dtype}")
    ancestors = (*base.lineage.get("ancestors", ()), base.fingerprint)
    job = Job(
        command="finetune",
        config=config,
        start=start,
        model=model,
        tokenizer=base.tokenizer,
        source_tokenizer=base.source_tokenizer,
        parents=start.parents if start.resumed else ancestors,
        base=base.config,
    )
    if job.row_length < (longest := model.config.max_length) and config.train.sequence_length is None:
        display.note(f"rows of {job.row_length:,} tokens; train.sequence_length may be up to {longest:,}")
    return job


def dry_run(config: FinetuneConfig) -> Iterator[Section]:
    """What the run would cost. Nothing of it stays, but a few steps are trained."""
    config = with_learning_rates(config, SMALLER)

    def sketch(world: World) -> Transformer:
        return prepare(read_once(lambda: _base(config), world), config, where=config.base or "")

    return outlook(config, sketch, lambda start, display: build(config, start, display))


def _base(config: FinetuneConfig) -> Checkpoint:
    if config.base is None:
        raise ConfigError("finetuning needs a model to start from", "base", "add --base MODEL, or base: in the config")
    return load_checkpoint(resolve_model(config.base, config.runs_path))


def prepare(base: Checkpoint, config: FinetuneConfig, where: str) -> Transformer:
    """The base model, on the meta device, with what the config changes about it: dropout, and which parameters are
    frozen.

    Raises:
        ConfigError: the data does not suit the base model, or a pattern freezes nothing or everything.
    """
    require_suitable(base, config, where)
    check_tokenizer(base, where)
    base.require_unquantized("training", where)
    _refuse_other_tokenizer(base, config)
    model = build_model(_with_dropout(base.config.model, config.dropout), device="meta")
    freeze(model, config.freeze)
    return model


def require_suitable(base: Checkpoint, config: FinetuneConfig, where: str) -> None:
    """Refuse data that the base model cannot learn from.

    Raises:
        ConfigError: it does not fit its architecture or its length.
    """
    train = config.train
    length = train.sequence_length or rows_so_far(base.training, train.batch_tokens)
    train = train.model_copy(update={"sequence_length": length})
    problems = list(architecture_problems(base.config.model, config.data, train, base.config.framing))
    if problems:
        raise ConfigError(
            "; ".join(f"{key}: {complaint}" for key, complaint in problems), f"base {where}", "change the config"
        )


def _refuse_other_tokenizer(base: Checkpoint, config: FinetuneConfig) -> None:
    """A model's embeddings mean nothing to another tokenizer, even one of equal size."""
    if config.tokenizer is None or config.tokenizer.path is None:
        return
    other = load_tokenizer(config.tokenizer.path)
    if other.fingerprint() != base.tokenizer.fingerprint():
        raise CheckpointError(
            f"the tokenizer {config.tokenizer.path} ({len(other)} tokens) is not the base model's own "
            f"({len(base.tokenizer)} tokens)",
            "tokenizer.path",
            "leave tokenizer out of the config: the base model brings its own",
        )


def _with_dropout(
    model: DecoderConfig | EncoderDecoderConfig, dropout: float | None
) -> DecoderConfig | EncoderDecoderConfig:
    return model if dropout is None else model.model_copy(update={"dropout": dropout})


def freeze(model: Transformer, patterns: tuple[str, ...]) -> None:
    """Exclude the parameters whose names match a glob pattern from training.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"the pattern {pattern!r} matches no parameter", "freeze", f"names look like {', '.join(names[:3])}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in patterns))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("every parameter is frozen", "freeze", "leave something to train")
