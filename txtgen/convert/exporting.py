"""From a checkpoint of ours to a Hugging Face folder."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_never

import torch
from safetensors.torch import save_file
from torch import Tensor

from txtgen.checkpoint import Checkpoint
from txtgen.config.chat_formats import ChatFormat, TemplateChatFormat, TextChatFormat, TokensChatFormat
from txtgen.config.model import EncoderDecoderConfig
from txtgen.config.tokenizer import Framing
from txtgen.convert.families import Written, writable_family
from txtgen.convert.generation import write_generation
from txtgen.convert.importing import CONFIG, GENERATION
from txtgen.convert.weights import narrowed
from txtgen.errors import BusyError, CheckpointError, ResourceError
from txtgen.files import flush
from txtgen.tokenizer import export_tokenizer, never_written, own_framing

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5_000_000_000
"""As large as the files of weights get."""


def export_folder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Write a folder that transformers loads: config, weights, tokenizer, generation settings.

    It appears whole or not at all. Returns the name of the family.

    Args:
        checkpoint: what to write.
        folder: must not exist, or be empty.
        family: to write it as; None: the first that can say all that the config says.
        dtype: of the weights; None: as they are.
        max_shard_bytes: size of a file of weights; a larger tensor has a file of its own.

    Raises:
        BusyError: there is something in the folder.
        CheckpointError: no family has such models; the error names the option that stands in the way.
        ResourceError: there is no room, or no permission.
    """
    chosen = writable_family(checkpoint.config.model, checkpoint.model, family)
    written = Written(chosen, checkpoint.config.model, checkpoint.model)
    lost = set(checkpoint.model) - {name for rule in chosen.rules(checkpoint.config.model) for name in rule.names}
    if lost:
        raise CheckpointError(
            f"{chosen.name} has no place for {sorted(lost)[0]}", "model", "use the config that made the weights"
        )
    if checkpoint.config.bidirectional_prompt:
        logger.warning(
            "transformers will read prompts in one direction, and this model has learnt to read them in both"
        )
    with _appearing(folder) as place:
        dtype = dtype or next(iter(checkpoint.model.values())).dtype
        named = {
            "architectures": [chosen.architecture],
            "model_type": chosen.name,
            "dtype": str(dtype).removeprefix("torch."),
        }
        _write_json(place / CONFIG, named | chosen.write(checkpoint.config.model) | _special(checkpoint))
        _write_json(place / GENERATION, _generation(checkpoint))
        _write_weights(place, written, dtype, max_shard_bytes)
        framing = _framing(checkpoint)
        export_tokenizer(
            checkpoint.tokenizer,
            place,
            family=chosen.name,
            prefix=framing.prefix,
            suffix=framing.suffix,
            chat_template=_chat_template(checkpoint.config.chat),
            source_tokenizer=checkpoint.source_tokenizer,
        )
    return chosen.name


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A new folder: beside a missing one, whose name it gets when all went well; in an empty one, which it then fills.

    An empty folder stays itself: it may be the current one, a link, or the root of a disk.
    """
    exists = os.path.lexists(folder)
    name = f"{folder.resolve().name}.tmp.{os.getpid()}"
    place = folder / name if exists else folder.with_name(name)
    try:
        if exists and (not folder.is_dir() or any(folder.iterdir())):
            raise BusyError(
                "there is something already", str(folder), "choose a folder that is empty or does not exist"
            )
        place.mkdir(parents=True)
        yield place
        for path in place.iterdir():
            flush(path)
        if exists:
            for path in sorted(place.iterdir(), key=lambda path: path.name == CONFIG):  # without it, it is no model
                os.replace(path, folder / path.name)
        else:
            os.replace(place, folder)
        flush(folder if exists else folder.parent)
    except OSError as error:
        raise ResourceError(
            f"cannot write: {error.strerror or error}", str(folder), "free space, or choose another place"
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _special(checkpoint: Checkpoint) -> dict[str, Any]:
    """The special tokens by id, as transformers needs them to generate."""
    special, framing = checkpoint.tokenizer.special, _framing(checkpoint)
    ends = list(framing.end)
    found: dict[str, Any] = {
        "bos_token_id": special.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": special.pad_id,
    }
    return found | ({"decoder_start_token_id": framing.decoder_start[0]} if framing.decoder_start else {})


def _framing(checkpoint: Checkpoint) -> Framing:
    seq2seq = isinstance(checkpoint.config.model, EncoderDecoderConfig)
    source = (checkpoint.source_tokenizer or checkpoint.tokenizer).special
    return checkpoint.config.framing or own_framing(checkpoint.tokenizer.special, source if seq2seq else None)


TOKENS_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The format of turns by role tokens, as a template."""


def _chat_template(chat: ChatFormat | None) -> str | None:
    """The template of a conversation, where a template can say it."""
    match chat:
        case TemplateChatFormat():
            return chat.template
        case TokensChatFormat():
            return TOKENS_TEMPLATE
        case TextChatFormat():
            # Its runs of text are tokenised one by one, which a template cannot say.
            logger.warning("the chat format of kind text is not exported")
            return None
        case None:
            return None
        case _:
            assert_never(chat)


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings to generate with; what our generator never writes, transformers must not either."""
    found = write_generation(checkpoint.config.generation)
    never = never_written(checkpoint.tokenizer, checkpoint.config.framing, checkpoint.config.model.vocab_size or 0)
    suppressed = sorted({*never, *found.get("suppress_tokens", ())})
    return _special(checkpoint) | found | ({"suppress_tokens": suppressed} if suppressed else {})


def _write_weights(place: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, max_shard_bytes: int) -> None:
    """Files of at most so many bytes, with an index if there are several."""
    sizes = {name: weights[name].numel() * dtype.itemsize for name in weights}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        save_file(
            {name: narrowed(weights[name], dtype, name) for name in names}, place / file, metadata={"format": "pt"}
        )
        (place / file).chmod((place / CONFIG).stat().st_mode)  # it comes readable by its owner alone
    if len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        metadata = {"total_size": sum(sizes.values())}
        _write_json(place / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
