"""What a checkpoint says of itself: what a run leaves in it, and what a run takes from it."""

from typing import Any, TypeVar

from pydantic import Field

from txtgen.config.base import Config
from txtgen.config.chat_formats import ChatFormat, TokensChatFormat
from txtgen.config.data import DataConfig
from txtgen.config.decoding import DecodingConfig, GreedyConfig
from txtgen.config.finetuning import AdapterRecord
from txtgen.config.model import EncoderDecoderConfig, ModelConfig, Quantization
from txtgen.config.objectives import (
    ChatObjective,
    DpoObjective,
    MixtureObjective,
    ObjectiveConfig,
    PartConfig,
    Seq2SeqObjective,
)
from txtgen.config.runs import RunConfig
from txtgen.config.tokenizer import Framing
from txtgen.errors import ConfigError


class CheckpointConfig(Config):
    """What a checkpoint says of itself: enough to build, prompt and continue the model."""

    model: ModelConfig
    chat: ChatFormat | None = None
    """How a conversation is written; None: this is no chat model."""
    framing: Framing | None = None
    """The tokens around texts, of a model that comes from elsewhere; None: txtgen's own, and then no text can make
    the model write a special or control token."""
    bidirectional_prompt: bool = False
    """A decoder reads prompts in both directions, because it has learnt to go on from no others."""
    generation: DecodingConfig = GreedyConfig()
    quantization: Quantization | None = None
    """Weights in fewer bits, which cannot be trained; None: as they were trained."""
    adapter: AdapterRecord | None = None
    """The weights are those of an adapter alone, of the model that this names; None: they are all of the model."""
    run: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration of the run that made it."""


def chat_format(data: DataConfig) -> ChatFormat | None:
    """The conversation format that a run teaches, or None."""
    for objective in data.objective.members:
        match objective:
            case ChatObjective(format=format):
                return format or TokensChatFormat()
            case Seq2SeqObjective(format=format) if any(source.kind == "chat" for source in data.sources):
                return format or TokensChatFormat()
            case DpoObjective(format=format):
                return format
    return None


def bidirectional_prompt(objective: ObjectiveConfig) -> bool:
    """Whether a decoder learns to go on from a text only when it has read it in both directions."""
    kinds = {part.kind for part in objective.members}
    return "prefix_lm" in kinds and kinds.isdisjoint({"causal_lm", "fill_in_middle", "chat"})


Run = TypeVar("Run", bound=RunConfig)


def inherited(config: Run, base: CheckpointConfig) -> Run:
    """The config with what it leaves open taken from the model that the run goes on from.

    Raises:
        ConfigError: the objective cannot be taught in the base model's conversation format, or the base model's
            defaults of generation need a second model.
    """
    objective = config.data.objective
    if isinstance(objective, MixtureObjective):
        parts = tuple(_in_format_of(base, part) for part in objective.parts)
        settled: ObjectiveConfig = objective.model_copy(update={"parts": parts})
    elif isinstance(objective, DpoObjective):
        usual = None if isinstance(base.model, EncoderDecoderConfig) else TokensChatFormat()
        settled = objective.model_copy(update={"format": objective.format or base.chat or usual})
    else:
        settled = _in_format_of(base, objective)
    data = config.data.model_copy(update={"objective": settled})
    generation = base.generation if config.generation == GreedyConfig() else config.generation
    if generation.needs_draft:
        told = "the base model's defaults of generation ask for a draft model, and a run has none"
        raise ConfigError(
            told, "generation.speculation", "set it to {kind: prompt_lookup}, or set generation otherwise"
        )
    return config.model_copy(update={"data": data, "generation": generation})


def _in_format_of(base: CheckpointConfig, objective: PartConfig) -> PartConfig:
    """The objective, a conversation format that it leaves open taken from the base model."""
    if not isinstance(objective, ChatObjective | Seq2SeqObjective) or objective.format or base.chat is None:
        return objective
    settled = objective.model_copy(update={"format": base.chat})
    for key, complaint in settled.problems():
        raise ConfigError(f"{key}: {complaint}", f"data.objective.{key}", "or set data.objective.format to another one")
    return settled
