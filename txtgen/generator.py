"""From text to text: prompts become tokens, search goes on from them, and what it finds becomes text."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor

from txtgen.chat import encode_chat
from txtgen.checkpoint import LoadedModel
from txtgen.config.decoding import DecodingConfig, SampleConfig, SequenceBias, resolve_decoding
from txtgen.config.model import EncoderDecoderConfig
from txtgen.decode import FinishReason, Hypothesis, PromptBatch, Steps, run_steps, search_steps
from txtgen.errors import DataError, ResourceError, UsageError
from txtgen.infilling import Gaps, gap_marks, with_gaps
from txtgen.model import Transformer, is_bounded
from txtgen.tokenizer import IncrementalDecoder, Tokenizer, never_written, own_framing

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 256
"""How much is generated if nobody says."""

BATCHES_PER_WINDOW = 32
"""Prompts are sorted by length over this many batches: little padding, and yet early first results."""

Message = Mapping[str, str]
"""A turn of a conversation: its `role` and its `content`."""

Prompt = str | Sequence[Message]
"""A text, or the conversation so far for a chat model."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One result.

    prompt_index, index: the number of its prompt, and its own among the results of that prompt, from 0.
    prompt: the prompt as text; a conversation as the model reads it. text: what was generated, without end
    token or stop string. token_ids: the generated tokens, the end token included. prompt_token_ids: what the
    model was given, special tokens included; the source, for an encoder-decoder. logprob: the sum of the
    tokens' natural log-probabilities under the model itself. score: what results are ranked by.

    Where a prompt had gaps, `text` is the whole text with the gaps filled, and `fills` is what stands in each; it is
    empty otherwise, and where the model wrote the whole text anew.
    """

    prompt_index: int
    index: int
    prompt: str
    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    logprob: float
    score: float
    finish_reason: FinishReason
    fills: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The generated text."""
        return self.text


@dataclass(frozen=True, slots=True)
class _EncodedPrompt:
    """A prompt as the model is given it, how many tokens may follow, and the gaps that they fill, if any."""

    number: int
    text: str
    token_ids: tuple[int, ...]
    limit: int
    gaps: Gaps | None = None


class Generator:
    """A model that goes on from text.

    Args:
        loaded: the model and what belongs to it.
        batch_size: prompts (or samples) that are generated at a time.
        independent: one at a time, so that no other prompt can change a result even by a rounding error.

    Raises:
        UsageError: the batch size is below 1.
    """

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 16, independent: bool = False) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", "batch_size", "give at least 1")
        self.loaded = loaded
        self.batch_size = 1 if independent else batch_size
        model, tokenizer = loaded.model.config, loaded.tokenizer
        # Of an encoder-decoder; 0 for a decoder, which has no source.
        self._max_source_length = model.max_source_length if isinstance(model, EncoderDecoderConfig) else 0
        self._bounded = is_bounded(model.position)
        self._reader = loaded.source_tokenizer or tokenizer
        source = self._reader.special if self._max_source_length else None
        self._framing = loaded.config.framing or own_framing(tokenizer.special, source)
        self._suppress = never_written(tokenizer, loaded.config.framing, model.vocab_size or 0)
        self._suppress_beside_gaps = sorted({*self._suppress} - {*gap_marks(tokenizer.control_ids)})

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        raw: bool = False,
        special: bool = False,
        gap: str | None = None,
        **options: Any,
    ) -> list[Generation]:
        """The results of every prompt, in the order of the prompts; those of one prompt are consecutive.

        Args:
            prompts: texts, or conversations for a chat model, which takes a text as the user's first turn.
            raw: go on from the text itself, even with a chat model.
            special: spellings of special tokens in a text are those tokens, such as "<extra_id_0>" for T5.
            gap: what stands in a text for what is to be filled in, by a model that has learnt to; it is then not
                gone on from.
            options: settings of `txtgen.config.decoding`, such as strategy="beam", beam_size=4.

        Raises:
            UsageError: a prompt or an option that cannot be used; before anything is generated.
            DivergedError: the model's scores are not finite.
            ResourceError: the memory does not suffice.
        """
        return list(self.iterate(prompts, raw=raw, special=special, gap=gap, **options))

    def iterate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        raw: bool = False,
        special: bool = False,
        gap: str | None = None,
        **options: Any,
    ) -> Iterator[Generation]:
        """As `generate`, but each result comes as soon as it and all before it are finished."""
        decoding = self._resolve(options)
        return self._finish_in_order(self._encode_all(_listed(prompts), raw, special, gap, decoding), decoding)

    def stream(self, prompt: Prompt, *, raw: bool = False, special: bool = False, **options: Any) -> Iterator[str]:
        """The text of one result in pieces, as it is decided: no half characters, no parts of stop strings.

        The pieces make up the text that `generate` gives. Beam search decides at the end, all at once.

        Raises:
            UsageError: as for `generate`, or more than one result is asked for.
        """
        decoding = self._resolve({"num_return": 1, **options})
        if decoding.num_return > 1:
            raise UsageError(f"num_return is {decoding.num_return}", "stream", "a stream shows one result")
        return self._stream(self._encode_all([prompt], raw, special, None, decoding)[0], decoding)

    # -- text to tokens

    def _resolve(self, options: Mapping[str, Any]) -> DecodingConfig:
        """The settings to generate with, every text in them but those of `stop` as tokens."""
        decoding = resolve_decoding(self.loaded.config.generation, options)
        for name in ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"):
            neutral = type(decoding).model_fields[name].default
            if self.loaded.source_tokenizer is not None and getattr(decoding, name) != neutral:
                told = "source and target have vocabularies of their own, so that they share no tokens"
                raise UsageError(told, name, f"leave out {name}")
        return _with_token_ids(decoding, self.loaded.tokenizer)

    def _encode_all(
        self, prompts: Sequence[Prompt], raw: bool, special: bool, gap: str | None, decoding: DecodingConfig
    ) -> list[_EncodedPrompt]:
        raw = raw or gap is not None
        if special and not raw and self.loaded.config.chat is not None:
            told = "a chat template places the special tokens, and no prompt of a chat model may spell them"
            raise UsageError(told, "special", "add --raw (raw=True) to go on from the text itself, or leave it out")
        encoded = [self._encode(number, prompt, raw, special, gap, decoding) for number, prompt in enumerate(prompts)]
        wanted = decoding.max_new_tokens or 0
        cut = sum(prompt.limit < wanted for prompt in encoded)
        if cut:
            longest = self.loaded.model.config.max_length
            note = "max_new_tokens %d does not fit %d of %d prompts: the model goes up to %d tokens in all"
            logger.warning(note, wanted, cut, len(encoded), longest)
        return encoded

    def _encode(
        self, number: int, prompt: Prompt, raw: bool, special: bool, gap: str | None, decoding: DecodingConfig
    ) -> _EncodedPrompt:
        where = f"prompt {number + 1}"
        try:
            gaps = self._gaps(prompt, gap, special, where) if gap is not None else None
            ids = self._prompt_ids(prompt, raw, special, where) if gaps is None else gaps.token_ids
        except DataError as error:
            # It is a corpus that brings such a text elsewhere; here the user does.
            raise UsageError(error.what, f"{where}, {error.where}", error.fix) from error
        text = prompt if isinstance(prompt, str) else self._reader.decode(ids)
        chat = None if raw else self.loaded.config.chat
        prefix = () if chat is not None and chat.complete else self._framing.prefix
        if not self._max_source_length:
            ids = [*prefix, *ids] or [self._reader.special.bos_id]
            return _EncodedPrompt(number, text, tuple(ids), self._limit(len(ids), where, decoding), gaps)
        if not ids:
            raise UsageError("an empty prompt", where, "an encoder-decoder needs a source")
        ids = [*prefix, *ids, *self._framing.suffix]
        if self._bounded and len(ids) > self._max_source_length:
            raise UsageError(
                f"the prompt has {len(ids)} tokens, and max_source_length is {self._max_source_length}",
                where,
                "shorten it, or cut it into several prompts",
            )
        limit = self._limit(len(self._framing.decoder_start), where, decoding)
        return _EncodedPrompt(number, text, tuple(ids), limit, gaps)

    def _gaps(self, prompt: Prompt, gap: str, special: bool, where: str) -> Gaps:
        """A text with gaps."""
        if not isinstance(prompt, str):
            raise UsageError("the prompt is a conversation, which has no gaps", where, "give a text")
        return with_gaps(
            prompt,
            gap,
            self._reader.encode_with_special if special else self._reader.encode,
            self._reader.control_ids,
            has_encoder=bool(self._max_source_length),
            leading_space=self._reader.leading_space,
            where=where,
        )

    def _prompt_ids(self, prompt: Prompt, raw: bool, special: bool, where: str) -> list[int]:
        """The tokens of a prompt, without beginning and end."""
        chat = None if raw else self.loaded.config.chat
        if isinstance(prompt, str):
            if chat is None:
                return self._reader.encode_with_special(prompt) if special else self._reader.encode(prompt)
            turns = [("user", prompt)]
        elif chat is None:
            told = "raw takes a text" if raw else "the model is no chat model"
            raise UsageError(f"the prompt is a conversation, but {told}", where, "give a text")
        else:
            turns = _turns(prompt, where)
        return encode_chat(turns, chat, self._reader, reply=True)[0]

    def _limit(self, length: int, where: str, decoding: DecodingConfig) -> int:
        """How many tokens may follow the first tokens of the decoder, which are so many."""
        limits = [(self.loaded.model.config.max_length, "the model's max_length")] if self._bounded else []
        if decoding.max_length is not None:
            limits.append((decoding.max_length, "max_length"))
        wanted = decoding.max_new_tokens
        if wanted is None:
            wanted = decoding.max_length or DEFAULT_NEW_TOKENS
        if not limits:
            return wanted
        longest, key = min(limits, key=lambda limit: limit[0])
        room = longest - length
        if room < 1:
            raise UsageError(
                f"there is no room to generate: {key} is {longest}, and {length} tokens are taken before",
                where,
                f"shorten the prompt by {1 - room} tokens" if key != "max_length" else "raise max_length",
            )
        return min(room, wanted)

    def _batch(self, prompts: Sequence[_EncodedPrompt]) -> PromptBatch:
        """The prompts as tensors on the model's device, padded on the right."""
        device = next(self.loaded.model.parameters()).device
        ids, lengths = _padded([prompt.token_ids for prompt in prompts], self._reader.special.pad_id, device)
        if not self._max_source_length:
            both = [self._reads_both_ways(prompt) for prompt in prompts]
            return PromptBatch(ids, lengths, bidirectional=torch.tensor(both, device=device) if any(both) else None)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        start = torch.tensor(self._framing.decoder_start, device=device).expand(len(prompts), -1)
        return PromptBatch(start, torch.full_like(lengths, start.shape[1]), ids, mask)

    def _reads_both_ways(self, prompt: _EncodedPrompt) -> bool:
        """Whether the tokens of a decoder's prompt see one another in both directions, as the model has learnt."""
        if prompt.gaps is not None:
            return prompt.gaps.kind == "spans"
        return self.loaded.config.bidirectional_prompt

    # -- tokens to tokens

    def _steps(self, prompts: Sequence[_EncodedPrompt], decoding: DecodingConfig, first_sample: int = 0) -> Steps:
        contexts = [self._context(prompt) for prompt in prompts]
        return search_steps(
            self.loaded.model,
            self._batch(prompts),
            decoding,
            limits=[prompt.limit for prompt in prompts],
            eos_ids=self._framing.end,
            suppress=self._suppress if prompts[0].gaps is None else self._suppress_beside_gaps,
            prompt_indices=[prompt.number for prompt in prompts],
            first_sample=first_sample,
            stop=_StopStrings(self.loaded.tokenizer, decoding.stop, contexts) if decoding.stop else None,
        )

    def _search(self, prompts: Sequence[_EncodedPrompt], decoding: DecodingConfig) -> list[list[Hypothesis]]:
        """The hypotheses of each prompt; no more than batch_size samples at a time."""
        with _ready(self.loaded.model):
            if not isinstance(decoding, SampleConfig):
                return run_steps(self._steps(prompts, decoding))
            found: list[list[Hypothesis]] = [[] for _ in prompts]
            for first in range(0, decoding.num_return, self.batch_size):
                count = min(self.batch_size, decoding.num_return - first)
                part = decoding.model_copy(update={"num_return": count})
                more = run_steps(self._steps(prompts, part, first))
                found = [before + new for before, new in zip(found, more, strict=True)]
            return found

    def _finish_in_order(self, prompts: Sequence[_EncodedPrompt], decoding: DecodingConfig) -> Iterator[Generation]:
        """Batches of prompts of similar length, the longest first; results in the order of the prompts."""
        copies = decoding.num_return if isinstance(decoding, SampleConfig) else 1
        size = max(1, self.batch_size // copies)
        for start in range(0, len(prompts), size * BATCHES_PER_WINDOW):
            window = prompts[start : start + size * BATCHES_PER_WINDOW]
            order = sorted(window, key=lambda prompt: -len(prompt.token_ids)) if size > 1 else window
            finished: dict[int, list[Generation]] = {}
            following = start
            for first in range(0, len(order), size):
                batch = order[first : first + size]
                for prompt, hypotheses in zip(batch, self._search(batch, decoding), strict=True):
                    finished[prompt.number] = [
                        self._generation(prompt, index, hypothesis, decoding)
                        for index, hypothesis in enumerate(hypotheses)
                    ]
                while following in finished:
                    yield from finished.pop(following)
                    following += 1

    def _stream(self, prompt: _EncodedPrompt, decoding: DecodingConfig) -> Iterator[str]:
        decoder = IncrementalDecoder(self.loaded.tokenizer)
        for token_id in self._context(prompt):
            decoder.push(token_id)
        waiting, shown = "", 0
        with _ready(self.loaded.model):
            steps = self._steps([prompt], decoding)
            while True:
                try:
                    decided = next(steps)
                except StopIteration as end:
                    ((hypothesis, *_),) = end.value
                    break
                waiting += "".join(decoder.push(token_id) for _, token_id in decided)
                safe = _safe_length(waiting, decoding.stop)
                if safe:
                    yield waiting[:safe]
                    waiting, shown = waiting[safe:], shown + safe
        rest = self._generation(prompt, 0, hypothesis, decoding).text[shown:]
        if rest:
            yield rest

    # -- tokens to text

    def _context(self, prompt: _EncodedPrompt) -> tuple[int, ...]:
        """The tokens that the decoder reads before the generated ones."""
        return () if self._max_source_length else prompt.token_ids

    def _generation(
        self, prompt: _EncodedPrompt, index: int, hypothesis: Hypothesis, decoding: DecodingConfig
    ) -> Generation:
        text = _new_text(self.loaded.tokenizer, self._context(prompt), hypothesis.token_ids)
        ends = [text.index(stop) for stop in decoding.stop if stop in text]
        text = text[: min(ends)] if ends else text
        fills: tuple[str, ...] = ()
        if prompt.gaps is not None:
            text, fills = self._filled(prompt.gaps, hypothesis.token_ids, text)
        return Generation(
            prompt_index=prompt.number,
            index=index,
            prompt=prompt.text,
            text=text,
            token_ids=hypothesis.token_ids,
            prompt_token_ids=prompt.token_ids,
            logprob=hypothesis.logprob,
            score=hypothesis.score,
            finish_reason=hypothesis.finish_reason,
            fills=fills,
        )

    def _filled(self, gaps: Gaps, token_ids: Sequence[int], written: str) -> tuple[str, tuple[str, ...]]:
        """The whole text of a prompt with gaps, and what stands in each of them. written: the text of the tokens."""
        decode = self.loaded.tokenizer.decode
        match gaps.kind:
            case "middle":
                prefix, suffix = map(decode, gaps.parts)
                return prefix + written + suffix, (written,)
            case "spans":
                return decode(gaps.filled(token_ids)), tuple(map(decode, gaps.fills(token_ids)))
            case "whole":
                return written, ()
            case _:
                assert_never(gaps.kind)


def _with_token_ids(decoding: DecodingConfig, tokenizer: Tokenizer) -> DecodingConfig:
    """The same settings without texts to forbid or to bias: their tokens are there instead."""
    bad = [ids for text in decoding.bad_words for ids in _spellings(text, tokenizer)]
    biased = [
        SequenceBias(token_ids=ids, bias=item.bias)
        for item in decoding.sequence_bias
        for ids in ([item.token_ids] if item.text is None else _spellings(item.text, tokenizer))
    ]
    ids = {"bad_words": (), "bad_words_ids": (*decoding.bad_words_ids, *bad), "sequence_bias": tuple(biased)}
    return decoding.model_copy(update=ids)


def _spellings(text: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of a text at the beginning, and after a space."""
    texts = [text] if tokenizer.leading_space or text[0].isspace() else [text, f" {text}"]
    return [tuple(ids) for ids in tokenizer.encode_batch(texts)]


class _StopStrings:
    """Finds stop strings in the text of new tokens. contexts: the tokens before them, for each row."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], contexts: Sequence[Sequence[int]]) -> None:
        self.tokenizer, self.stops, self.contexts = tokenizer, stops, contexts
        # Every token that can be generated has a byte at least, so that no stop string spans more tokens.
        self.reach = max(len(stop.encode()) for stop in stops)

    def __call__(self, row: int, token_ids: Sequence[int]) -> bool:
        """Whether a stop string ends in the last token, none having ended before."""
        start = max(0, len(token_ids) - self.reach)
        before = token_ids[start - 1 : start] if start else self.contexts[row][-1:]
        text = _new_text(self.tokenizer, before, token_ids[start:])
        return any(stop in text for stop in self.stops)


def _new_text(tokenizer: Tokenizer, before: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text that tokens add to the text of those before them."""
    return tokenizer.decode([*before, *token_ids])[len(tokenizer.decode(before)) :]


def _safe_length(text: str, stops: Sequence[str]) -> int:
    """How much of the text neither is nor may become a part of a stop string."""
    ends = [text.index(stop) for stop in stops if stop in text]
    if ends:
        return min(ends)
    longest = max(map(len, stops), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return start
    return len(text)


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, also if a single one is given."""
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Any] = list(prompts)
    return [listed] if listed and isinstance(listed[0], Mapping) else listed


def _turns(conversation: Sequence[Message], where: str) -> list[tuple[str, str]]:
    """The turns of a conversation as (role, content)."""
    turns: list[tuple[str, str]] = []
    for message in conversation:
        match message:
            case {"role": str(role), "content": str(content)}:
                turns.append((role, content))
            case _:
                raise UsageError(
                    "a message without role and content",
                    f"{where}, message {len(turns) + 1}",
                    "give both, as texts",
                )
    return turns


def _padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows [B,T] padded on the right, and their lengths [B], both int64."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)


@contextmanager
def _ready(model: Transformer) -> Iterator[None]:
    """The model without dropout for a while; a lack of memory is told in our words."""
    training = model.training
    model.eval()
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # What the CPU's allocator raises has no class of its own.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "enough memory" not in str(error):
            raise
        fix = "lower batch_size, num_return, beam_size or max_new_tokens"
        raise ResourceError("out of memory", "generation", fix) from error
    finally:
        model.train(training)
