"""Records -> examples: what the model reads, and what it is to predict."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, assert_never

import numpy as np
from numpy.typing import NDArray

from txtgen.chat import encode_pieces, render
from txtgen.config.data import (
    CausalLmObjective,
    ChatFormat,
    ChatObjective,
    ObjectiveConfig,
    Seq2SeqObjective,
)
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
from txtgen.errors import ConfigError
from txtgen.tokenizer import Tokenizer

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

    def __init__(self, tokenizer: Tokenizer, separate: bool) -> None:
        self.tokenizer = tokenizer
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
) -> Objective:
    """The objective that a configuration describes.

    Args:
        config: what is to be learnt.
        tokenizer: of the text that is predicted.
        source_tokenizer: of what an encoder reads; None: the same.
        max_length: tokens of an example at most; what does not fit is cut off. Text is never cut, it goes on in the
            next row.
        max_source_length: tokens of a source at most; None: as max_length.
    """
    match config:
        case CausalLmObjective():
            return CausalLm(tokenizer, config.separate_documents)
        case Seq2SeqObjective():
            sources = source_tokenizer or tokenizer
            return Seq2Seq(config.format, tokenizer, sources, max_length, max_source_length or max_length)
        case ChatObjective():
            return Chat(config, tokenizer, max_length)
        case _:
            assert_never(config)


class CausalLm(Objective):
    """Predict every next token of a document, its end included.

    A document stands between "bos" and "eos". Where a piece of a long document does not begin or end with the
    document, its first token is not predicted and nothing follows its last.
    """

    packed = True
    splittable = True

    def batch(self, records: Sequence[Record]) -> list[Outcome]:
        """One example a record; none of a single token in the middle of a document."""
        texts = [record for record in records if isinstance(record, TextRecord)]
        if len(texts) < len(records):
            raise _misfit("pairs and conversations", "causal_lm", "chat or seq2seq")
        special = self.tokenizer.special
        together: list[int] = []
        bounds = [0]
        for record, ids in zip(texts, self.tokenizer.encode_batch([record.text for record in texts]), strict=True):
            if record.begins:
                together.append(special.bos_id)
            together += ids
            if record.ends:
                together.append(special.eos_id)
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

    def __init__(self, config: ChatObjective, tokenizer: Tokenizer, max_length: int) -> None:
        super().__init__(tokenizer, config.separate_documents)
        self._format, self._roles, self._max_length = config.format, config.roles, max_length

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
        ids, scored = encode_pieces(render(messages, self._format, self._roles), self.tokenizer)
        tokens = _tokens([self.tokenizer.special.bos_id, *ids])
        labels = np.where(np.array(scored, np.bool_), tokens[1:], IGNORE)[: self._max_length]
        if not (labels != IGNORE).any():
            roles = " or ".join(self._roles)
            within = f" within the first {self._max_length} tokens" if len(ids) > self._max_length else ""
            return BadRecord(f"nothing to learn: no turn of {roles}{within}", record.origin)
        inputs = tokens[:-1][: self._max_length]
        return [Example(inputs, labels, record.origin, cut=len(ids) > self._max_length)]


class Seq2Seq(Objective):
    """Predict a target from its source; of a conversation, every assistant turn from the turns before it.

    The source ends in "eos". The target is read from "bos" on and ends in "eos", unless it is cut. Of a source that
    is too long the end is cut off, of a history the beginning.
    """

    packed = False
    splittable = False

    def __init__(
        self,
        format: ChatFormat,
        tokenizer: Tokenizer,
        source_tokenizer: Tokenizer,
        max_length: int,
        max_source_length: int,
    ) -> None:
        super().__init__(tokenizer, separate=False)
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
                    cut = len(source) >= self._max_source_length
                    source = [*source[: self._max_source_length - 1], self._source_eos]
                    outcomes.append([self._example(source, target, record, cut)])
                case ChatRecord():
                    outcomes.append(self._replies(record))
                case TextRecord():
                    raise _misfit("plain text", "seq2seq", "causal_lm")
                case _:
                    assert_never(record)
        return outcomes

    @property
    def _source_eos(self) -> int:
        return self.source_tokenizer.special.eos_id

    def _replies(self, record: ChatRecord) -> Outcome:
        examples: list[Example] = []
        for turn, message in enumerate(record.messages):
            if turn and message.role == "assistant":
                source = self.history_ids(record.messages[:turn])
                cut = len(source) > self._max_source_length
                target = self.tokenizer.encode(message.content)
                examples.append(self._example(source[-self._max_source_length :], target, record, cut))
        return examples or BadRecord("nothing to learn: no assistant turn after another turn", record.origin)

    def history_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the encoder reads of the turns before a reply."""
        turns = [(message.role, message.content) for message in messages]
        ids, _ = encode_pieces(render(turns, self._format, reply=True), self.source_tokenizer)
        return [*ids, self._source_eos]

    def _example(self, source: list[int], target: list[int], record: Record, source_cut: bool) -> Example:
        special = self.tokenizer.special
        tokens = _tokens([special.bos_id, *target, special.eos_id])
        return Example(
            tokens[:-1][: self._max_length],
            tokens[1:][: self._max_length],
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
