"""Training a SentencePiece model on a bounded sample of a corpus.

The trainer of SentencePiece is fed with care, because it leaves things out without a word: sentences above a
length, NUL, whatever spells one of its own pieces such as <unk>, and every sentence that holds U+2585, its mark
for rare characters. Here lines are cut below that length, and cut apart within such names, at such characters and
at the rare ones, so that all other text counts. Newline is a piece by itself, and text is given line by line, so
no other piece crosses a line.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import sentencepiece

from txtgen.config.tokenizer import SPECIAL_PIECES, SentencePieceConfig
from txtgen.errors import DataError
from txtgen.tokenizer.joining import lone_surrogate
from txtgen.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer

_MAX_CHARACTERS = 1024
"""Of a training sentence, which is thus at most 4096 bytes of UTF-8, below the trainer's limit."""

_NO_TRAINING = f"\n\x00{SPACE}\u2585"
"""Characters that cannot be part of a trained piece."""

_NUM_THREADS = 16
"""The number of threads changes the order of sums, and so the model: the same one everywhere."""

_MAX_ALPHABET_SHARE = 0.9
"""When not all characters fit, this much of the room goes to single characters, the rest to longer pieces.

Measured on 20,000 Tang poems with vocabularies of 2,000 and 4,000: within 0.2 % of the fewest tokens that any
of the shares 0.5, 0.75, 0.9 and 1 gave.
"""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """What a tokenizer was trained on.

    bytes_offered: UTF-8 bytes of the texts that were looked at. bytes_used: how many of them were trained on;
    less if the sample reached its limit within a text. complete: whether that was all the text there is.
    num_characters: different characters in the sample. num_covered: how many of them have a piece of their
    own. coverage: the share of the sample's text that these make up, 0 to 1; the rest goes through byte
    pieces.
    """

    num_texts: int
    bytes_offered: int
    bytes_used: int
    complete: bool
    num_characters: int
    num_covered: int
    coverage: float


def train_sentencepiece(
    config: SentencePieceConfig, texts: Iterable[str]
) -> tuple[SentencePieceTokenizer, TrainingSample]:
    """A new tokenizer from the first `config.sample_bytes` of texts, and what it was trained on.

    The same texts give the same model. The ids begin with padding 0, unknown 1, beginning 2, end 3, the
    control symbols, newline. A vocabulary too small for all characters within `character_coverage` takes the
    most frequent ones and leaves the rest to the byte pieces. A corpus too small for the vocabulary gives a
    smaller one.

    Raises:
        DataError: the texts hold nothing to train on, are too few for an `exact_vocab_size`, or have more
            different characters than fit the vocabulary and no `byte_fallback` for the rest.

    Source: Kudo and Richardson 2018, arXiv 1808.06226; unigram: Kudo 2018, arXiv 1804.10959; bpe: Sennrich et
    al. 2016, arXiv 1508.07909.
    """
    reader = _SampleReader(config.sample_bytes)
    normalize, names = _normalization(config), _reserved_names(config)
    lines = [line for text in reader.read(texts) for line in names.sub(r"\g<0>\n", normalize(text)).split("\n")]
    counts = Counter[str]()
    for line in lines:
        counts.update(line)
    for character in _NO_TRAINING:
        del counts[character]
    if not counts:
        raise DataError(
            "there is no text to train a tokenizer on",
            f"{reader.num_texts:,} texts, {reader.bytes_offered:,} bytes",
            "give it a corpus with some characters besides line ends",
        )
    alphabet = _alphabet(counts, config)
    tokenizer = _train(config, _sentences(lines, counts, alphabet))
    if config.exact_vocab_size and len(tokenizer) < config.vocab_size:
        largest = _largest_size(config, len(tokenizer), lines, counts)
        raise DataError(
            f"the sample supports a vocabulary of at most {largest:,}, not {config.vocab_size:,}",
            "tokenizer.vocab_size",
            f"set it to {largest}, set exact_vocab_size: false, or give it more text",
        )
    sample = TrainingSample(
        num_texts=reader.num_texts,
        bytes_offered=reader.bytes_offered,
        bytes_used=reader.bytes_used,
        complete=reader.complete,
        num_characters=len(counts),
        num_covered=len(alphabet),
        coverage=sum(counts[character] for character in alphabet) / counts.total(),
    )
    return tokenizer, sample


class _SampleReader:
    """Takes texts up to a number of bytes, and counts."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self.num_texts = 0
        self.bytes_offered = 0
        self.bytes_used = 0
        self.complete = False

    def read(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts, the last one cut at a character when the limit falls within it."""
        for text in texts:
            if not self._left:
                return
            try:
                content = text.encode()
            except UnicodeEncodeError as error:
                raise lone_surrogate(error) from error
            taken = content[: self._left].decode(errors="ignore")
            self.num_texts += 1
            self.bytes_offered += len(content)
            self.bytes_used += len(taken.encode())
            self._left -= min(self._left, len(content))
            yield taken
        self.complete = self.bytes_used == self.bytes_offered


def _normalization(config: SentencePieceConfig) -> Callable[[str], str]:
    """What turns a text into what the model will see of it."""
    if config.normalization == "identity":
        return str
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=config.normalization,
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )

    def normalize(text: str) -> str:
        return str(normalizer.normalize(text))

    return normalize


def _reserved_names(config: SentencePieceConfig) -> re.Pattern[str]:
    """Matches the first character of whatever spells a special, control or byte piece."""
    names = [*SPECIAL_PIECES, *config.control_symbols]
    patterns = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names]
    patterns += ["<(?=0x[0-9A-F]{2}>)"] if config.byte_fallback else []
    return re.compile("|".join(patterns))


def _alphabet(counts: Counter[str], config: SentencePieceConfig) -> set[str]:
    """The characters that get a piece of their own: the most frequent, up to the coverage and the room."""
    wanted = []
    covered, total = 0, counts.total()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= config.character_coverage * total:
            break
        wanted.append(character)
        covered += count
    room = config.vocab_size - config.num_reserved
    if len(wanted) > room and config.algorithm == "char":
        wanted = wanted[:room]
    elif len(wanted) > room and config.byte_fallback:
        wanted = wanted[: max(1, int(_MAX_ALPHABET_SHARE * room))]
    elif len(wanted) > room:
        raise DataError(
            f"a vocabulary of {config.vocab_size:,} is too small for the sample's {len(wanted):,} characters",
            "tokenizer.vocab_size",
            f"set it to {config.num_reserved + len(wanted)} or more, lower character_coverage, "
            "or set byte_fallback: true",
        )
    return set(wanted)


def _sentences(lines: list[str], counts: Counter[str], alphabet: set[str]) -> Iterator[str]:
    """The lines in parts that the trainer takes whole, without the characters that are to have no piece."""
    borders = {ord(character): "\n" for character in {*counts, *_NO_TRAINING} - alphabet}
    for line in lines:
        for part in line.translate(borders).split("\n"):
            yield from _short(part)


def _short(part: str) -> Iterator[str]:
    """A part of a line in pieces of at most _MAX_CHARACTERS, cut before a space where there is one."""
    start = 0
    while len(part) - start > _MAX_CHARACTERS:
        cut = part.rfind(" ", start + 1, start + _MAX_CHARACTERS + 1)
        cut = cut if cut > 0 else start + _MAX_CHARACTERS
        yield part[start:cut]
        start = cut
    if start < len(part):
        yield part[start:]


def _largest_size(config: SentencePieceConfig, size: int, lines: list[str], counts: Counter[str]) -> int:
    """A vocabulary size that training meets exactly, looked for from one that it gave.

    Asked for what it gave before, unigram sometimes gives one less.
    """
    while True:
        smaller = config.model_copy(update={"vocab_size": size})
        given = len(_train(smaller, _sentences(lines, counts, _alphabet(counts, smaller))))
        if given == size:
            return size
        size = given


def _train(config: SentencePieceConfig, sentences: Iterator[str]) -> SentencePieceTokenizer:
    """A tokenizer of at most `config.vocab_size` pieces."""
    model = io.BytesIO()
    pad, unk, bos, eos = SPECIAL_PIECES
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=config.algorithm,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,  # the sentences hold no other characters
            byte_fallback=config.byte_fallback,
            split_digits=config.split_digits,
            normalization_rule_name=config.normalization,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * _MAX_CHARACTERS,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=pad,
            unk_piece=unk,
            bos_piece=bos,
            eos_piece=eos,
            control_symbols=list(config.control_symbols),
            user_defined_symbols=["\n"],
            num_threads=_NUM_THREADS,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise DataError(
            f"SentencePiece could not train a {config.algorithm} tokenizer of {config.vocab_size:,} pieces",
            "tokenizer",
            "give it more text, or another vocab_size or algorithm",
        ) from error
    return SentencePieceTokenizer(model.getvalue())
