"""How the models of an ensemble decide together on the next token."""

from typing import Annotated, Literal

from pydantic import Field

from txtgen.config.base import Config

Mean = Literal["linear", "log_linear"]


class Mixture(Config):
    """How the models of an ensemble decide together on the next token."""

    mean: Mean = "linear"
    """Of their probabilities, or, log_linear, of their log-probabilities, normalised."""
    weights: tuple[Annotated[float, Field(gt=0.0, le=1e6)], ...] = ()
    """Of each model, the first one first, in proportion; none: all count alike."""


EQUAL_SHARES = Mixture()
"""The mean of the probabilities."""
