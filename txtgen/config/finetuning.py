"""Which weights finetuning may change: all, some, or only those of an adapter beside them."""

from typing import Annotated, Literal

from pydantic import Field

from txtgen.config.base import Config, Count, Share
from txtgen.config.model import Quantization

Patterns = tuple[Annotated[str, Field(min_length=1)], ...]


class FreezeConfig(Config):
    """Parameters that stay as they are."""

    field_of_list = "patterns"

    patterns: Patterns = ()
    """Glob patterns of their names, such as `*embedding*` or `decoder.layers.[0-3].*`."""
    embeddings: bool = False
    """All embeddings: of tokens, positions and n-grams, of source and target."""
    all_but_last: Count | None = None
    """All but so many last layers of each stack, what stands behind these, and an output layer of its own."""


class LoraConfig(Config):
    """A low-rank adapter: beside each chosen linear layer W, which stays as it is, a product of two thin matrices is
    learnt that is added to it, W + scale * up @ down.

    Source: Hu et al. 2021, arXiv 2106.09685; over weights in few bits: Dettmers et al. 2023, arXiv 2305.14314.
    """

    kind: Literal["lora"] = "lora"
    rank: Count = 8
    """Width of the two matrices."""
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """The scale times the rank."""
    rank_stabilised: bool = False
    """The scale is alpha / sqrt(rank), which a large rank needs, in place of alpha / rank.
    Source: Kalajdzievski 2023, arXiv 2312.03732."""
    dropout: Share = 0.0
    """Of what goes into the adapter."""
    targets: Annotated[Patterns, Field(min_length=1)] = ("*_proj*",)
    """Glob patterns of linear layers inside blocks, or of the ends of their names: `q_proj`, `feed_forward.*`,
    `decoder.layers.[4-7].*`. The default is all of them."""
    trainable: Patterns = ()
    """Glob patterns of other parameters that are learnt too and saved with the adapter, such as `*_norm.*`."""
    base_bits: Literal[8, 4] | None = None
    """Hold the base model in so many bits while training; None: as it was saved, in float32."""

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    @property
    def base_quantization(self) -> Quantization | None:
        """Of the base model while training."""
        return None if self.base_bits is None else "int8" if self.base_bits == 8 else "int4"


class AdapterRecord(Config):
    """What a checkpoint says of itself that holds an adapter: how to apply it, and to which model."""

    adapter: LoraConfig
    base_path: str
    """Where the base model was: a .pth or a Hugging Face folder."""
    base_sha256: str
    """Of its weights, wherever they are."""
