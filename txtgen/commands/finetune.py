"""`txtgen finetune`: a trained model goes on learning, in far smaller steps."""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from txtgen.checkpoint import Checkpoint, check_tokenizer, load_checkpoint, quantized
from txtgen.commands.adapters import record_of, require_adapter, require_base
from txtgen.commands.models import read_found, read_model, resolve_model
from txtgen.commands.running import training
from txtgen.commands.running.job import Job
from txtgen.commands.running.outlook import Section, outlook
from txtgen.commands.running.resuming import row_length_so_far
from txtgen.commands.running.session import RunResult
from txtgen.commands.running.starting import Launch, Start, with_learning_rates
from txtgen.commands.running.vocabulary import VOCABULARIES, with_vocabulary
from txtgen.commands.running.weights import place, read_once, take_over
from txtgen.commands.showing.console import ProgressDisplay
from txtgen.config.finetuning import FreezeConfig, LoraConfig
from txtgen.config.model import DecoderConfig, EncoderDecoderConfig
from txtgen.config.objectives import DpoObjective
from txtgen.config.runs import FinetuneConfig, architecture_problems
from txtgen.distributed import World
from txtgen.errors import ConfigError
from txtgen.model import Transformer, build_model
from txtgen.model.depth import depths
from txtgen.model.lora import add_adapters, initial_adapter, is_of_adapter
from txtgen.model.quantize import quantize_model

SMALLER = 0.1
"""Of a learning rate: what is left of it where weights should move far less."""


def run(config: FinetuneConfig, launch: Launch | None = None) -> RunResult:
    """Finetune a model as the config says, or go on with an interrupted run.

    Raises:
        TxtgenError: the config, the base model, the corpus or the machine does not allow it.
    """
    config = with_learning_rates(config, share_of_rate(config))
    return training.run(config, launch, lambda start, display: build(config, start, display))


def share_of_rate(config: FinetuneConfig) -> float:
    """The usual learning rate as a share of pretraining's: a tenth, so that what is known stays; all of it for an
    adapter that AdamW learns, which begins at zero; and a tenth of either for preferences, which are to shift a model
    and no more."""
    # Steps of Muon have a size of their own, at which thin matrices would go too far.
    share = 1.0 if config.adapter and config.train.optimizer.kind == "adamw" else SMALLER
    return share * SMALLER if isinstance(config.data.objective, DpoObjective) else share


def build(config: FinetuneConfig, start: Start, display: ProgressDisplay) -> Job:
    """The run that a config and a start make: the base model, or as far as it was saved."""
    if start.resumed is not None:
        start.world.from_main(lambda: _require_same_base(config, start))
    base, where = _begin(config, start.resumed, start.world), config.base or str(start.folder.path)
    model = prepare(base, config, where)
    start.require_memory(model, config.train)
    place(model, config.train.sharding, start.device, start.world)
    take_over(model.state_dict(), base, where, start.world)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for told in ({key: base.lineage[key]} for key in VOCABULARIES if start.resumed is None and key in base.lineage):
        start = replace(start, changes=(*start.changes, {"step": 0, **told}))
        display.note(f"vocabulary: {next(iter(told.values()))}")
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
    display.note(f"model: {trained:,} parameters to train on {job.device}, {job.dtype}")
    if job.row_length < (longest := model.config.max_length) and config.train.sequence_length is None:
        display.note(f"rows of {job.row_length:,} tokens; train.sequence_length may be up to {longest:,}")
    return job


def dry_run(config: FinetuneConfig) -> Iterator[Section]:
    """What the run would cost. Nothing of it stays, but a few steps are trained."""
    config = with_learning_rates(config, share_of_rate(config))

    def sketch(world: World) -> Transformer:
        return prepare(_begin(config, None, world), config, where=config.base or "")

    return outlook(config, sketch, lambda start, display: build(config, start, display))


def _begin(config: FinetuneConfig, resumed: Checkpoint | None, world: World) -> Checkpoint:
    """All weights that the run begins with: the base model's, or as far as they were saved."""
    adapter = config.adapter
    if adapter is not None:
        return read_once(lambda: _beside_base(adapter, config, resumed), world)
    return resumed or read_once(lambda: _with_vocabulary(config), world)


def _require_same_base(config: FinetuneConfig, start: Start) -> None:
    """Refuse to say of a resumed run that it began with another model; one that has moved is known by its content.

    Raises:
        ConfigError: it is another one.
        CheckpointError: there is no such model.
    """
    before = start.resumed.config.run.get("base") if start.resumed else None
    if config.base == before or config.adapter is not None:  # an adapter's base is known by its weights, once read
        return
    base = load_checkpoint(resolve_model(_base_of(config), config.runs_path), weights=False)
    if base.fingerprint not in start.parents:
        raise ConfigError(
            f"a resumed run cannot change base: {before!r} -> {config.base!r}, which is another model",
            str(start.folder.path),
            "leave out --base, or finetune that model in a run of its own",
        )


def _with_vocabulary(config: FinetuneConfig) -> Checkpoint:
    """The base model, its rows fitted to the tokens that the run is to have."""
    base = read_model(_base_of(config), config.runs_path)[1]
    return with_vocabulary(base, config.tokenizer, config.source_tokenizer, config.base or "")


def _beside_base(adapter: LoraConfig, config: FinetuneConfig, resumed: Checkpoint | None) -> Checkpoint:
    """The weights of the base model, which may be in few bits, and those of an adapter beside them."""
    path, base = found = read_found(_base_of(config), config.runs_path)
    if resumed is None:
        require_base([], found)
        begun, record = base, record_of(adapter, base, path)
    else:
        require_base([(Path(config.runs_path) / (config.name or ""), resumed)], found)
        begun, record = resumed, require_adapter(resumed, "the run")
    if adapter.base_quantization is not None:
        base = quantized(base, adapter.base_quantization, str(path))
    told = begun.config.model_copy(update={"adapter": record, "quantization": base.config.quantization})
    begun = replace(begun, config=told)
    weights = begun.model if resumed else initial_adapter(prepare(begun, config, str(path)), config.seed)
    return replace(begun, model={**base.model, **weights})


def _base_of(config: FinetuneConfig) -> str:
    if config.base is None:
        raise ConfigError("finetuning needs a model to start from", "base", "add --base MODEL, or base: in the config")
    return config.base


def prepare(base: Checkpoint, config: FinetuneConfig, where: str) -> Transformer:
    """The base model, on the meta device, with what the config changes about it: dropout, an adapter, and which
    parameters are frozen.

    Raises:
        ConfigError: the data does not suit the base model, or a pattern freezes nothing or everything.
    """
    require_suitable(base, config, where)
    check_tokenizer(base, where)
    if config.adapter is None:
        base.require_unquantized("training", where)
    dropout = 0.0 if config.dropout is None and isinstance(config.data.objective, DpoObjective) else config.dropout
    model = build_model(_with_dropout(base.config.model, dropout), device="meta")
    if config.adapter is None:
        freeze(model, config.freeze)
        return model
    if base.config.quantization is not None:
        quantize_model(model, base.config.quantization)
    add_adapters(model, config.adapter)
    train_only(model, config.adapter.trainable)
    return model


def require_suitable(base: Checkpoint, config: FinetuneConfig, where: str) -> None:
    """Refuse data that the base model cannot learn from.

    Raises:
        ConfigError: it does not fit its architecture or its length.
    """
    train = config.train
    length = train.sequence_length or row_length_so_far(base.training, train.batch_tokens)
    train = train.model_copy(update={"sequence_length": length})
    problems = list(architecture_problems(base.config.model, config.data, train, base.config.framing))
    if problems:
        raise ConfigError(
            "; ".join(f"{key}: {complaint}" for key, complaint in problems), f"base {where}", "change the config"
        )


def _with_dropout(
    model: DecoderConfig | EncoderDecoderConfig, dropout: float | None
) -> DecoderConfig | EncoderDecoderConfig:
    return model if dropout is None else model.model_copy(update={"dropout": dropout})


def freeze(model: Transformer, config: FreezeConfig) -> None:
    """Exclude parameters from training.

    Raises:
        ConfigError: a pattern matches nothing, there are not as many layers, or nothing is left to train.
    """
    frozen = _matching(model, config.patterns, "freeze")
    if config.embeddings:
        frozen |= {name for name, _ in model.named_parameters() if "_embedding." in name}
    if config.all_but_last is not None:
        depth_of = depths(model)
        if config.all_but_last > (most := max(depth_of.values())):
            raise ConfigError(
                f"the model has {most} layers, fewer than {config.all_but_last}", "freeze.all_but_last", "lower it"
            )
        frozen |= {name for name, depth in depth_of.items() if depth >= config.all_but_last}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("every parameter is frozen", "freeze", "leave something to train")


def train_only(model: Transformer, patterns: tuple[str, ...]) -> None:
    """Train adapters and the parameters whose names match a glob pattern, nothing else.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    trained = _matching(model, patterns, "adapter.trainable")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_of_adapter(name) or name in trained)


def _matching(model: Transformer, patterns: tuple[str, ...], key: str) -> set[str]:
    """The parameters whose names match one of the patterns, each of which must match some."""
    names = [name for name, _ in model.named_parameters() if not is_of_adapter(name)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"the pattern {pattern!r} matches no parameter", key, f"names look like {', '.join(names[:3])}"
            )
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
