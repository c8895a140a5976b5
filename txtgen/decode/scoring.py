"""How likely a model finds given tokens."""

from collections.abc import Sequence

import torch

from txtgen.decode.filters import log_probabilities
from txtgen.decode.types import PromptBatch, State, StepModel

LOGITS_AT_ONCE = 2**24
"""Numbers in the largest tensor: 64 MiB of float32."""


@torch.inference_mode()
def token_logprobs(
    model: StepModel[State], prompts: PromptBatch, targets: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The natural log-probability of every token of a target, after its prompt and the tokens before it.

    They are those of the model's plain softmax, as in `Hypothesis.logprob`. Targets may have any lengths but 0; those
    that are read to their end leave the batch.

    Raises:
        DivergedError: the model's scores are not finite.
    """
    device = prompts.input_ids.device
    lengths = [len(target) for target in targets]
    capacity = int((prompts.lengths + torch.tensor(lengths, device=device)).max()) - 1
    logits, state = model.prefill(prompts, capacity=capacity)
    logits = logits[:, None]
    found: list[list[float]] = [[] for _ in targets]
    live, done = list(range(len(targets))), 0
    while live:
        # logits [B,N,V] are of the tokens from `done` on.
        count = logits.shape[1]
        tokens = torch.tensor([targets[row][done : done + count] for row in live], device=device)
        picked = log_probabilities(logits).gather(2, tokens[..., None])[..., 0]
        for row, logprobs in zip(live, picked.tolist(), strict=True):
            found[row] += logprobs
        done += count
        left = [place for place, row in enumerate(live) if lengths[row] > done]
        if not left:
            break
        if len(left) < len(live):
            state.select(torch.tensor(left, device=device))
            live = [live[place] for place in left]
        at_once = max(1, LOGITS_AT_ONCE // (len(live) * logits.shape[-1]))
        count = min(at_once, *(lengths[row] - done for row in live))
        # The last token that was scored is still to be read, and the last of all never is.
        read = [targets[row][done - 1 : done - 1 + count] for row in live]
        logits = model.extend(torch.tensor(read, device=device), state)
    return found
