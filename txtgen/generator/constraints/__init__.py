"""What texts must and must not say: how they begin, what is in them, and which grammar they keep."""

from txtgen.generator.constraints.automata import Row
from txtgen.generator.constraints.factory import Constraints

__all__ = ["Constraints", "Row"]
