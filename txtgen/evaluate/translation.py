"""BLEU and chrF of generated targets, by sacreBLEU, with the signatures that make the figures comparable."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from txtgen.config.data import BleuTokenizer
from txtgen.data.types import PairRecord
from txtgen.errors import ResourceError
from txtgen.generator import Generator
from txtgen.tokenizer import Tokenizer

if TYPE_CHECKING:
    from txtgen.lexicon import Coverage

logger = logging.getLogger(__name__)

MANY_TOKENISED = 100
"""From so many texts on that look tokenised already, sacreBLEU warns as well."""


@dataclass(frozen=True, slots=True)
class TranslationMetrics:
    """BLEU and chrF (0 to 100, higher is better), each with its signature, and the number of sentences."""

    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    sentences: int


def translate_pairs(
    generator: Generator, pairs: Sequence[PairRecord], tokenize: BleuTokenizer = "13a", **options: Any
) -> tuple[list[str], TranslationMetrics]:
    """A target for each source, on one line, and what they score against the targets of the pairs.

    Args:
        generator: an encoder-decoder; a source that is too long for it is cut.
        pairs: at least one.
        tokenize: what BLEU does to the texts first.
        options: of `Generator.generate`; one result per source is taken, whatever they say.

    Raises:
        UsageError: an option that cannot be used.
        ResourceError: sacreBLEU is not installed.
    """
    sources = _readable(generator, pairs)
    found = generator.generate(sources, **{**options, "num_return": 1})
    texts = [generation.text.replace("\n", " ") for generation in found]
    return texts, score_translations(texts, [pair.target for pair in pairs], tokenize)


def shortlist_coverage(generator: Generator, pairs: Iterable[PairRecord]) -> "Coverage":
    """What the generator's short-list, which it must have, has of the targets of pairs, of which there is one."""
    assert generator.shortlist is not None
    known, tokenizer = list(pairs), generator.loaded.tokenizer
    plan = generator.plan(dict(enumerate(_readable(generator, known))), raw=True)
    sources = {prompt.number: prompt.token_ids for batch in plan.batches for prompt in batch}
    return generator.shortlist.coverage(
        [(sources[number], tokenizer.encode(pair.target)) for number, pair in enumerate(known)]
    )


def _readable(generator: Generator, pairs: Iterable[PairRecord]) -> list[str]:
    """The sources of pairs, cut where they are too long for the model."""
    loaded = generator.loaded
    tokenizer, longest = loaded.source_tokenizer or loaded.tokenizer, loaded.config.model.source_length
    return [_clip(pair.source, tokenizer, longest) for pair in pairs]


def _clip(text: str, tokenizer: Tokenizer, max_length: int) -> str:
    """The beginning of a source that a model of this source length can read, its end token included."""
    ids = tokenizer.encode(text)
    return text if len(ids) < max_length else tokenizer.decode(ids[: max_length - 1]).rstrip("\ufffd")


def score_translations(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: BleuTokenizer = "13a"
) -> TranslationMetrics:
    """Corpus BLEU (Papineni et al. 2002) and chrF (Popović 2015) against one reference each. Source: Post 2018.

    Raises:
        ResourceError: sacreBLEU is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ResourceError("BLEU and chrF need sacreBLEU", "", "pip install 'txtgen[eval]'") from error
    spaced = sum(text.endswith(" .") for text in hypotheses)
    if tokenize != "none" and spaced >= MANY_TOKENISED:
        told = "%d texts end in a period after a space: BLEU of tokenised text is for bleu_tokenizer none"
        logger.warning(told, spaced)
    bleu, chrf = BLEU(tokenize=tokenize, force=True), CHRF()  # its own warning names an argument of Python
    bleu_score = bleu.corpus_score(list(hypotheses), [list(references)])
    chrf_score = chrf.corpus_score(list(hypotheses), [list(references)])
    return TranslationMetrics(
        bleu=bleu_score.score,
        bleu_signature=str(bleu.get_signature()),
        chrf=chrf_score.score,
        chrf_signature=str(chrf.get_signature()),
        sentences=len(hypotheses),
    )
