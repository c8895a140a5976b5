"""From text to text: prompts become tokens, search goes on from them, and what it finds becomes text."""

from txtgen.generator.batches import Plan, in_order
from txtgen.generator.generator import Generator
from txtgen.generator.types import Generation, Message, Prompt, Score
from txtgen.generator.workers import Results, complete_by_workers

__all__ = [
    "Generation", "Generator", "Message", "Plan", "Prompt", "Results", "Score", "complete_by_workers", "in_order",
]  # fmt: skip
