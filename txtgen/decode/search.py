"""From prompts to hypotheses: the one door to every strategy."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Required, TypedDict, Unpack, assert_never

from txtgen.config.decoding import (
    BeamConfig,
    BeamSampleConfig,
    ContrastiveConfig,
    DecodingConfig,
    GreedyConfig,
    SampleConfig,
)
from txtgen.config.decoding_values import DraftModel, PromptLookup, Speculation
from txtgen.decode.beam import Best, Selection, beam_search
from txtgen.decode.beam_sampling import DrawBeams
from txtgen.decode.chain import make_filters
from txtgen.decode.constraint import Constraint
from txtgen.decode.contrastive import Contrast, hidden_model
from txtgen.decode.inclusion import Banks, Inclusion
from txtgen.decode.proposals import Draft, Lookup
from txtgen.decode.sampling import Draw, Steps, follow, most_likely
from txtgen.decode.speculation import Proposer, drawn, likeliest, speculate
from txtgen.decode.stopping import StopCheck, Stopping
from txtgen.decode.types import Hypothesis, PromptBatch, State, StepModel
from txtgen.errors import UsageError

OnToken = Callable[[int, int], None]
"""Called with a result number (prompt * num_return + sample) and a token id."""


class SearchOptions(TypedDict, total=False):
    """What search may be told beside its settings.

    limits: new tokens at most, at least 1 for each prompt; 0 for all of them gives empty hypotheses.
    eos_ids: tokens that end a sequence.
    suppress: tokens that are never generated unless they are forced.
    constraints: what each row may say, by its text.
    inclusion: what each row must say, for beams to be shared out accordingly.
    prompt_indices: numbers of the prompts, which sampling's randomness depends on; 0, 1, ... by default.
    first_sample: number of the first sample of each prompt.
    stop: looks for stop strings.
    draft: a smaller model with the same tokens, for speculation that asks for one.
    """

    limits: Required[Sequence[int]]
    eos_ids: Sequence[int]
    suppress: Sequence[int]
    constraints: Sequence[Constraint]
    inclusion: Inclusion | None
    prompt_indices: Sequence[int] | None
    first_sample: int
    stop: StopCheck | None
    draft: StepModel[Any] | None


def search(
    model: StepModel[State],
    prompts: PromptBatch,
    config: DecodingConfig,
    *,
    on_token: OnToken | None = None,
    **options: Unpack[SearchOptions],
) -> list[list[Hypothesis]]:
    """The hypotheses of each prompt: `num_return` of them, best first; beam search may have finished fewer.

    Args:
        model: gives the scores of the next token.
        prompts: what to go on from, B of them.
        config: the strategy and its settings; the caller turns its max_new_tokens and max_length into limits, and
            chooses between samples by their texts.
        on_token: told of every token as soon as it is decided, those of a result in order.
        options: limits, which must be given, and what else `SearchOptions` says.

    Raises:
        DivergedError: the model's scores are not finite.
        UsageError: more beams than tokens, an unknown token in the settings, settings that forbid every token, or
            contrastive search with a model that tells no hidden states, or speculation without the draft model.
    """
    return run_steps(search_steps(model, prompts, config, **options), on_token)


def run_steps(steps: Steps, on_token: OnToken | None = None) -> list[list[Hypothesis]]:
    """The hypotheses that steps lead to, telling `on_token` of every token on the way."""
    while True:
        try:
            decided = next(steps)
        except StopIteration as end:
            hypotheses: list[list[Hypothesis]] = end.value
            return hypotheses
        if on_token is not None:
            for result, token_id in decided:
                on_token(result, token_id)


def search_steps(
    model: StepModel[State],
    prompts: PromptBatch,
    config: DecodingConfig,
    *,
    limits: Sequence[int],
    eos_ids: Sequence[int] = (),
    suppress: Sequence[int] = (),
    constraints: Sequence[Constraint] = (),
    inclusion: Inclusion | None = None,
    prompt_indices: Sequence[int] | None = None,
    first_sample: int = 0,
    stop: StopCheck | None = None,
    draft: StepModel[Any] | None = None,
) -> Steps:
    """As `search`, a step at a time: yields what each step decides, and returns the hypotheses."""
    require_draft(config, draft)
    if not any(limits):
        return [_empty_results(config) for _ in limits]
    indices = range(len(prompts)) if prompt_indices is None else prompt_indices
    stopping = Stopping(frozenset(eos_ids), tuple(limits), stop, config.stop_on_loop)
    rules = constraints if inclusion is None else (*constraints, inclusion)
    make = partial(make_filters, config, prompts, stopping, suppress, rules)
    match config:
        case GreedyConfig():
            if config.speculation is None:
                found = yield from follow(model, prompts, config, stopping, make, most_likely)
            else:
                proposer = _proposer(config.speculation, draft, None)
                found = yield from speculate(model, prompts, config, stopping, make, likeliest, proposer)
        case ContrastiveConfig():
            contrast = Contrast(hidden_model(model), config)
            found = yield from follow(contrast, prompts, config, stopping, make, contrast)
        case BeamConfig(beam_size=1):
            # As in Hugging Face, one beam is greedy search; only the score is that of a beam.
            greedy = yield from follow(model, prompts, config, stopping, make, most_likely)
            found = [[_with_beam_score(hypothesis, config) for hypothesis in results] for results in greedy]
        case BeamConfig() | BeamSampleConfig():
            selection: Selection = Best() if isinstance(config, BeamConfig) else DrawBeams(config, indices)
            if inclusion is not None:
                selection = Banks(selection, inclusion)
            found = yield from beam_search(model, prompts, config, stopping, make, selection)
        case SampleConfig():
            samples = range(first_sample, first_sample + config.num_return)
            streams = [(index, sample) for index in indices for sample in samples]
            draw = Draw(config, streams)
            if config.speculation is None:
                found = yield from follow(model, prompts, config, stopping, make, draw)
            else:
                guess = Draw(config.model_copy(update={"xtc": None}), streams, "/draft")
                proposer = _proposer(config.speculation, draft, guess)
                found = yield from speculate(model, prompts, config, stopping, make, partial(drawn, draw), proposer)
        case _:
            assert_never(config)
    return found


def require_draft(config: DecodingConfig, draft: object | None) -> None:
    """Refuse to look for the proposals of a model that is not there.

    Raises:
        UsageError: the settings ask for one.
    """
    if config.needs_draft and draft is None:
        raise UsageError("there is no draft model", "speculation", "load one beside the model: --draft MODEL")


def _proposer(speculation: Speculation, draft: StepModel[Any] | None, draw: Draw | None) -> Proposer:
    """Who guesses. draw: from the distributions of the draft model; None: its best tokens are proposed."""
    match speculation:
        case PromptLookup():
            return Lookup(speculation)
        case DraftModel():
            assert draft is not None
            return Draft(draft, speculation.num_tokens, draw)
        case _:
            assert_never(speculation)


def _empty_results(config: DecodingConfig) -> list[Hypothesis]:
    """What a limit of 0 gives. There is only one empty sequence for beams to find."""
    copies = config.num_return if isinstance(config, SampleConfig) else 1
    return [Hypothesis((), 0.0, 0.0, "length")] * copies


def _with_beam_score(hypothesis: Hypothesis, config: BeamConfig) -> Hypothesis:
    length = len(hypothesis.token_ids)
    return replace(hypothesis, score=hypothesis.logprob / length**config.length_penalty)
