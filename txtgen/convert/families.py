"""The families of models that can be read and written, and how their weights become ours and back."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from pydantic import ValidationError
from torch import Tensor

from txtgen.convert.bart import BART, MARIAN
from txtgen.convert.fields import Fields
from txtgen.convert.gpt2 import GPT2
from txtgen.convert.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from txtgen.convert.rules import Family, ModelConfig
from txtgen.convert.t5 import T5
from txtgen.convert.weights import Weights, narrowed
from txtgen.errors import CheckpointError
from txtgen.model import build_model

FAMILIES = {family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, T5, BART, MARIAN)}
"""Those that say the same are tried in this order when a model is written."""


def family_of(fields: Fields) -> Family:
    """The family that a config.json names.

    Raises:
        CheckpointError: we do not have it.
    """
    name = fields.word("model_type", "")
    if name in FAMILIES:
        return FAMILIES[name]
    near = get_close_matches(name, FAMILIES, n=2, cutoff=0.3)
    nearest = f"; nearest: {', '.join(near)}" if near else ""
    raise CheckpointError(
        f"models of the family {name!r} cannot be read", fields.where, f"supported are {', '.join(FAMILIES)}{nearest}"
    )


def read_model(
    family: Family, fields: Fields, weights: Weights, dtype: torch.dtype | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Our config and state dict of a model of theirs.

    Args:
        family: that it belongs to.
        fields: its config.json.
        weights: its tensors.
        dtype: of ours; None: that of their embedding.

    Raises:
        CheckpointError: the config asks for what we do not have, or weights are missing, unexpected or misshapen.
    """
    weights = _canonical(family, weights)
    try:
        config = family.read(fields, weights)
    except ValidationError as error:
        complaints = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        raise CheckpointError(
            f"the model cannot be built: {'; '.join(complaints)}", fields.where, "use the config.json of the model"
        ) from error
    _refuse_strangers(family, config, weights)
    factors = family.factors(fields, config)
    return config, dict(_ours(family, config, weights, dtype, factors, _shapes(config, fields.where)))


WORN = ("module.", "_orig_mod.", "model.")
"""What stands before every name of what was trained in parallel, compiled, or as a part of a Lightning module."""


def _canonical(family: Family, weights: Weights) -> Weights:
    """The weights under the names of the whole model, also if the file is one of the bare model, without its head.

    Where all names of the model begin like one that is worn, that goes too, and comes back as the family's prefix.
    """
    worn = ""
    while weights and (part := next((p for p in WORN if all(name.startswith(worn + p) for name in weights)), "")):
        worn += part
    if worn:
        weights = weights.renamed({name.removeprefix(worn): name for name in weights})
    if not family.prefix or any(name.startswith(family.prefix) for name in weights):
        return weights
    return weights.renamed({name if name in family.heads else family.prefix + name: name for name in weights})


def _refuse_strangers(family: Family, config: ModelConfig, weights: Weights) -> None:
    """Every tensor must have its place, or be one that is known to repeat another or to hold nothing learned."""
    known = {rule.theirs for rule in family.rules(config)}
    copies = family.copies(config)
    for name in weights:
        if name in copies and copies[name] in weights:
            one, other = weights[name], weights[copies[name]]
            if one.shape != other.shape or not torch.equal(one, other):
                raise CheckpointError(
                    f"{name} should repeat {copies[name]}, as the config says they are tied, but it differs",
                    weights.where(name),
                    "set tie_word_embeddings: false in config.json if the model is not tied",
                )
    strangers = [
        name
        for name in weights
        if name not in known and name not in copies and not any(fnmatchcase(name, glob) for glob in family.ignored)
    ]
    missing = sorted(known - set(weights) - {name for name in known if name in _originals(copies, weights)})
    if strangers or missing:
        told = [f"unexpected {name}" for name in strangers] + [f"missing {name}" for name in missing]
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        raise CheckpointError(
            f"the weights are not those of the config: {', '.join(told[:5])}{more}",
            weights.where(strangers[0]) if strangers else str(weights.place),
            f"use the weights and the config.json of one {family.name} model",
        )


def _originals(copies: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Parameters that the file holds under the name of a copy only, and that name."""
    return {original: copy for copy, original in copies.items() if copy in weights and original not in weights}


def _shapes(config: ModelConfig, where: str) -> dict[str, torch.Size]:
    """The shapes of our state dict."""
    try:
        return {name: tensor.shape for name, tensor in build_model(config, "meta").state_dict().items()}
    except RuntimeError as error:  # more bytes than a tensor can count
        raise CheckpointError("its sizes are beyond any machine", where, "use the config.json of the model") from error


def _ours(
    family: Family,
    config: ModelConfig,
    weights: Weights,
    dtype: torch.dtype | None,
    factors: Mapping[str, float],
    shapes: Mapping[str, torch.Size],
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of our state dict; views of theirs where nothing but the name changes."""
    names = _originals(family.copies(config), weights)
    for rule in family.rules(config):
        tensor = weights[names.get(rule.theirs, rule.theirs)]
        dtype = dtype or tensor.dtype
        expected = rule.to_theirs([torch.empty(shapes[name], device="meta") for name in rule.names]).shape
        if tensor.shape != expected:
            raise CheckpointError(
                f"tensor {rule.theirs} is {list(tensor.shape)}, and the config says {list(expected)}",
                weights.where(names.get(rule.theirs, rule.theirs)),
                "use the weights and the config.json of one model",
            )
        parts = rule.to_ours(tensor, [shapes[name][0] for name in rule.names])
        for name, part in zip(rule.names, parts, strict=True):
            made = narrowed(part, dtype, rule.theirs).contiguous()
            yield name, made * factors[name] if name in factors else made


class Written(Mapping[str, Tensor]):
    """The weights of a model of ours under a family's names, made when they are asked for."""

    def __init__(self, family: Family, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
        self._rules = {rule.theirs: rule for rule in family.rules(config)}
        self._state = state

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of this name."""
        rule = self._rules[name]
        return rule.to_theirs([self._state[part] for part in rule.names])

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor; makes none."""
        return name in self._rules

    def __iter__(self) -> Iterator[str]:
        """All names, in the order of the layers."""
        return iter(self._rules)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._rules)


NOT_COMPUTED = ("dropout", "attention_dropout", "ffn_dropout", "init_std", "zero_init_projections")
"""What changes nothing about the trained model."""


def writable_family(config: ModelConfig, state: Mapping[str, Tensor], name: str | None = None) -> Family:
    """The first family that can say all that our config says.

    That is found by writing it and reading it again: what has changed, the family cannot say.

    Args:
        config: of the model.
        state: its weights.
        name: of the family that it must be; None: any.

    Raises:
        CheckpointError: there is none; the error names what stands in the way of the one that comes nearest.
    """
    candidates = [family for family in FAMILIES.values() if isinstance(config, family.config)]
    if name is not None:
        candidates = [family for family in candidates if family.name == name]
        if not candidates:
            raise CheckpointError(
                f"a model of kind {config.kind} cannot be written as {name}", "model.kind", "choose another family"
            )
    found = [(_differences(family, config, state), family) for family in candidates]
    differences, family = min(found, key=lambda pair: len(pair[0]))
    if not differences:
        return family
    raise CheckpointError(
        f"no family of Hugging Face has models like this one; {family.name} comes nearest, but "
        + "; ".join(differences),
        "model",
        "train with these options changed, to export the model",
    )


def _differences(family: Family, config: ModelConfig, state: Mapping[str, Tensor]) -> list[str]:
    """What a family cannot say of a config, each as an option, its value, and what the family would make of it."""
    back = family.read(Fields(family.write(config), family.name), Written(family, config, state))
    ours, theirs = _effective(config), _effective(back)
    return [f"model.{key} is {ours[key]!r}, there {theirs[key]!r}" for key in ours if ours[key] != theirs[key]]


def _effective(config: ModelConfig) -> dict[str, object]:
    """The values that count, with defaults in place of None."""
    found = {key: value for key, value in config.plain().items() if key not in NOT_COMPUTED}
    scale = config.attention_scale
    return found | {
        "num_kv_heads": config.kv_heads,
        "head_dim": config.head_width,
        "d_ff": config.ff_width,
        "attention_output_bias": config.output_projection_bias,
        "attention_scale": config.head_width**-0.5 if scale is None else scale,
        "norm_bias": config.norm == "layer_norm" and config.norm_bias,
        "full_attention_layers": sorted(config.full_attention_layers),
    }
