"""`txtgen tokenizer train` and `txtgen tokenizer show`."""

import codecs
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.data.files import open_text
from txtgen.errors import DataError, ResourceError, UsageError
from txtgen.files import replace_file
from txtgen.tokenizer import Special, Tokenizer, TrainingSample, load_tokenizer, train_sentencepiece

_CHUNK_BYTES = 1 << 20

_PROBES = {
    "a space at the beginning or end": " a ",
    "several spaces in a row": "a  b",
    "line ends": "a\nb\n\nc",
    "tabs and carriage returns": "a\tb\r\n",
    "compatibility characters such as ﬁ or ①": "ﬁ ① Ａ ㎏",
    "the order or composition of accents": "e\u0301 \u00e9 \u1100\u1161",
    "upper case": "aBÄ",
    "rare characters": "\U0001f9ff \ua66e \U000f0000 \x00\x85",
    "U+2581, SentencePiece's sign for a space": "a\u2581b",
}
"""What a tokenizer may fail to give back, and a text that shows it."""


@dataclass(frozen=True, slots=True)
class TokenizerTraining:
    """A tokenizer was trained: its file, its vocabulary size, its SHA-256, and what it was trained on."""

    path: Path
    vocab_size: int
    fingerprint: str
    sample: TrainingSample


@dataclass(frozen=True, slots=True)
class TokenView:
    """One token of a text: its id, the piece as displayed, and where it begins and ends in bytes of UTF-8."""

    id: int
    piece: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FileReport:
    """A file as tokens: its bytes of UTF-8, its tokens, and how many of them are byte pieces or unknown."""

    path: str
    num_bytes: int
    num_tokens: int
    num_byte_pieces: int
    num_unknown: int

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token; 0 for an empty file."""
        return self.num_bytes / self.num_tokens if self.num_tokens else 0.0

    @property
    def byte_fallback_rate(self) -> float:
        """Share of the tokens that are byte pieces, 0 to 1."""
        return self.num_byte_pieces / self.num_tokens if self.num_tokens else 0.0

    @property
    def unknown_rate(self) -> float:
        """Share of the tokens that are unknown, and so lost, 0 to 1."""
        return self.num_unknown / self.num_tokens if self.num_tokens else 0.0


@dataclass(frozen=True, slots=True)
class TokenizerSummary:
    """What there is to know about a tokenizer.

    losses: what of a text it does not give back, in words; empty for a lossless one. tokens: those of the
    text that was asked for. files: one report for each file.
    """

    kind: str
    vocab_size: int
    special: Special
    control_ids: dict[str, int]
    num_byte_pieces: int
    fingerprint: str
    losses: tuple[str, ...]
    tokens: tuple[TokenView, ...]
    files: tuple[FileReport, ...]

    @property
    def lossless(self) -> bool:
        """Whether every text that was tried came back as it was."""
        return not self.losses


def train(config: SentencePieceConfig, files: Sequence[str | Path], out: str | Path) -> TokenizerTraining:
    """Train a tokenizer on plain text files (`.gz` ones too) and write it to `out`, whole or not at all.

    Of files that are larger than `config.sample_bytes` together, each gives its first bytes in proportion to
    its size on disk.

    Raises:
        UsageError: no file is given, `out` is one of them or a folder.
        DataError: a file cannot be read as UTF-8 text, or the text does not support the configuration.
        ResourceError: `out` cannot be written.
    """
    paths, out = [Path(file) for file in files], Path(out)
    if not paths:
        raise UsageError("no text file to train on", "FILES", "name at least one")
    if os.path.isdir(out):
        raise UsageError("the output is a folder", str(out), "name a file, such as tokenizer.model in it")
    if os.path.exists(out) and any(os.path.exists(path) and out.samefile(path) for path in paths):
        raise UsageError("the output is one of the text files", str(out), "name another file")
    source = _Sample(paths, config.sample_bytes)
    tokenizer, sample = train_sentencepiece(config, source.texts())
    sample = replace(sample, complete=sample.complete and source.complete)
    (model,) = tokenizer.files().values()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(f"cannot make the folder: {reason}", str(out.parent), "check the path") from error
    with replace_file(out) as handle:
        handle.write(model)
    return TokenizerTraining(out, len(tokenizer), tokenizer.fingerprint(), sample)


def show(
    tokenizer: Tokenizer | str | Path, text: str | None = None, files: Sequence[str | Path] = ()
) -> TokenizerSummary:
    """What there is to know about a tokenizer or a .model file, the tokens of a text, and some text files.

    Raises:
        CheckpointError: the .model file is missing or not usable.
        DataError: the text or a file is not valid Unicode, or a file cannot be read.
    """
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer)
    return TokenizerSummary(
        kind=tokenizer.kind,
        vocab_size=len(tokenizer),
        special=tokenizer.special,
        control_ids=dict(tokenizer.control_ids),
        num_byte_pieces=len(tokenizer.byte_ids),
        fingerprint=tokenizer.fingerprint(),
        losses=losses(tokenizer),
        tokens=() if text is None else tokens(tokenizer, text),
        files=tuple(_report(tokenizer, Path(file)) for file in files),
    )


def losses(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What of a text the tokenizer does not give back, in words; empty for a lossless one."""
    return tuple(words for words, probe in _PROBES.items() if tokenizer.decode(tokenizer.encode(probe)) != probe)


def tokens(tokenizer: Tokenizer, text: str) -> tuple[TokenView, ...]:
    """The tokens of a text.

    Raises:
        DataError: the text is not valid Unicode.
    """
    ids = tokenizer.encode(text)
    rows = zip(ids, tokenizer.pieces(ids), tokenizer.offsets(ids), strict=True)
    return tuple(TokenView(token_id, piece, start, end) for token_id, piece, (start, end) in rows)


def _report(tokenizer: Tokenizer, path: Path) -> FileReport:
    num_bytes = num_tokens = num_byte_pieces = num_unknown = 0
    for text in _read_text(path):
        ids = tokenizer.encode(text)
        num_bytes += len(text.encode())
        num_tokens += len(ids)
        num_byte_pieces += sum(map(tokenizer.byte_ids.__contains__, ids))
        num_unknown += ids.count(tokenizer.special.unk_id)
    return FileReport(str(path), num_bytes, num_tokens, num_byte_pieces, num_unknown)


class _Sample:
    """The beginning of every file, in proportion to the sizes of the files."""

    def __init__(self, paths: Sequence[Path], max_bytes: int) -> None:
        self._paths = paths
        self._max_bytes = max_bytes
        self.complete = True

    def texts(self) -> Iterator[str]:
        """The texts, `max_bytes` of UTF-8 at most in all."""
        sizes = [max(1, path.stat().st_size) if os.path.exists(path) else 1 for path in self._paths]
        for path, size in zip(self._paths, sizes, strict=True):
            left = max(1, self._max_bytes * size // sum(sizes))
            for text in _read_text(path):
                content = text.encode()
                yield content[:left].decode(errors="ignore")
                left -= len(content)
                if left < 0:
                    self.complete = False
                    break


def _read_text(path: Path) -> Iterator[str]:
    """The text of a file without byte order mark, in parts of about a mebibyte, cut after a line if possible.

    Raises:
        DataError: the file cannot be read, its compression is damaged, or it is not UTF-8 text.
    """
    file = open_text(str(path), max_snapshots=1)
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, text, more = file.start, "", True
    while more:
        chunk = file.read(position, _CHUNK_BYTES)
        more = bool(chunk)
        held_back = len(decoder.getstate()[0])
        try:
            text += decoder.decode(chunk, final=not more)
        except UnicodeDecodeError as error:
            where = f"{path}: byte {position - held_back + error.start:,}"
            told = "the file is not UTF-8 text"
            raise DataError(told, where, "convert it to UTF-8, or leave it out") from error
        position += len(chunk)
        cut = (text.rfind("\n") + 1 or text.rfind(" ") + 1 or len(text)) if more else len(text)
        if cut:
            yield text[:cut]
        text = text[cut:]
