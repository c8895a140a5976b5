"""Models beside the one that generates, with the same tokens."""

from collections.abc import Iterable
from typing import Any

from txtgen.checkpoint import LoadedModel
from txtgen.config.model import Compile, Native
from txtgen.decode import StepModel
from txtgen.errors import CheckpointError, UsageError
from txtgen.generator.prompts import PromptReader
from txtgen.generator.types import EncodedPrompt
from txtgen.model import step_model


class Partner:
    """A model that reads what another one reads.

    Args:
        loaded: the model.
        first: reads prompts for the other one.
        name: what the model is there for.
        native, compile: as for `Generator`.

    Raises:
        CheckpointError: it has another architecture, vocabulary or way of reading prompts.
    """

    def __init__(
        self, loaded: LoadedModel, first: PromptReader, name: str, native: Native, compile: Compile = False
    ) -> None:
        self.name, self.fingerprint = name, loaded.fingerprint
        self._reader = PromptReader(loaded)
        self._refuse_differences(first)
        self.model: StepModel[Any] = step_model(loaded.model.eval(), native, compile)

    def _refuse_differences(self, first: PromptReader) -> None:
        mine, its = _facts(self._reader), _facts(first)
        for name, fact in mine.items():
            if fact != its[name]:
                shown = "" if name.startswith("tokenizer") else f": {fact}, not {its[name]}"
                fix = "give a model of the same architecture that was trained with the same tokenizer"
                raise CheckpointError(f"the {self.name} model has another {name}{shown}", self.name, fix)

    def check(self, prompts: Iterable[EncodedPrompt]) -> None:
        """Refuse prompts that are too long for this model, with what may follow them.

        Raises:
            UsageError: one is.
        """
        for prompt in prompts:
            if (excess := self._reader.excess(prompt)) is not None:
                raise UsageError(
                    f"the {self.name} model reads {excess[1]} tokens at most, and these may become {excess[0]}",
                    f"prompt {prompt.number + 1}",
                    f"lower max_new_tokens, shorten the prompt, or leave the {self.name} model out",
                )


def _facts(reader: PromptReader) -> dict[str, Any]:
    """What must be alike in models that read the same tokens."""
    loaded = reader.loaded
    return {
        "architecture": loaded.model.config.kind,
        "tokenizer": loaded.tokenizer.fingerprint(),
        "tokenizer of the source": reader.tokenizer.fingerprint(),
        "vocabulary size": loaded.model.config.vocab_size,
        "frame around a prompt": reader.framing,
        "way of reading a prompt": "in both directions" if loaded.config.bidirectional_prompt else "to the right",
    }
