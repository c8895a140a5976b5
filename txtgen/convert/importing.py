"""From a Hugging Face folder to a checkpoint of ours."""

import logging
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import txtgen
from txtgen.chat import render
from txtgen.checkpoint import Checkpoint, check_tokenizer
from txtgen.config.chat_formats import ChatFormat, TemplateChatFormat
from txtgen.config.checkpoint import CheckpointConfig
from txtgen.config.model import EncoderDecoderConfig
from txtgen.config.tokenizer import Framing
from txtgen.convert.families import family_of, read_model
from txtgen.convert.fields import Fields, read_json
from txtgen.convert.generation import read_generation
from txtgen.convert.rules import ModelConfig
from txtgen.convert.weights import open_file, open_weights
from txtgen.errors import CheckpointError, DataError
from txtgen.tokenizer import ImportedTokenizer, Tokenizer, tokenizer_from_hf_folder

logger = logging.getLogger(__name__)

CONFIG, GENERATION = "config.json", "generation_config.json"


def import_folder(folder: Path, *, weights: Path | None = None, dtype: torch.dtype | None = None) -> Checkpoint:
    """The model of a Hugging Face folder with all that belongs to it: tokenizers, chat template, generation settings.

    Nothing is executed and nothing outside the folder is read. Weights of safetensors stay on the disk until they are
    used, if neither dtype nor layout changes.

    Args:
        folder: with config.json, tokenizer files and weights.
        weights: a file of weights to use in place of the folder's own, such as a finetuned state dict.
        dtype: of the weights; None: as they are.

    Raises:
        CheckpointError: the family is not supported, or files are missing, damaged, unsafe or do not fit together.
        ResourceError: a file may not be read.
    """
    fields = Fields(read_json(folder / CONFIG), str(folder / CONFIG))
    family = family_of(fields)
    tensors = open_weights(folder) if weights is None else open_file(weights)
    model, state = read_model(family, fields, tensors, dtype)
    settings = _settings(folder, fields)
    seq2seq = isinstance(model, EncoderDecoderConfig)
    read = tokenizer_from_hf_folder(folder)
    written = tokenizer_from_hf_folder(folder, target=True) if seq2seq else read
    config = CheckpointConfig(
        model=model,
        framing=_framing(settings, read, written.tokenizer, model),
        chat=_chat(read, str(folder)),
        generation=read_generation(settings, model.vocab_size or 0),
    )
    same = read.tokenizer.fingerprint() == written.tokenizer.fingerprint()
    checkpoint = Checkpoint(
        config, state, written.tokenizer, None if same else read.tokenizer, _lineage(family.name, folder, weights)
    )
    check_tokenizer(checkpoint, str(folder))
    return checkpoint


def _settings(folder: Path, fields: Fields) -> Fields:
    """Special tokens and settings of generation: in a file of their own, or in config.json where there is none."""
    path = folder / GENERATION
    if not path.is_file():
        return fields
    own = Fields(read_json(path), str(path))
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return Fields({**{key: fields.values.get(key) for key in tokens if key not in own}, **own.values}, own.where)


def _framing(settings: Fields, read: ImportedTokenizer, target: Tokenizer, model: ModelConfig) -> Framing:
    """The tokens around texts. Of several end tokens, training is to write the tokenizer's own."""
    special = target.special
    tokens = range(model.vocab_size or 0)
    said = settings.ids("eos_token_id")
    ends = [token for token in said if token in tokens]
    if ends != said:
        # Such as the 50256 of a GPT-2 whose config.json never said otherwise: it cannot be written, so it ends nothing.
        lost = sorted(set(said) - set(ends))
        logger.warning("%s: left out: end tokens beyond the embedding's %d rows: %s", settings.where, len(tokens), lost)
    ends = sorted(ends or [special.eos_id], key=lambda token: token != special.eos_id)
    start: list[int] = []
    if isinstance(model, EncoderDecoderConfig):
        start = settings.ids("decoder_start_token_id") or settings.ids("bos_token_id") or [special.bos_id]
        if start[0] not in tokens:
            raise CheckpointError(
                f"decoding starts with token {start[0]}, but the embedding has {len(tokens)} rows",
                settings.where,
                "use the files of one model",
            )
    suffix = read.suffix if isinstance(model, EncoderDecoderConfig) else ()
    return Framing(prefix=read.prefix, suffix=suffix, decoder_start=tuple(start[:1]), end=tuple(ends))


def _chat(read: ImportedTokenizer, where: str) -> ChatFormat | None:
    """The chat template, with the spellings that templates ask for, once it has rendered a conversation."""
    if not read.chat_template:
        return None
    names = read.tokenizer.names
    try:
        chat = TemplateChatFormat(
            template=read.chat_template,
            bos_token=names.bos,
            eos_token=names.eos,
            pad_token=names.pad,
            unk_token=names.unk,
        )
        with suppress(DataError):  # it may want another conversation
            render([("user", "Hello")], chat, reply=True)
    except (ValidationError, CheckpointError) as error:
        what = error.what if isinstance(error, CheckpointError) else "the chat template or a special token is too long"
        raise CheckpointError(what, where, "mend the template in the folder, or remove it") from error
    return chat


def _lineage(family: str, folder: Path, weights: Path | None) -> dict[str, Any]:
    return {
        "command": "convert from-hf",
        "family": family,
        "folder": folder.resolve().name,
        "weights": None if weights is None else weights.name,
        "parent": None,
        "ancestors": [],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "txtgen": txtgen.__version__,
    }
