"""Records -> examples: what the model reads, and what it is to predict."""

from txtgen.data.objectives.base import Objective
from txtgen.data.objectives.building import build_objective

__all__ = ["Objective", "build_objective"]
