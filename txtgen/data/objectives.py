"""Records -> examples: what the model reads, and what it is to predict."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, assert_never

import numpy as np
from numpy.typing import NDArray

from txtgen.chat import encode_chat
from txtgen.config.data import (
    CausalLmObjective,
    ChatFormat,
    ChatObjective,
    ObjectiveConfig,
    Seq2SeqObjective,
    TokensChatFormat,
)
from txtgen.config.tokenizer import Framing
from txtgen.data.types import (
    IGNORE,
    BadRecord,
    ChatRecord,
    Example,
    Message,
    PairRecord,
    Record,
    TextRecord,
    Tokens,
)
from txtgen.errors import ConfigError, DataError
from txtgen.tokenizer import Tokenizer, own_framing

Outcome = list[Example] | BadRecord
"""What becomes of a record: its examples, or what is wrong with it."""


class Objective(ABC):
    """Makes examples of records.

    packed: examples share rows of a fixed length; if not, every row is one pair. splittable: a row may end in the
    middle of an example and the next go on with it. separate: examples that share a row are hidden from one another.
    pad_id: fills up rows. token_bytes: [V] int64, the bytes of text that each token stands for.
    """

    packed: ClassVar[bool]
    splittable: ClassVar[bool]

    def __init__(self, tokenizer: Tokenizer, framing: Framing, separate: bool) -> None:
        self.tokenizer, self.framing = tokenizer, framing
        self.separate = separate
        self.pad_id = tokenizer.special.pad_id
        self.token_bytes = np.array([len(tokenizer.token_bytes(i)) for i in range(len(tokenizer))], np.int64)

    @abstractmethod
    def batch(self, records: Sequence[Record]) -> list[Outcome]:
        """The outcome of each record; together they are tokenised faster than one by one."""

    def __call__(self, record: Record) -> list[Example]:
        """The examples of one record.

        Raises:
            BadRecord: nothing can be learnt from it.
        """
        outcome = self.batch([record])[0]
        if isinstance(outcome, BadRecord):
            raise outcome
        return outcome

    def scored_bytes(self, labels: NDArray[np.int64]) -> int:
        """The bytes of text that scored labels stand for."""
        return int(self.token_bytes[labels[labels != IGNORE]].sum())


def build_objective(
    config: ObjectiveConfig,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer | None = None,
    *,
    max_length: int,
    max_source_length: int | None = None,
    framing: Framing | None = None,
) -> Objective:
    """The objective that a configuration describes.

    Args:
        config: what is to be learnt.
        tokenizer: of the text that is predicted.
        source_tokenizer: of what an encoder reads; None: the same.
        max_length: tokens of an example at most; what does not fit is cut off. Text is never cut, it goes on in the
            next row.
        max_source_length: tokens of a source at most; None: as max_length.
        framing: the tokens around texts; None: txtgen's own.
    """
    sources = source_tokenizer or tokenizer
    source_special = sources.special if isinstance(config, Seq2SeqObjective) else None
    framing = framing or own_framing(tokenizer.special, source_special)
    match config:
        case CausalLmObjective():
            return CausalLm(tokenizer, framing, config.separate_documents)
        case Seq2SeqObjective():
            chat = config.format or TokensChatFormat()
            return Seq2Seq(chat, tokenizer, sources, framing, max_length, max_source_length or max_length)
        case ChatObjective():
            return Chat(config, tokenizer, framing, max_length)
        case _:
            assert_never(config)


class CausalLm(Objective):
    """Predict every next token of a document, its end included.

    A document stands between the framing's prefix and its end. Where a piece of a long document does not begin or end
    with the document, its first token is not predicted and nothing follows its last.
    """

    packed = True
    splittable = True

    def batch(self, records: Sequence[Record]) -> list[Outcome]:
        """One example a record; none of a single token in the middle of a document."""
        texts = [record for record in records if isinstance(record, TextRecord)]
        if len(texts) < len(records):
            raise _misfit("pairs and conversations", "causal_lm", "chat or seq2seq")
        together: list[int] = []
        bounds = [0]
        for record, ids in zip(texts, self.tokenizer.encode_batch([record.text for record in texts]), strict=True):
            if record.begins:
                together += self.framing.prefix
            together += ids
            if record.ends:
                together.append(self.framing.end[0])
            bounds.append(len(together))
        # One array for all is made much faster than one for each.
        tokens = _tokens(together)
        return [
            [Example(tokens[start : stop - 1], tokens[start + 1 : stop], record.origin)] if stop - start > 1 else []
            for record, (start, stop) in zip(texts, itertools.pairwise(bounds), strict=True)
        ]


class Chat(Objective):
    """Predict the turns of the chosen roles from all that stands before them."""

    packed = True
    splittable = False

    def __init__(self, config: ChatObjective, tokenizer: Tokenizer, framing: Framing, max_length: int) -> None:
        super().__init__(tokenizer, framing, config.separate_documents)
        self._format, self._roles = config.format or TokensChatFormat(), config.roles
        self._max_length = max_length

    def batch(self, records: Sequence[Record]) -> list[Outcome]:
        """One example a conversation."""
        return [self._outcome(record) for record in records]

    def _outcome(self, record: Record) -> Outcome:
        match record:
            case ChatRecord():
                messages = [(message.role, message.content) for message in record.messages]
            case PairRecord():
                messages = [("user", record.source), ("assistant", record.target)]
            case TextRecord():
                raise _misfit("plain text", "chat", "causal_lm")
            case _:
                assert_never(record)
        try:
            ids, scored = encode_chat(messages, self._format, self.tokenizer, self._roles)
        except DataError as error:
            return BadRecord(error.what, record.origin)
        prefix = () if self._format.complete else self.framing.prefix
        tokens = _tokens([*prefix, *ids])
        learnt = np.array([*[False] * len(prefix), *scored], np.bool_)
        labels = np.where(learnt[1:], tokens[1:], IGNORE)[: self._max_length]
        cut = len(tokens) - 1 > self._max_length
        if not (labels != IGNORE).any():
            roles = " or ".join(self._roles)
            within = f" within the first {self._max_length} tokens" if cut else ""
            return BadRecord(f"nothing to learn: no turn of {roles}{within}", record.origin)
        inputs = tokens[:-1][: self._max_length]
        return [Example(inputs, labels, record.origin, cut=cut)]


class Seq2Seq(Objective):
    """Predict a target from its source; of a conversation, every assistant turn from the turns before it.

    Source and target have the framing's tokens around them; the target ends, unless it is cut. Of a source that is
    too long the end is cut off, of a history the beginning.
    """

    packed = False
    splittable = False

    def __init__(
        self,
        format: ChatFormat,
        tokenizer: Tokenizer,
        source_tokenizer: Tokenizer,
        framing: Framing,
        max_length: int,
        max_source_length: int,
    ) -> None:
        super().__init__(tokenizer, framing, separate=False)
        self.source_tokenizer = source_tokenizer
        self._format = format
        self._max_length, self._max_source_length = max_length, max_source_length

    def batch(self, records: Sequence[Record]) -> list[Outcome]:
        """One example a pair, and one for every assistant turn that answers something."""
        pairs = [record for record in records if isinstance(record, PairRecord)]
        sources = self.source_tokenizer.encode_batch([pair.source for pair in pairs])
        targets = self.tokenizer.encode_batch([pair.target for pair in pairs])
        encoded = zip(sources, targets, strict=True)
        outcomes: list[Outcome] = []
        for record in records:
            match record:
                case PairRecord():
                    source, target = next(encoded)
                    prefix, suffix = self.framing.prefix, self.framing.suffix
                    room = self._max_source_length - len(prefix) - len(suffix)
                    cut = len(source) > room
                    source = [*prefix, *source[:room], *suffix]
                    outcomes.append([self._example(source, target, record, cut)])
                case ChatRecord():
                    outcomes.append(self._replies(record))
                case TextRecord():
                    raise _misfit("plain text", "seq2seq", "causal_lm")
                case _:
                    assert_never(record)
        return outcomes

    def _replies(self, record: ChatRecord) -> Outcome:
        examples: list[Example] = []
        for turn, message in enumerate(record.messages):
            if turn and message.role == "assistant":
                try:
                    source = self.history_ids(record.messages[:turn])
                except DataError as error:
                    return BadRecord(error.what, record.origin)
                cut = len(source) > self._max_source_length
                target = self.tokenizer.encode(message.content)
                examples.append(self._example(source[-self._max_source_length :], target, record, cut))
        return examples or BadRecord("nothing to learn: no assistant turn after another turn", record.origin)

    def history_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the encoder reads of the turns before a reply."""
        turns = [(message.role, message.content) for message in messages]
        ids, _ = encode_chat(turns, self._format, self.source_tokenizer, reply=True)
        prefix = () if self._format.complete else self.framing.prefix
        return [*prefix, *ids, *self.framing.suffix]

    def _example(self, source: list[int], target: list[int], record: Record, source_cut: bool) -> Example:
        start = self.framing.decoder_start
        tokens = _tokens([*start, *self.framing.prefix, *target, self.framing.end[0]])
        labels = tokens[1:].copy()
        labels[: len(start) - 1] = IGNORE  # the decoder is given all of its start
        return Example(
            tokens[:-1][: self._max_length],
            labels[: self._max_length],
            record.origin,
            _tokens(source),
            cut=source_cut or len(tokens) - 1 > self._max_length,
        )


def _tokens(ids: list[int]) -> Tokens:
    return np.fromiter(ids, np.int64, len(ids))


def _misfit(records: str, objective: str, better: str) -> ConfigError:
    return ConfigError(
        f"{records} cannot serve the objective {objective}", "data.objective.kind", f"set it to {better}"
    )
