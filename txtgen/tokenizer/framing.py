"""The tokens around the texts of a model that txtgen trained from scratch, and those that such a model never writes."""

from txtgen.config.tokenizer import Framing
from txtgen.tokenizer.types import Special, Tokenizer


def own_framing(special: Special, source: Special | None = None) -> Framing:
    """How txtgen frames texts itself: a decoder reads bos and a text, an encoder a source and eos; texts end in eos.

    Args:
        special: of the tokenizer of what is predicted.
        source: of the source's tokenizer, for an encoder-decoder; None for a decoder.
    """
    if source is None:
        return Framing(prefix=(special.bos_id,), end=(special.eos_id,))
    return Framing(suffix=(source.eos_id,), decoder_start=(special.bos_id,), end=(special.eos_id,))


def never_written(tokenizer: Tokenizer, framing: Framing | None, rows: int) -> list[int]:
    """The ids that a model must not generate: rows of its output layer for which there is no token.

    Of our own models (framing None) also whatever stands for no text, such as padding, beginning and roles: only the
    end token is theirs to write. A model from elsewhere may have learnt to write its own.

    Args:
        tokenizer: of the text that is generated.
        framing: of the checkpoint.
        rows: of the output layer.
    """
    spare = range(len(tokenizer), rows)
    if framing is not None:
        return list(spare)
    end = tokenizer.special.eos_id
    silent = (token for token in range(len(tokenizer)) if token != end and not tokenizer.token_bytes(token))
    return [*silent, *spare]
