"""Which target tokens may occur where which source tokens stand: learnt from pairs, kept in a file."""

from txtgen.lexicon.alignment import Pairs, Translations, learn_translations
from txtgen.lexicon.shortlist import Coverage, Shortlist

__all__ = ["Coverage", "Pairs", "Shortlist", "Translations", "learn_translations"]
