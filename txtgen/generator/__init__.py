"""From text to text: prompts become tokens, search goes on from them, and what it finds becomes text."""

from txtgen.generator.batches import Plan, in_order
from txtgen.generator.generator import Generator
from txtgen.generator.types import Generation, Message, Prompt, Score

__all__ = ["Generation", "Generator", "Message", "Plan", "Prompt", "Score", "in_order"]
