"""A Transformer's weights, arranged for the machine code, and everything else that it must know of the model."""

import math
from collections.abc import Callable
from copy import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from txtgen.config.model import AlibiPosition, SinusoidalPosition, T5RelativePosition
from txtgen.model.attention import Attention
from txtgen.model.layers import Layer, Stack
from txtgen.model.position import alibi_slopes, bucket_table, rotary_table, sinusoidal_table, table_length
from txtgen.model.quantize import QuantizedEmbedding, QuantizedLinear
from txtgen.model.transformer import Transformer
from txtgen.native import Library, UnavailableError, bindings

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.uint8: 4}
"""Numbers of the kinds of weights in cpp/weights.h; codes of 4 bits lie two in a byte."""
ACTIVATIONS = {"relu": 0, "relu_squared": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
CPU = torch.device("cpu")
ALL = slice(None)


class PackedModel:
    """A Transformer's stacks as the machine code reads them.

    The weights of the matrices are copied; those of the tables that are looked up are the model's own.

    Raises:
        UnavailableError: the model has a part that the machine code does not know.
    """

    def __init__(self, model: Transformer, library: Library) -> None:
        self._library, self._kept = library, []  # type: tuple[Library, list[Any]]
        self._model = model
        self.encoder = None if model.encoder is None else self._stack(model, model.encoder)
        self.decoder = self._stack(model, model.decoder)

    def reach(self, length: int) -> None:
        """Have rotations for so many positions."""
        for stack, packed in ((self._model.encoder, self.encoder), (self._model.decoder, self.decoder)):
            if stack is None or packed is None or stack.rotary is None:
                continue
            positions = table_length(length, stack.max_length)
            cosines, sines = rotary_table(positions, *stack.rotary, CPU, torch.float32)
            packed.cosines, packed.sines = self._keep(cosines), self._keep(sines)

    def narrow(self, token_ids: Tensor) -> "PackedModel":
        """The same, but its output layer has these tokens alone, [N] int64."""
        narrow = copy(self)
        narrow._kept = [self]
        narrow.decoder = bindings.Stack.from_buffer_copy(self.decoder)
        narrow.decoder.head = narrow._head(token_ids)
        return narrow

    # -- what stays where it is

    def _keep(self, tensor: Tensor) -> int:
        """The address of a tensor that lives as long as this."""
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _floats(self, tensor: Tensor | None) -> int | None:
        """The address of the numbers as float32."""
        return None if tensor is None else self._keep(tensor.detach().float().contiguous())

    def _norm(self, norm: nn.Module | None) -> bindings.Norm:
        if norm is None:
            return bindings.Norm()
        bias = getattr(norm, "bias", None)
        return bindings.Norm(self._floats(cast(Tensor, norm.weight)), self._floats(bias))

    def _head_norm(self, norm: nn.Module | None) -> int | None:
        return None if norm is None else self._floats(cast(Tensor, norm.weight))

    def _table(self, table: nn.Module) -> bindings.Table:
        """Vectors that are looked up."""
        if isinstance(table, QuantizedEmbedding):
            codes, scales = self._keep(table.codes), self._floats(table.scale)
            return bindings.Table(_kind(table.codes), len(table.codes), table.width, codes, scales)
        weight = cast(Tensor, table.weight).detach()
        return bindings.Table(_kind(weight), *weight.shape, self._keep(weight.contiguous()))

    # -- matrices

    def _matrix(
        self, *modules: nn.Module, bias: Tensor | None = None, outputs: slice | Tensor = ALL
    ) -> bindings.Matrix:
        """The matrices of modules that read the same, one below the other; of a single one perhaps some outputs."""
        scales: Tensor | None = None
        if all(type(module) in (QuantizedLinear, QuantizedEmbedding) for module in modules):
            weights = _stacked([cast(Tensor, module.codes)[outputs] for module in modules])
            scales = _stacked([cast(Tensor, module.scale)[outputs].float() for module in modules])
            width = cast(int, modules[0].width)
        elif all(type(module) in (nn.Linear, nn.Embedding) for module in modules):
            weights = _stacked([cast(Tensor, module.weight).detach()[outputs] for module in modules])
            width = weights.shape[1]
        else:
            raise UnavailableError(f"it does not know {' and '.join(sorted({type(m).__name__ for m in modules}))}")
        biases = [module.bias for module in modules if isinstance(getattr(module, "bias", None), Tensor)]
        if biases:
            bias = torch.cat([cast(Tensor, part) for part in biases])
        bias = None if bias is None else bias.detach()[outputs].float().contiguous()
        kind, count = _kind(weights), weights.shape[0]
        packed = torch.empty(self._library.packed_bytes(kind, count, width), dtype=torch.uint8)
        rows = bindings.Rows(kind, count, width, weights.data_ptr(), _address(scales), _address(bias))
        self._library.pack(rows, packed.data_ptr(), torch.get_num_threads())
        return bindings.Matrix(kind, count, width, self._keep(packed))

    def _head(self, token_ids: slice | Tensor = ALL) -> bindings.Matrix:
        """The output layer, of these tokens."""
        model = self._model
        return self._matrix(model.lm_head or model.token_embedding, bias=model.output_bias, outputs=token_ids)

    def _array(self, kind: Callable[..., Any], items: list[Any]) -> Any:
        array = (cast(Any, kind) * len(items))(*items)
        self._kept.append(array)
        return array

    # -- layers

    def _layer(self, number: int, layer: Layer, stack: Stack) -> bindings.Layer:
        config, attention, feed_forward = stack.config, layer.self_attention, layer.feed_forward
        window = config.sliding_window if stack.causal and number not in config.full_attention_layers else None
        hidden = [self._matrix(proj) for proj in feed_forward.hidden_projs]
        packed = bindings.Layer(
            attention_norm=self._norm(layer.self_attention_norm),
            feed_forward_norm=self._norm(layer.feed_forward_norm),
            query_norm=self._head_norm(attention.q_norm),
            key_norm=self._head_norm(attention.k_norm),
            queries_keys_values=self._matrix(attention.q_proj, attention.k_proj, attention.v_proj),
            attention_output=self._matrix(attention.o_proj),
            up=self._matrix(feed_forward.up_proj),
            down=self._matrix(feed_forward.down_proj),
            hidden=self._array(bindings.Matrix, hidden),
            num_hidden=len(hidden),
            window=window or 0,
        )
        if feed_forward.gate_proj is not None:
            packed.gate = self._matrix(feed_forward.gate_proj)
        if layer.cross_attention is not None:
            self._pack_cross(packed, layer.cross_attention, layer.cross_attention_norm)
        return packed

    def _pack_cross(self, packed: bindings.Layer, cross: Attention, norm: nn.Module | None) -> None:
        packed.cross_norm = self._norm(norm)
        packed.cross_query_norm, packed.cross_key_norm = self._head_norm(cross.q_norm), self._head_norm(cross.k_norm)
        packed.cross_queries = self._matrix(cross.q_proj)
        packed.cross_keys_values = self._matrix(cross.k_proj, cross.v_proj)
        packed.cross_output = self._matrix(cross.o_proj)

    def _stack(self, model: Transformer, stack: Stack) -> bindings.Stack:
        config = model.config
        layers = [self._layer(number, cast(Layer, layer), stack) for number, layer in enumerate(stack.layers)]
        packed = bindings.Stack(
            width=config.d_model,
            heads=config.num_heads,
            groups=config.kv_heads,
            head_width=config.head_width,
            num_layers=len(layers),
            rms=config.norm == "rms_norm",
            post_norm=config.norm_position == "post",
            activation=ACTIVATIONS[config.activation],
            scaled_output=config.scale_output,
            short_cells=layers[0].queries_keys_values.kind != KINDS[torch.float32],
            eps=config.norm_eps,
            attention_scale=config.attention_scale or config.head_width**-0.5,
            embedding_scale=math.sqrt(config.d_model) if config.scale_embeddings else 1.0,
            softcap=config.logit_softcap or 0.0,
            layers=self._array(bindings.Layer, layers),
            embedding_norm=self._norm(stack.embedding_norm),
            final_norm=self._norm(stack.final_norm),
        )
        self._pack_positions(packed, stack)
        if stack is model.encoder:
            packed.tokens = self._table(model.source_embedding or model.token_embedding)
            self._pack_position_vectors(packed, stack, model.source_position_embedding)
        else:
            packed.tokens = self._table(model.token_embedding)
            packed.head = self._head()
            self._pack_position_vectors(packed, stack, model.position_embedding)
            if model.ngram_embedding is not None:
                packed.ngrams = self._table(model.ngram_embedding)
                packed.ngram_order = model.ngram_embedding.max_order
                packed.ngram_buckets = model.ngram_embedding.num_buckets
        return packed

    def _pack_position_vectors(self, packed: bindings.Stack, stack: Stack, learned: nn.Embedding | None) -> None:
        """What is added to the embeddings."""
        position = stack.config.position
        if learned is not None:
            packed.positions = self._floats(learned.weight)
        elif isinstance(position, SinusoidalPosition):
            sizes = stack.max_length, stack.config.d_model
            packed.positions = self._keep(sinusoidal_table(*sizes, position.layout, CPU, torch.float32))

    def _pack_positions(self, packed: bindings.Stack, stack: Stack) -> None:
        """What attention knows of positions."""
        position = stack.config.position
        if isinstance(position, AlibiPosition):
            packed.slopes = self._floats(alibi_slopes(stack.config.num_heads, CPU, torch.float32))
        elif isinstance(position, T5RelativePosition) and stack.relative_bias is not None:
            buckets = bucket_table(position.num_buckets, position.max_distance, not stack.causal, CPU)
            packed.distance_scores = self._floats(stack.relative_bias.weight.detach()[buckets].T)
            packed.reach = position.max_distance


def _stacked(parts: list[Tensor]) -> Tensor:
    """Matrices one below the other; a single one stays where it is."""
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def _kind(weights: Tensor) -> int:
    if weights.dtype not in KINDS:
        raise UnavailableError(f"it does not compute in {str(weights.dtype).removeprefix('torch.')}")
    return KINDS[weights.dtype]


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
