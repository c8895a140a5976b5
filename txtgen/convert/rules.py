"""How the parameters of two models that compute the same are made of one another: one list, read in both directions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from txtgen.config.model import Activation, DecoderConfig, EncoderDecoderConfig
from txtgen.convert.fields import Fields

ModelConfig = DecoderConfig | EncoderDecoderConfig


@dataclass(frozen=True, slots=True)
class Rule:
    """One parameter of theirs, and the one of ours that it is, or several that it holds one after the other.

    transposed: theirs is [inputs, outputs]. skip: rows at the top of theirs that stand for nothing. flat: theirs has
    an axis of length 1 in front.
    """

    theirs: str
    ours: str | tuple[str, ...]
    transposed: bool = False
    skip: int = 0
    flat: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of our parameters."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def to_ours(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Our parameters, of so many rows each: views of theirs where it can be.

        Raises:
            RuntimeError: the shape of theirs does not allow it.
        """
        if self.flat:
            tensor = tensor.squeeze(0)
        if self.transposed and tensor.dim() == 2:
            tensor = tensor.t()
        if self.skip:
            tensor = tensor[self.skip :]
        return list(torch.split(tensor, list(sizes))) if len(self.names) > 1 else [tensor]

    def to_theirs(self, parts: Sequence[Tensor]) -> Tensor:
        """Their parameter, made of ours."""
        tensor = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        if self.skip:
            tensor = torch.cat([tensor.new_zeros(self.skip, *tensor.shape[1:]), tensor])
        if self.transposed and tensor.dim() == 2:
            tensor = tensor.t()
        return (tensor[None] if self.flat else tensor).contiguous()


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models in Hugging Face's format.

    name: its `model_type`. architecture: the class that the format names. config: the class of ours that it maps to;
    `write`, `rules` and `copies` take one of it. read: our config of a config.json; the
    weights tell what the file leaves open. write: the config.json of a config of ours, as far as the family can say
    it: what `read` then gives back differs in what it cannot. rules: how parameters correspond. prefix: of the names
    of all parameters but `heads`; files of the bare model leave it out. ignored: glob patterns of what files hold
    besides parameters. copies: names of parameters that merely repeat another one. factors: numbers that parameters of
    ours are multiplied by when they are read, as a config.json asks for.
    """

    name: str
    architecture: str
    config: type[DecoderConfig] | type[EncoderDecoderConfig]
    read: Callable[[Fields, Mapping[str, Tensor]], ModelConfig]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], Iterator[Rule]]
    copies: Callable[[Any], dict[str, str]]
    factors: Callable[[Fields, Any], Mapping[str, float]] = lambda _fields, _config: {}
    prefix: str = ""
    heads: tuple[str, ...] = ("lm_head.weight", "final_logits_bias")
    ignored: tuple[str, ...] = ()


def linear(theirs: str, ours: str, bias: bool, **how: Any) -> Iterator[Rule]:
    """The weight of a linear layer, and its bias if it has one."""
    yield Rule(f"{theirs}.weight", f"{ours}.weight", **how)
    if bias:
        yield Rule(f"{theirs}.bias", f"{ours}.bias")


ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "relu2": "relu_squared",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
"""Hugging Face's names of activations that we have."""


def activation(fields: Fields, key: str, default: str) -> Activation:
    """Our name of an activation.

    Raises:
        CheckpointError: we do not have it.
    """
    name = fields.word(key, default)
    if name not in ACTIVATIONS:
        fields.only(key, sorted(ACTIVATIONS))
    return ACTIVATIONS[name]


def activation_name(name: Activation) -> str:
    """Hugging Face's name of an activation of ours."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == name)
