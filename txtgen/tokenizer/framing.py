"""The tokens around the texts of a model that txtgen trained from scratch."""

from txtgen.config.tokenizer import Framing
from txtgen.tokenizer.types import Special


def own_framing(special: Special, source: Special | None = None) -> Framing:
    """How txtgen frames texts itself: a decoder reads bos and a text, an encoder a source and eos; texts end in eos.

    Args:
        special: of the tokenizer of what is predicted.
        source: of the source's tokenizer, for an encoder-decoder; None for a decoder.
    """
    if source is None:
        return Framing(prefix=(special.bos_id,), end=(special.eos_id,))
    return Framing(suffix=(source.eos_id,), decoder_start=(special.bos_id,), end=(special.eos_id,))
