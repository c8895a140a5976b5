"""Search over token ids: greedy, beam and sampling, with filters. Knows no model and no text."""

from txtgen.decode.constraint import Constraint
from txtgen.decode.ensemble import Ensemble
from txtgen.decode.inclusion import Inclusion
from txtgen.decode.narrowing import narrow_search_steps
from txtgen.decode.remembering import Remembering
from txtgen.decode.sampling import Decided, Steps
from txtgen.decode.scoring import token_logprobs
from txtgen.decode.search import OnToken, SearchOptions, require_draft, run_steps, search, search_steps
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
    "SearchOptions",
    "StepModel",
    "StepState",
    "Steps",
    "StopCheck",
    "narrow_search_steps",
    "require_draft",
    "run_steps",
    "search",
    "search_steps",
    "token_logprobs",
]
