"""The Transformer: one class for decoder-only and encoder-decoder, its parts chosen by the configuration."""

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from txtgen.config.model import EncoderDecoderConfig, LearnedPosition, ModelConfig, SinusoidalPosition
from txtgen.errors import ConfigError, UsageError
from txtgen.model.attention import additive, packed_mask
from txtgen.model.functions import autocast_dtype
from txtgen.model.layers import Stack
from txtgen.model.ngrams import NgramEmbedding, with_room_before
from txtgen.model.position import is_bounded, sinusoidal_table
from txtgen.model.state import TransformerState, Window


class Prompt(Protocol):
    """Prompts padded on the right, as `decode.types.PromptBatch` holds them."""

    @property
    def input_ids(self) -> Tensor:
        """[B,T] int64."""

    @property
    def lengths(self) -> Tensor:
        """[B] int64, each at least 1."""

    @property
    def source_ids(self) -> Tensor | None:
        """[B,S] int64, for an encoder-decoder."""

    @property
    def source_mask(self) -> Tensor | None:
        """[B,S] bool, True is a token."""

    @property
    def bidirectional(self) -> Tensor | None:
        """[B] bool, prompts whose tokens see one another in both directions."""


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Transformer(nn.Module):
    """From token ids to the logits of the next token.

    `forward` reads whole sequences for training. `prefill` and `extend` read prompts and then token after
    token, remembering keys and values; they never track gradients and give the same logits as `forward`.

    Source: Vaswani et al. 2017, arXiv 1706.03762; pre-norm: Xiong et al. 2020, arXiv 2002.04745.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        vocab_size = _known(config.vocab_size, "model.vocab_size")
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.ngram_embedding: NgramEmbedding | None = None
        if config.ngrams is not None:
            self.ngram_embedding = NgramEmbedding(
                config.ngrams.max_order, config.ngrams.num_buckets, width, config.ngrams.dropout
            )
        learned = isinstance(config.position, LearnedPosition)
        self.position_embedding = nn.Embedding(config.max_length, width) if learned else None
        self.source_embedding: nn.Embedding | None = None
        self.source_position_embedding: nn.Embedding | None = None
        self.encoder: Stack | None = None
        if isinstance(config, EncoderDecoderConfig):
            length = config.max_source_length
            if not config.share_embeddings:
                source_vocab_size = _known(config.source_vocab_size, "model.source_vocab_size")
                self.source_embedding = nn.Embedding(source_vocab_size, width)
            self.source_position_embedding = nn.Embedding(length, width) if learned else None
            self.encoder = Stack(config, config.num_encoder_layers, length, causal=False, cross=False)
            self.decoder = Stack(config, config.num_decoder_layers, config.max_length, causal=True, cross=True)
        else:
            self.decoder = Stack(config, config.num_layers, config.max_length, causal=True, cross=False)
        self.lm_head = None if config.tie_embeddings else nn.Linear(width, vocab_size, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size)) if config.output_bias else None

    @property
    def layers(self) -> list[nn.Module]:
        """All layers, the encoder's first."""
        return [layer for stack in (self.encoder, self.decoder) if stack is not None for layer in stack.layers]

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the matrix products: the weights' own, or that of autocast."""
        first = next(self.parameters())  # of quantised weights, only those around them are parameters
        return autocast_dtype(first.device) or first.dtype

    def _check_length(self, length: int, limit: int, what: str, key: str) -> None:
        """Raises UsageError if positions come from a table that is shorter than the sequence."""
        if length > limit and is_bounded(self.config.position):
            fix = f"shorten it, or train a model with a larger {key}"
            raise UsageError(f"a {what} of {length} tokens is too long", f"the model's {key} is {limit}", fix)

    def _check_source(self, source_ids: Tensor | None) -> None:
        """Raises UsageError if a source is missing, too long, or given to a model that has no encoder."""
        if self.encoder is None:
            if source_ids is not None:
                raise UsageError("a source was given", "the model has no encoder", "use an encoder_decoder")
            return
        if source_ids is None:
            raise UsageError("no source was given", "the model has an encoder", "give every row one")
        self._check_length(source_ids.shape[1], self.encoder.max_length, "source", "max_source_length")

    def check_prompt(self, prompt: Prompt, capacity: int) -> None:
        """Refuse prompts that `prefill` could not read.

        Raises:
            UsageError: capacity exceeds what the positions allow or falls short of a prompt, or a source does
                not fit the model.
        """
        length = prompt.input_ids.shape[1]
        self._check_length(capacity, self.decoder.max_length, "sequence", "max_length")
        if length > capacity:
            raise UsageError(
                f"a prompt of {length} tokens does not fit", f"the capacity is {capacity}", "raise capacity"
            )
        self._check_source(prompt.source_ids)

    def _embed(
        self, ids: Tensor, positions: Tensor, source: bool = False, state: TransformerState | None = None
    ) -> Tensor:
        """Embeddings [B,N,D] of ids [B,N] at positions [1|B,N], for the decoder or for the encoder.

        A state has the tokens before them; without one they begin their rows.
        """
        embedding, learned, stack = self.token_embedding, self.position_embedding, self.decoder
        if source and self.encoder is not None:
            embedding, stack = self.source_embedding or embedding, self.encoder
            learned = self.source_position_embedding
        x = cast(Tensor, embedding(ids))
        if self.config.scale_embeddings:
            x = x * math.sqrt(self.config.d_model)
        if self.ngram_embedding is not None and not source:
            reach = self.ngram_embedding.reach
            with_context = with_room_before(ids, reach) if state is None else state.with_context(ids, positions)
            x = x + self.ngram_embedding(with_context, positions)
        if learned is not None:
            x = x + learned(positions)
        if isinstance(self.config.position, SinusoidalPosition):
            layout = self.config.position.layout
            x = x + sinusoidal_table(stack.max_length, self.config.d_model, layout, x.device, x.dtype)[positions]
        return x

    def encode(self, source_ids: Tensor | None, source_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Read the sources [B,S]; source_mask None: no padding.

        Returns the encoder's output [B,S,D] and the mask [B,1,1,S] to add to the scores of cross-attention,
        each None where there is nothing.

        Raises:
            UsageError: a source is missing, too long, or given to a model that has no encoder.
        """
        self._check_source(source_ids)
        if self.encoder is None or source_ids is None:
            return None, None
        length = source_ids.shape[1]
        positions = torch.arange(length, device=source_ids.device)[None]
        allowed = mask = None
        if source_mask is not None:
            # A row without a single token may look anywhere: a softmax over nothing would be NaN.
            allowed = (source_mask | ~source_mask.any(-1, keepdim=True))[:, None, None, :]
            mask = additive(allowed, self.compute_dtype)
        pattern = self.encoder.pattern(positions, allowed, self.compute_dtype)
        return self.encoder(self._embed(source_ids, positions, source=True), pattern), mask

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor,
        segment_ids: Tensor,
        separate: bool = False,
        bidirectional: Tensor | None = None,
        source_ids: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """What `head` turns into logits, [B,T,D]; the arguments are those of `forward`."""
        if not separate:  # else positions begin anew within the row
            self._check_length(input_ids.shape[1], self.decoder.max_length, "sequence", "max_length")
        source, mask = self.encode(source_ids, source_mask)
        # Padding stands at the end of a row, where causality already hides it from every token.
        causal = not separate and bidirectional is None
        allowed = None if causal else packed_mask(segment_ids, separate, bidirectional)
        pattern = self.decoder.pattern(positions, allowed, self.compute_dtype, causal, source_mask=mask)
        return cast(Tensor, self.decoder(self._embed(input_ids, positions), pattern, source))

    @property
    def head_parameters(self) -> list[Tensor]:
        """What `head` computes with: a weight [V,D], and a bias [V] if there is one."""
        weight = self.token_embedding.weight if self.lm_head is None else self.lm_head.weight
        return [weight] if self.output_bias is None else [weight, self.output_bias]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [...,V] of hidden [...,D], in the compute dtype, or in float32 where they are capped."""
        return self._logits(hidden, self.head_parameters)

    def narrow_head(self, token_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """As `head`, of these tokens alone, [N] int64, with their weights as they are now."""
        parameters = [parameter[token_ids] for parameter in self.head_parameters]
        return lambda hidden: self._logits(hidden, parameters)

    def _logits(self, hidden: Tensor, parameters: list[Tensor]) -> Tensor:
        if self.config.scale_output:
            hidden = hidden * self.config.d_model**-0.5
        logits = F.linear(hidden, *parameters)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(at_least_float32(logits) / cap)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        segment_ids: Tensor,
        separate: bool = False,
        bidirectional: Tensor | None = None,
        source_ids: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B,T,V] of the token after each position.

        input_ids: [B,T] int64. positions: [B,T] int64, each below T, or [1,T] if all rows agree. segment_ids:
        [B,T], 0 is padding (at the end of a row), 1, 2, ... are documents, hidden from one another if `separate`.
        bidirectional: [B,T] bool, positions that see one another in both directions within their document.
        source_ids: [B,S] int64 and source_mask: [B,S] bool (True is a token; None: all are), for an
        encoder-decoder.

        Raises:
            UsageError: a sequence is too long for the model's positions, or a source does not fit the model.
        """
        return self.head(
            self.hidden(input_ids, positions, segment_ids, separate, bidirectional, source_ids, source_mask)
        )

    @torch.no_grad()
    def prefill(self, prompt: Prompt, capacity: int) -> tuple[Tensor, TransformerState]:
        """Read prompts of unequal length, each at least one token.

        Returns logits [B,V] float32 (float64 from a float64 model) of the token after each prompt, and a
        state with room for `capacity` tokens a row, the prompt included.

        Raises:
            UsageError: capacity exceeds what the positions allow or falls short of a prompt, or a source does
                not fit the model.
        """
        hidden, state = self.prefill_hidden(prompt, capacity)
        last = hidden[torch.arange(len(hidden), device=hidden.device), prompt.lengths - 1]
        return at_least_float32(self.head(last)), state

    @torch.no_grad()
    def prefill_hidden(self, prompt: Prompt, capacity: int) -> tuple[Tensor, TransformerState]:
        """As `prefill`, but returns what `head` turns into logits, of every token: [B,T,D]."""
        self.check_prompt(prompt, capacity)
        rows, length = prompt.input_ids.shape
        source_mask = prompt.source_mask
        if source_mask is not None and bool(source_mask.all()):
            source_mask = None
        source, mask = self.encode(prompt.source_ids, source_mask)
        shape = (rows, self.config.kv_heads, capacity, self.config.head_width)
        dtype, device = self.compute_dtype, prompt.input_ids.device
        reach = 0 if self.ngram_embedding is None else self.ngram_embedding.reach
        state = TransformerState(len(self.decoder.layers), shape, dtype, device, mask, reach)
        window, _, _ = state.advance(length)
        allowed = None
        if prompt.bidirectional is not None:
            inside = torch.arange(length, device=device) < prompt.lengths[:, None]
            both = inside & prompt.bidirectional[:, None]
            allowed = packed_mask(inside.int(), separate=False, bidirectional=both)
        pattern = self.decoder.pattern(
            window.positions, allowed, dtype, causal=allowed is None, window=window, source_mask=mask
        )
        embedded = self._embed(prompt.input_ids, window.positions, state=state)
        hidden = self.decoder(embedded, pattern, source, state.caches)
        state.truncate(prompt.lengths)
        return hidden, state

    @torch.no_grad()
    def extend(self, tokens: Tensor, state: TransformerState) -> Tensor:
        """Read tokens [B,N], N more in every row, into the state.

        Returns logits [B,N,V] float32 (float64 from a float64 model) of the token after each.

        Raises:
            UsageError: a row would outgrow the state's capacity.
        """
        return at_least_float32(self.head(self.extend_hidden(tokens, state)))

    @torch.no_grad()
    def extend_hidden(self, tokens: Tensor, state: TransformerState) -> Tensor:
        """As `extend`, but returns what `head` turns into logits: [B,N,D]."""
        return self.read(tokens, state, *state.advance(tokens.shape[1]))

    def read(
        self, tokens: Tensor, state: TransformerState, window: Window, keys: Tensor, allowed: Tensor | None
    ) -> Tensor:
        """Hidden vectors [B,N,D] of tokens [B,N], which are put into a window of the state.

        keys: positions [1,J] of the keys in use. allowed: [1|B,1,N,J] bool, which of them each token may attend to;
        None: all.
        """
        pattern = self.decoder.pattern(
            window.positions,
            allowed,
            self.compute_dtype,
            keys=keys,
            window=window,
            source_mask=state.source_mask,
        )
        embedded = self._embed(tokens, window.positions, state=state)
        return cast(Tensor, self.decoder(embedded, pattern, caches=state.caches))


def _known(size: int | None, key: str) -> int:
    """The size, once the tokenizer has told it."""
    if size is None:
        raise ConfigError("the vocabulary size is not known", key, "set it, or take it from the tokenizer")
    return size


class Unset(TorchFunctionMode):
    """Within it torch's modules draw no weights: ours are set later, and drawing on the meta device imports the
    compiler, which takes longer than torch itself."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def build_model(config: ModelConfig, device: torch.device | str = "cpu") -> Transformer:
    """A model whose weights are not set yet: `init_weights` or `load_state_dict` must follow.

    On the "meta" device it takes no memory, whatever its size.

    Raises:
        ConfigError: vocab_size, or source_vocab_size without shared embeddings, is not set.
    """
    with torch.device(device), Unset():
        return Transformer(config)
