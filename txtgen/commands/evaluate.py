"""`txtgen evaluate`: loss on text, and BLEU and chrF on pairs."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from txtgen.checkpoint import LoadedModel, materialise
from txtgen.commands.devices import inference_dtype, select_device
from txtgen.commands.models import read_model, read_shortlist
from txtgen.commands.sources import guess_source
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.commands import EvaluateConfig
from txtgen.config.data import DataConfig
from txtgen.config.decoding_options import resolve_decoding
from txtgen.config.loader import config_from_tree
from txtgen.config.model import EncoderDecoderConfig
from txtgen.config.objectives import PAIRS, TEXTS, DpoObjective, ObjectiveConfig, Seq2SeqObjective
from txtgen.config.runs import row_length
from txtgen.data import build_objective, validation_pairs, validation_parts, validation_records
from txtgen.errors import ConfigError, DataError, UsageError
from txtgen.evaluate import (
    LossMetrics,
    TextMetrics,
    TranslationMetrics,
    describe,
    evaluate_loss,
    openings,
    shortlist_coverage,
    translate_pairs,
    weighted_loss,
)
from txtgen.files import replace_file
from txtgen.generator import Generator, Prompt
from txtgen.lexicon import Coverage


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured: loss always, of a mixture also that of each part by name; translation scores for pairs unless
    they were not wanted; what generated texts are like if that was; what of the targets a short-list has."""

    model: str
    loss: LossMetrics
    parts: dict[str, LossMetrics]
    translation: TranslationMetrics | None
    texts: TextMetrics | None
    shortlist: Coverage | None = None


def run(config: EvaluateConfig) -> Evaluation:
    """Measure a model on held-out data.

    Raises:
        CheckpointError: the model cannot be read.
        ConfigError: rows are to be longer than the model allows.
        DataError: the data cannot be read, is of a kind that the model does not read, or the model's own run held
            nothing out and no data is given.
        UsageError: a short-list is given, and nothing is generated.
    """
    path, checkpoint = read_model(config.model, config.runs_path, config.adapters)
    loaded = materialise(checkpoint, str(path), select_device(config.device), inference_dtype(config.dtype))
    trained_on = loaded.config.run
    data = _data(config, loaded.config, str(path))
    length = _row_length(config, loaded.config)
    objective = build_objective(
        data.objective,
        loaded.tokenizer,
        loaded.source_tokenizer or loaded.tokenizer,
        max_length=length,
        max_source_length=loaded.config.model.source_length,
        framing=loaded.config.framing,
    )
    translates = config.translate and any(isinstance(part, Seq2SeqObjective) for part in data.objective.members)
    generator = _generator(loaded, config) if translates or config.generate else None
    if generator is None and config.shortlist is not None:
        raise UsageError("nothing is generated, and a short-list is for that", "shortlist", "leave it out")
    seed = trained_on.get("seed", 0)
    batches = validation_parts(data, objective, batch_tokens=max(config.batch_tokens, length), length=length, seed=seed)
    found = {name: evaluate_loss(loaded.model, part) for name, part in batches.items()}
    loss = weighted_loss(found, objective.weights)
    parts = found if objective.weights else {}
    translation = texts = coverage = None
    if generator is not None and translates:
        translation = _translate(generator, data, seed, config)
        if translation is not None and generator.shortlist is not None:
            coverage = shortlist_coverage(generator, validation_pairs(data, seed=seed))
    if generator is not None and config.generate:
        texts = _describe(generator, data, seed, config)
    return Evaluation(str(path), loss, parts, translation, texts, coverage)


def _row_length(config: EvaluateConfig, model: CheckpointConfig) -> int:
    """Positions of a row of text: what the user says, or else what the model was trained with. Of a target: all."""
    if isinstance(model.model, EncoderDecoderConfig):
        if config.sequence_length is not None:
            raise UsageError("an encoder-decoder has no rows of text", "sequence_length", "leave it out")
        return model.model.max_length
    trained = (model.run.get("train") or {}).get("sequence_length")
    length = row_length(config.sequence_length or trained, model.model, model.framing)
    if length > model.model.max_length:
        raise ConfigError(
            f"is {length}, more than the model's max_length {model.model.max_length}", "sequence_length", "lower it"
        )
    return length


def _generator(loaded: LoadedModel, config: EvaluateConfig) -> Generator:
    shortlist = read_shortlist(config.shortlist)
    return Generator(loaded, batch_size=64, native=config.native, compile=config.compile, shortlist=shortlist)


def _translate(generator: Generator, data: DataConfig, seed: int, config: EvaluateConfig) -> TranslationMetrics | None:
    pairs = list(validation_pairs(data, seed=seed))
    if not pairs:
        return None
    texts, scores = translate_pairs(generator, pairs, data.validation.bleu_tokenizer, **config.decoding)
    if config.output is not None:
        with replace_file(Path(config.output)) as handle:
            handle.write("".join(text + "\n" for text in texts).encode())
    return scores


def _describe(generator: Generator, data: DataConfig, seed: int, config: EvaluateConfig) -> TextMetrics:
    """What the model's texts are like that go on from what is held out, where it leaves them room."""
    max_length = resolve_decoding(generator.loaded.config.generation, config.decoding).max_length
    candidates = openings(validation_records(data, seed=seed))
    prompts = list(islice((each for each in candidates if _has_room(generator, each, max_length)), config.generate))
    if not prompts:
        raise DataError("what is held out has nothing to go on from", "--generate", "give longer texts, or replies")
    return describe(generator.generate(prompts, **{**config.decoding, "num_return": 1}))


def _has_room(generator: Generator, prompt: Prompt, max_length: int | None) -> bool:
    room = generator.room(prompt, max_length)
    return room is None or room > 0


def _data(config: EvaluateConfig, model: CheckpointConfig, where: str) -> DataConfig:
    """The data to measure on: what the user named, read as the model's own, or what the model's run held out."""
    trained_on, seq2seq = model.run, isinstance(model.model, EncoderDecoderConfig)
    format = None if model.chat is None else model.chat.plain()
    own = trained_on.get("data") or {}
    if not config.paths:
        if not own:
            raise DataError("the model does not say what it was trained on", where, "give --data PATH")
        overrides = [f"validation.bleu_tokenizer={config.bleu_tokenizer}"] if config.bleu_tokenizer else []
        data: DataConfig = config_from_tree(DataConfig, own, overrides)
        if isinstance(data.objective, DpoObjective):
            told = "what the model's run held out are pairs of answers, which are compared with its base model"
            raise DataError(told, where, "see val_reward_margin in the run's metrics.jsonl, or give --data PATH")
        if not (data.validation.sources or data.validation.fraction):
            raise DataError("the model's run held nothing out", where, "give --data PATH")
        return data
    texts = [source["documents"] for source in own.get("sources", ()) if source.get("kind") == "text"]
    source = guess_source(list(config.paths), config.target, texts[0] if texts else "file")
    objective = own.get("objective") or {"kind": "seq2seq" if seq2seq else "causal_lm"}
    if objective.get("kind") == "dpo":
        objective = {"kind": "seq2seq" if seq2seq else "chat", "format": format}
    readable = config_from_tree(ObjectiveConfig, objective).readable
    if source["kind"] not in readable:
        if source["kind"] not in TEXTS or seq2seq:
            fix = "name pairs: a .tsv or .jsonl file, or two files with --target" if readable & PAIRS else "name texts"
            kind = "plain text" if source["kind"] == "text" else f"of kind {source['kind']}"
            told = f"the data is {kind}, and the model learnt to read other data"
            raise DataError(told, ", ".join(config.paths), fix)
        objective = {"kind": "causal_lm"}
    bleu = config.bleu_tokenizer or (own.get("validation") or {}).get("bleu_tokenizer", "13a")
    tree = {
        "sources": [source],
        "validation": {"sources": [source], "bleu_tokenizer": bleu},
        "objective": objective,
        "on_bad_record": own.get("on_bad_record", "raise"),
    }
    return config_from_tree(DataConfig, tree)
