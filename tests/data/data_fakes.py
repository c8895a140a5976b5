"""A tokenizer of bytes, and small ways to write corpora and to read batches back."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from txtgen.config.data import DataConfig
from txtgen.data import Batch, Objective, build_objective
from txtgen.data.examples import Examples, Span
from txtgen.data.types import IGNORE, Example
from txtgen.tokenizer import Ids, Special, SpecialNames

PAD, BOS, EOS, UNK = 256, 257, 258, 259
CONTROL = {"<|system|>": 260, "<|user|>": 261, "<|assistant|>": 262}
SENTINELS = {f"<extra_id_{number}>": 263 + number for number in range(40)}
MASK = 303
FIM = {"<|fim_prefix|>": 304, "<|fim_suffix|>": 305, "<|fim_middle|>": 306}


class ByteTokenizer:
    """Every byte is a token."""

    kind = "bytes"
    special = Special(pad_id=PAD, unk_id=UNK, bos_id=BOS, eos_id=EOS)
    control_ids: ClassVar = {**CONTROL, **SENTINELS, "<mask>": MASK, **FIM}
    byte_ids = frozenset(range(256))
    leading_space = False
    names = SpecialNames(bos="<s>", eos="</s>", control=tuple(CONTROL))

    def __len__(self) -> int:
        return 307

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array(self.encode(text), np.int32) for text in texts]

    def encode_with_special(self, text: str) -> list[int]:
        known = {"<s>": BOS, "</s>": EOS, **CONTROL}
        parts = re.split(f"({'|'.join(map(re.escape, known))})", text)
        return [token for part in parts for token in ([known[part]] if part in known else self.encode(part))]

    def special_places(self, text: str) -> list[int]:
        return [place for place in range(len(text)) if text.startswith(("<s>", "</s>", *CONTROL), place)]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [str(token) for token in ids]

    def offsets(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        return [(place, place + 1) for place in range(len(ids))]

    def files(self) -> dict[str, bytes]:
        return {}

    def fingerprint(self) -> str:
        return "bytes"


def data_config(*sources: dict[str, Any], **settings: Any) -> DataConfig:
    """A configuration from plain values, as YAML would give it."""
    sources = tuple({"kind": "text", **source} for source in sources)
    return DataConfig.model_validate({"sources": sources, **settings}, strict=False)


def objective_of(data: DataConfig, max_length: int = 64, max_source_length: int | None = None) -> Objective:
    return build_objective(data.objective, ByteTokenizer(), max_length=max_length, max_source_length=max_source_length)


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")
    return path


def write_jsonl(path: Path, values: Sequence[Any]) -> Path:
    return write_lines(path, [json.dumps(value) for value in values])


def plain(batch: Batch) -> dict[str, Any]:
    """Everything in a batch as plain values, so that two can be compared."""
    tensors = {
        name: None if tensor is None else tensor.tolist()
        for name, tensor in {
            "input_ids": batch.input_ids,
            "labels": batch.labels,
            "positions": batch.positions,
            "segment_ids": batch.segment_ids,
            "bidirectional": batch.bidirectional,
            "source_ids": batch.source_ids,
            "source_mask": batch.source_mask,
        }.items()
    }
    return {**tensors, "bytes": batch.bytes, "origins": batch.origins, "bookmark": batch.bookmark}


def documents_of(batch: Batch) -> list[tuple[int, bytes]]:
    """The packed documents of a batch: byte where it begins in its file, and the scored bytes (258 as "$")."""
    found = []
    for row, origins in enumerate(batch.origins):
        for number, origin in enumerate(origins, start=1):
            labels = batch.labels[row][batch.segment_ids[row] == number].tolist()
            found.append((origin.offset, b"".join(_shown(label) for label in labels if label != IGNORE)))
    return found


def _shown(label: int) -> bytes:
    return bytes([label]) if label < 256 else b"$"


def taking(groups: Iterable[list[Example]]) -> Callable[[int], list[Span]]:
    """Gives one group of examples after the other to a packer."""
    spans = iter([Span(Examples.of([group]), 0, len(group)) for group in groups])
    return lambda _tokens: list(islice(spans, 1))


class FaultyTokenizer(ByteTokenizer):
    """Fails, or kills its process, at a text that says so."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        for text in texts:
            if "DIE" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if "BUG" in text:
                raise ZeroDivisionError("a bug")
        return super().encode_batch(texts)
