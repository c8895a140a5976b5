"""`txtgen pretrain`: a new model from a corpus."""

from collections.abc import Iterator

from txtgen.commands.running import training
from txtgen.commands.running.job import Job
from txtgen.commands.running.outlook import Section, outlook
from txtgen.commands.running.session import RunResult
from txtgen.commands.running.signals import interruptible
from txtgen.commands.running.starting import Launch, Start, with_learning_rates
from txtgen.commands.running.weights import begin, place, take_over
from txtgen.commands.showing.console import ProgressDisplay
from txtgen.config.model import DecoderConfig, EncoderDecoderConfig
from txtgen.config.runs import PretrainConfig
from txtgen.config.tokenizer import TokenizerConfig
from txtgen.data import Side, sample_texts
from txtgen.errors import ConfigError
from txtgen.files import replace_file
from txtgen.model import Transformer, build_model
from txtgen.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece


def run(config: PretrainConfig, launch: Launch | None = None) -> RunResult:
    """Pretrain a model as the config says, or go on with an interrupted run.

    Raises:
        TxtgenError: the config, the corpus or the machine does not allow it.
    """
    config = with_learning_rates(config)
    return training.run(config, launch, lambda start, display: build(config, start, display))


def build(config: PretrainConfig, start: Start, display: ProgressDisplay) -> Job:
    """The run that a config and a start make: its tokenizers and its model, new or as they were saved."""
    tokenizer, source_tokenizer = start.world.from_main(lambda: _tokenizers(config, start, display))
    model = _model(config, tokenizer, source_tokenizer)
    start.require_memory(model, config.train)
    place(model, config.train.sharding, start.device, start.world)
    if start.resumed is not None:
        take_over(model.state_dict(), start.resumed, str(start.folder.path), start.world)
    else:
        begin(model, config.seed)
    job = Job(
        command="pretrain",
        config=config,
        start=start,
        model=model,
        tokenizer=tokenizer,
        source_tokenizer=source_tokenizer,
        parents=start.parents,
    )
    display.note(f"model: {sum(p.numel() for p in model.parameters()):,} parameters on {job.device}, {job.dtype}")
    return job


def dry_run(config: PretrainConfig) -> Iterator[Section]:
    """What the run would cost. Nothing of it stays, but the tokenizer is trained, and so are a few steps."""
    config = with_learning_rates(config)
    vocabulary = config.tokenizer.vocab_size
    if config.tokenizer.path is not None:
        vocabulary = len(load_tokenizer(config.tokenizer.path))
    source = config.source_tokenizer.vocab_size if config.source_tokenizer else vocabulary
    model = build_model(sized(config.model, vocabulary, source), device="meta")
    return outlook(config, lambda _: model, lambda start, display: build(config, start, display))


def sized(
    model: DecoderConfig | EncoderDecoderConfig, vocabulary: int, source_vocabulary: int
) -> DecoderConfig | EncoderDecoderConfig:
    """The model config with its vocabulary sizes filled in from the tokenizers."""
    update = {"vocab_size": model.vocab_size or vocabulary}
    if isinstance(model, EncoderDecoderConfig):
        update["source_vocab_size"] = model.source_vocab_size or source_vocabulary
    return model.model_copy(update=update)


def _model(config: PretrainConfig, tokenizer: Tokenizer, source_tokenizer: Tokenizer | None) -> Transformer:
    """The model on the meta device."""
    size = sized(config.model, len(tokenizer), len(source_tokenizer or tokenizer))
    for key, rows, pieces in (
        ("model.vocab_size", size.vocab_size, len(tokenizer)),
        ("model.source_vocab_size", getattr(size, "source_vocab_size", None), len(source_tokenizer or tokenizer)),
    ):
        if rows is not None and rows < pieces:
            raise ConfigError(f"{rows} rows cannot hold the {pieces} tokens of the tokenizer", key, "leave it out")
    return build_model(size, device="meta")


def _tokenizers(config: PretrainConfig, start: Start, display: ProgressDisplay) -> tuple[Tokenizer, Tokenizer | None]:
    """The tokenizers of the resumed checkpoint, or those that the config names, or new ones trained on the corpus."""
    if start.resumed is not None:
        return start.resumed.tokenizer, start.resumed.source_tokenizer
    tokenizer, source_tokenizer = new_tokenizers(config, display)
    for name, content in tokenizer.files().items():
        _write(start, name, content)
    for name, content in source_tokenizer.files().items() if source_tokenizer else ():
        _write(start, f"source_{name}", content)
    return tokenizer, source_tokenizer


def new_tokenizers(config: PretrainConfig, display: ProgressDisplay) -> tuple[Tokenizer, Tokenizer | None]:
    """The tokenizers that the config names, or new ones trained on the corpus; None: of a source the same."""
    if config.source_tokenizer is None:
        return _tokenizer(config.tokenizer, config, "all", display), None
    tokenizer = _tokenizer(config.tokenizer, config, "target", display)
    return tokenizer, _tokenizer(config.source_tokenizer, config, "source", display)


def _write(start: Start, name: str, content: bytes) -> None:
    with replace_file(start.folder.path / name) as handle:
        handle.write(content)


def _tokenizer(settings: TokenizerConfig, config: PretrainConfig, which: Side, display: ProgressDisplay) -> Tokenizer:
    if settings.path is not None:
        return load_tokenizer(settings.path)
    texts = sample_texts(config.data, which, max_bytes=settings.sample_bytes, seed=config.seed)
    reserving = settings.reserving(config.data.objective.control_symbols)
    tokenizer, sample = interruptible(lambda: train_sentencepiece(reserving, texts))
    display.note(f"tokenizer: {len(tokenizer):,} pieces from {sample.bytes_used:,} bytes of text")
    return tokenizer
