"""From text to text: prompts become tokens, search goes on from them, and what it finds becomes text."""

from txtgen.generator.batches import Plan, in_order
from txtgen.generator.generator import Generator
from txtgen.generator.prompts import DEFAULT_NEW_TOKENS
from txtgen.generator.types import Generation, Message, Prompt, Score, StreamPiece
from txtgen.generator.workers import Results, complete_by_workers

__all__ = [
    "DEFAULT_NEW_TOKENS",
    "Generation",
    "Generator",
    "Message",
    "Plan",
    "Prompt",
    "Results",
    "Score",
    "StreamPiece",
    "complete_by_workers",
    "in_order",
]
