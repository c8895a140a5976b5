"""Search over token ids: greedy, beam and sampling, with filters. Knows no model and no text."""

from txtgen.decode.constraint import Constraint
from txtgen.decode.ensemble import Ensemble
from txtgen.decode.inclusion import Inclusion
from txtgen.decode.remembering import Remembering
from txtgen.decode.sampling import Decided, Steps
from txtgen.decode.scoring import token_logprobs
from txtgen.decode.search import OnToken, require_draft, run_steps, search, search_steps
from txtgen.decode.stopping import StopCheck
from txtgen.decode.types import FinishReason, HiddenModel, Hypothesis, PromptBatch, StepModel, StepState

__all__ = [
    "Constraint",
    "Decided",
    "Ensemble",
    "FinishReason",
    "HiddenModel",
    "Hypothesis",
    "Inclusion",
    "OnToken",
    "PromptBatch",
    "Remembering",
    "StepModel",
    "StepState",
    "Steps",
    "StopCheck",
    "require_draft",
    "run_steps",
    "search",
    "search_steps",
    "token_logprobs",
]
