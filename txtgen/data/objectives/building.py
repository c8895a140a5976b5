"""From a configuration to an objective, and to the tokens that it needs."""

from collections.abc import Sequence
from typing import assert_never

from txtgen.config.chat_formats import TokensChatFormat
from txtgen.config.data import SubwordSampling
from txtgen.config.objectives import (
    TEXTS,
    CausalLmObjective,
    ChatObjective,
    DenoisingObjective,
    DpoObjective,
    FillInMiddleObjective,
    MixtureObjective,
    ObjectiveConfig,
    PartConfig,
    PrefixLmObjective,
    Seq2SeqObjective,
    SpanCorruptionObjective,
)
from txtgen.config.tokenizer import Framing
from txtgen.data.objectives.base import Objective, Room
from txtgen.data.objectives.conversations import Chat
from txtgen.data.objectives.denoising import Denoising, SpanCorruption
from txtgen.data.objectives.encoding import Encoder
from txtgen.data.objectives.mixture import Mixture, Part
from txtgen.data.objectives.pairs import Seq2Seq
from txtgen.data.objectives.preference import Preference
from txtgen.data.objectives.texts import CausalLm, FillInMiddle, PrefixLm
from txtgen.data.types import ChatRecord, PairRecord, TextRecord
from txtgen.errors import ConfigError
from txtgen.tokenizer import Tokenizer, own_framing


def build_objective(
    config: ObjectiveConfig,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer | None = None,
    *,
    max_length: int,
    max_source_length: int | None = None,
    framing: Framing | None = None,
    sampling: SubwordSampling | None = None,
) -> Objective:
    """The objective that a configuration describes.

    Args:
        config: what is to be learnt.
        tokenizer: of the text that is predicted.
        source_tokenizer: of what an encoder reads; None: the same.
        max_length: tokens of a row or a target at most. Of a pair or conversation the rest is cut off; a text goes on
            in the next example.
        max_source_length: tokens of a source at most, 0 for a decoder, which reads none. None: as max_length where
            only an encoder-decoder can learn the objective, or a part of it, or else 0.
        framing: the tokens around texts; None: txtgen's own.
        sampling: how segmentations of texts are drawn, for training only; None: every text has one.

    Raises:
        ConfigError: the tokenizer lacks control symbols that the objective needs, or cannot draw segmentations; or
            nothing fits into an example.
    """
    if max_source_length is None:
        has_encoder = any(part.architectures == ("encoder_decoder",) for part in config.members)
        max_source_length = max_length if has_encoder else 0
    sources = source_tokenizer or tokenizer
    framing = framing or own_framing(tokenizer.special, sources.special if max_source_length else None)
    room = Room(max_length, max_source_length)
    encode = Encoder(tokenizer, sampling if sampling and sampling.side != "source" else None)
    encode_source = Encoder(sources, sampling if sampling and sampling.side != "target" else None)
    if not isinstance(config, MixtureObjective):
        return _part(config, encode, encode_source, framing, room)
    parts = {}
    for name, part in config.named.items():
        reads = (TextRecord,) if part.reads == TEXTS else (PairRecord, ChatRecord)
        parts[name] = Part(_part(part, encode, encode_source, framing, room), reads, part.weight or 1.0)
    return Mixture(parts)


def _part(
    config: PartConfig | DpoObjective, encode: Encoder, encode_source: Encoder, framing: Framing, room: Room
) -> Objective:
    """The objective of a configuration that is no mixture."""
    ids = _control_ids(config.control_symbols, config.kind, encode.tokenizer)
    match config:
        case CausalLmObjective():
            return CausalLm(config, encode, framing)
        case PrefixLmObjective():
            return PrefixLm(encode, framing, room)
        case SpanCorruptionObjective():
            return SpanCorruption(config, encode, framing, room, ids)
        case DenoisingObjective():
            return Denoising(config, encode, framing, room, ids[0] if ids else encode.tokenizer.special.unk_id)
        case FillInMiddleObjective():
            before, behind, between = ids
            return FillInMiddle(config, encode, framing, room, (before, behind, between))
        case Seq2SeqObjective():
            return Seq2Seq(config.format or TokensChatFormat(), encode, encode_source, framing, room)
        case ChatObjective():
            return Chat(config, encode, framing, room)
        case DpoObjective():
            return Preference(config.format, encode, encode_source, framing, room)
        case _:
            assert_never(config)


def _control_ids(symbols: Sequence[str], kind: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of control symbols.

    Raises:
        ConfigError: the tokenizer lacks some of them.
    """
    found = [tokenizer.control_ids[symbol] for symbol in symbols if symbol in tokenizer.control_ids]
    if len(found) < len(symbols):
        named = f"{symbols[0]} to {symbols[-1]}" if len(symbols) > 1 else symbols[0]
        fewer = f"set num_sentinels to {len(found)}, or " if kind == "span_corruption" and found else ""
        raise ConfigError(
            f"{kind} needs {len(symbols)} control symbols, {named}, and the tokenizer has {len(found)} of them",
            "data.objective",
            f"{fewer}choose an objective without them (pairs, as .tsv, .jsonl or kind: parallel, have seq2seq), or "
            "pretrain with this one: a tokenizer that is trained then has them",
        )
    return found
