"""From text to tokens: prompts as a model was taught to read them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from txtgen.chat import encode_chat
from txtgen.checkpoint import LoadedModel
from txtgen.config.decoding import DecodingConfig
from txtgen.config.model import EncoderDecoderConfig
from txtgen.decode import PromptBatch
from txtgen.errors import DataError, UsageError
from txtgen.generator.types import EncodedPrompt, Message, Prompt
from txtgen.infilling import Gaps, with_gaps
from txtgen.model import is_bounded
from txtgen.tokenizer import own_framing

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 256
"""How much is generated if nobody says."""


class PromptReader:
    """Reads prompts for one model. tokenizer: of the prompts. framing: the tokens around them."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._told: set[int] = set()
        """Numbers of new tokens that were told not to fit: what a run samples again and again is told of once."""
        self.tokenizer = loaded.source_tokenizer or loaded.tokenizer
        model = loaded.model.config
        # Of an encoder-decoder; 0 for a decoder, which has no source.
        self._max_source_length = model.max_source_length if isinstance(model, EncoderDecoderConfig) else 0
        self._bounded = is_bounded(model.position)
        source = self.tokenizer.special if self._max_source_length else None
        self.framing = loaded.config.framing or own_framing(loaded.tokenizer.special, source)

    def encode_all(
        self, prompts: Mapping[int, Prompt], raw: bool, special: bool, gap: str | None, decoding: DecodingConfig
    ) -> list[EncodedPrompt]:
        """Prompts, given by their numbers, in tokens; the settings say how many may follow each.

        Raises:
            UsageError: a prompt that cannot be used.
        """
        raw = raw or gap is not None
        if special and not raw and self.loaded.config.chat is not None:
            told = "a chat template places the special tokens, and no prompt of a chat model may spell them"
            raise UsageError(told, "special", "add --raw (raw=True) to go on from the text itself, or leave it out")
        encoded = [self._encode(number, prompt, raw, special, gap, decoding) for number, prompt in prompts.items()]
        wanted = decoding.max_new_tokens or 0
        cut = sum(prompt.limit < wanted for prompt in encoded)
        if cut and wanted not in self._told:
            self._told.add(wanted)
            longest = self.loaded.model.config.max_length
            note = "max_new_tokens %d does not fit %d of %d prompts: the model goes up to %d tokens in all"
            logger.warning(note, wanted, cut, len(encoded), longest)
        unknown = self.tokenizer.special.unk_id
        lossy = sum(unknown in prompt.token_ids for prompt in encoded) if self.tokenizer.token_bytes(unknown) else 0
        if lossy:
            note = "%d of %d prompts have characters that the tokenizer does not know, and that the model cannot read"
            logger.warning(note, lossy, len(encoded))
        return encoded

    def _encode(
        self, number: int, prompt: Prompt, raw: bool, special: bool, gap: str | None, decoding: DecodingConfig
    ) -> EncodedPrompt:
        where = f"prompt {number + 1}"
        with _of_the_user(where):
            gaps = self._gaps(prompt, gap, special, where) if gap is not None else None
            ids = self._prompt_ids(prompt, raw, special, where) if gaps is None else gaps.token_ids
        if gaps is not None and gaps.kind == "spans" and decoding.stop:
            told = "a stop string ends a text, and this model writes the text of gaps, one after the other"
            raise UsageError(told, "stop", "leave it out")
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(ids)
        if self._max_source_length and not ids:
            raise UsageError("an empty prompt", where, "an encoder-decoder needs a source")
        ids = self._framed(ids, raw)
        if not self._max_source_length:
            return EncodedPrompt(number, text, tuple(ids), self._limit(len(ids), where, decoding), gaps)
        if self._bounded and len(ids) > self._max_source_length:
            raise UsageError(
                f"the prompt has {len(ids)} tokens, and max_source_length is {self._max_source_length}",
                where,
                "shorten it, or cut it into several prompts",
            )
        limit = self._limit(len(self.framing.decoder_start), where, decoding)
        return EncodedPrompt(number, text, tuple(ids), limit, gaps)

    def room(self, prompt: Prompt, max_length: int | None = None) -> int | None:
        """How many tokens may follow a prompt; below 1 if the model cannot read it, None if it can read any number.

        Args:
            prompt: a text or a conversation.
            max_length: the setting of that name, if there is one.

        Raises:
            UsageError: a prompt that cannot be used.
        """
        with _of_the_user(where := "the conversation"):
            count = len(self._framed(self._prompt_ids(prompt, False, False, where), False))
        before = len(self.framing.decoder_start) if self._max_source_length else count
        limits = [] if max_length is None else [max_length - before]
        if self._bounded:
            limits.append(self.loaded.model.config.max_length - before)
            if self._max_source_length:
                limits.append(1 + self._max_source_length - count)
        return min(limits, default=None)

    def _framed(self, ids: Sequence[int], raw: bool) -> list[int]:
        """What a model is given for the tokens of a prompt."""
        chat = None if raw else self.loaded.config.chat
        prefix = () if chat is not None and chat.complete else self.framing.prefix
        suffix = self.framing.suffix if self._max_source_length else ()
        return [*prefix, *ids, *suffix] or [self.tokenizer.special.bos_id]

    def _gaps(self, prompt: Prompt, gap: str, special: bool, where: str) -> Gaps:
        """A text with gaps."""
        if not isinstance(prompt, str):
            raise UsageError("the prompt is a conversation, which has no gaps", where, "give a text")
        return with_gaps(
            prompt,
            gap,
            self.tokenizer.encode_with_special if special else self.tokenizer.encode,
            self.tokenizer.control_ids,
            has_encoder=bool(self._max_source_length),
            leading_space=self.tokenizer.leading_space,
            where=where,
        )

    def _prompt_ids(self, prompt: Prompt, raw: bool, special: bool, where: str) -> list[int]:
        """The tokens of a prompt, without beginning and end."""
        chat = None if raw else self.loaded.config.chat
        if isinstance(prompt, str):
            if chat is None:
                return self.tokenizer.encode_with_special(prompt) if special else self.tokenizer.encode(prompt)
            turns = [("user", prompt)]
        elif chat is None:
            told = "raw takes a text" if raw else "the model is no chat model"
            raise UsageError(f"the prompt is a conversation, but {told}", where, "give a text")
        else:
            turns = _turns(prompt, where)
        return encode_chat(turns, chat, self.tokenizer, reply=True)[0]

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

    def excess(self, prompt: EncodedPrompt) -> tuple[int, int] | None:
        """How many tokens a prompt and what may follow it are, and how many the model reads; None if it reads all."""
        if not self._bounded:
            return None
        before = len(self.framing.decoder_start if self._max_source_length else prompt.token_ids)
        sizes = [(before + prompt.limit, self.loaded.model.config.max_length)]
        if self._max_source_length:
            sizes.append((len(prompt.token_ids), self._max_source_length))
        return next((size for size in sizes if size[0] > size[1]), None)

    def batch(self, prompts: Sequence[EncodedPrompt]) -> PromptBatch:
        """The prompts as tensors on the model's device, padded on the right."""
        device = next(self.loaded.model.parameters()).device
        ids, lengths = _padded([prompt.token_ids for prompt in prompts], self.tokenizer.special.pad_id, device)
        if not self._max_source_length:
            both = [self._reads_both_ways(prompt) for prompt in prompts]
            return PromptBatch(ids, lengths, bidirectional=torch.tensor(both, device=device) if any(both) else None)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        start = torch.tensor(self.framing.decoder_start, device=device).expand(len(prompts), -1)
        return PromptBatch(start, torch.full_like(lengths, start.shape[1]), ids, mask)

    def _reads_both_ways(self, prompt: EncodedPrompt) -> bool:
        """Whether the tokens of a decoder's prompt see one another in both directions, as the model has learnt."""
        if prompt.gaps is not None:
            return prompt.gaps.kind == "spans"
        return self.loaded.config.bidirectional_prompt

    @property
    def reads_source(self) -> bool:
        """Whether a prompt is what an encoder reads."""
        return bool(self._max_source_length)

    def context(self, prompt: EncodedPrompt) -> tuple[int, ...]:
        """The tokens that the decoder reads before the generated ones."""
        return () if self.reads_source else prompt.token_ids


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
def _of_the_user(where: str) -> Iterator[None]:
    """It is a corpus that brings a text that cannot be read elsewhere; here the user does."""
    try:
        yield
    except DataError as error:
        raise UsageError(error.what, f"{where}, {error.where}", error.fix) from error
