"""The generator: search over the tokens of prompts, a batch at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

from txtgen.checkpoint import LoadedModel
from txtgen.config.decoding import DecodingConfig, SampleConfig
from txtgen.config.ensemble import EQUAL_SHARES, Mixture
from txtgen.config.model import Compile, Native
from txtgen.decode import (
    Ensemble,
    HiddenModel,
    Hypothesis,
    Remembering,
    SearchOptions,
    StepModel,
    Steps,
    narrow_search_steps,
    require_draft,
    run_steps,
    search_steps,
    token_logprobs,
)
from txtgen.errors import OutOfMemoryError, UsageError
from txtgen.generator.batches import Batch, Plan, in_order, make_plan
from txtgen.generator.consensus import most_alike
from txtgen.generator.constraints import Constraints, Row
from txtgen.generator.partners import Partner
from txtgen.generator.prompts import PromptReader
from txtgen.generator.scoring import UNLIMITED, Target, TargetReader, score_of
from txtgen.generator.settings import resolve_settings
from txtgen.generator.types import EncodedPrompt, Generation, Prompt, Score, StreamPiece
from txtgen.generator.writing import StopStrings, begins, filled_text
from txtgen.infilling import gap_marks
from txtgen.memory import is_out_of_memory
from txtgen.model import CompiledTransformer, NativeTransformer, Transformer, is_bounded, step_model
from txtgen.tokenizer import IncrementalDecoder, never_written

if TYPE_CHECKING:
    from txtgen.lexicon import Shortlist  # with safetensors, which few need


class Generator:
    """A model that goes on from text.

    Args:
        loaded: the model and what belongs to it.
        batch_size: prompts (or samples) that are generated at a time.
        batch_tokens: their tokens at most, prompt and new ones, padding counted; None: any number.
        independent: one at a time, so that no other prompt can change a result even by a rounding error.
        native: whether machine code computes in place of PyTorch. It is made of the weights as they are now.
        compile: whether decoding steps are compiled by torch.compile, by which machine code is left out.
        draft: a smaller model with the same tokens, which proposes them where `speculation` asks for it.
        ensemble: models with the same tokens that decide together with the first one.
        mixture: how they do.
        shortlist: the target tokens that each source may need, of an encoder-decoder: no others are scored.
        remembers: of a single prompt, read only what the one before and its result did not have, as in a conversation.

    Raises:
        UsageError: the batch size is below 1, or there is a short-list and no source, or several models that decide;
            compiled steps and machine code are both asked for.
        CheckpointError: another model does not fit, or the short-list.
        ResourceError: machine code is required, and there is none.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        batch_size: int = 16,
        batch_tokens: int | None = None,
        independent: bool = False,
        native: Native = "off",
        compile: Compile = False,
        draft: LoadedModel | None = None,
        ensemble: Sequence[LoadedModel] = (),
        mixture: Mixture = EQUAL_SHARES,
        shortlist: "Shortlist | None" = None,
        remembers: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", "batch_size", "give at least 1")
        self.loaded = loaded
        self._first: HiddenModel[Any] = step_model(loaded.model, native, compile)
        model, self.is_native = self._first, isinstance(self._first, NativeTransformer)
        """Whether machine code computes."""
        most = loaded.model.config.max_length if is_bounded(loaded.model.config.position) else None
        self._model: StepModel[Any] = Remembering(model, most) if remembers else model
        self.batch_size, self.batch_tokens = 1 if independent else batch_size, batch_tokens
        self._reader = PromptReader(loaded)
        self._draft = None if draft is None else Partner(draft, self._reader, "draft", native, compile)
        self._members = [Partner(member, self._reader, "ensemble", native, compile) for member in ensemble]
        partners = (partner.model for partner in (self._draft, *self._members) if partner is not None)
        self._compiled = [each for each in (self._first, *partners) if isinstance(each, CompiledTransformer)]
        if self._members:
            members = [self._model, *(member.model for member in self._members)]
            self._model = Ensemble(members, mixture.mean, mixture.weights)
        self.shortlist = shortlist
        if shortlist is not None:
            if not self._reader.reads_source or self._members:
                told = "an ensemble decides" if self._members else "the model reads no source"
                raise UsageError(f"{told}, and a short-list is of one encoder-decoder", "shortlist", "leave it out")
            shortlist.check(self._reader.tokenizer, loaded.tokenizer)
        self._suppress = never_written(loaded.tokenizer, loaded.config.framing, loaded.model.config.vocab_size or 0)
        size = loaded.model.config.vocab_size or 0
        self._constraints = Constraints(loaded.tokenizer, size, self._reader.framing.end)
        self._suppress_beside_gaps = sorted({*self._suppress} - {*gap_marks(loaded.tokenizer.control_ids)})

    @property
    def other_fingerprints(self) -> list[str]:
        """Those of the checkpoints of all models but the first one."""
        return [partner.fingerprint for partner in (self._draft, *self._members) if partner is not None]

    @property
    def compiles(self) -> bool:
        """Whether decoding steps are compiled from now on."""
        return any(model.compiles for model in self._compiled)

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
            OutOfMemoryError: the memory does not suffice.
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
        plan = self.plan(dict(enumerate(_listed(prompts))), raw=raw, special=special, gap=gap, **options)
        results = in_order(self.complete(batch, plan.decoding) for batch in plan.batches)
        return chain.from_iterable(results)

    def plan(
        self,
        prompts: Mapping[int, Prompt],
        *,
        raw: bool = False,
        special: bool = False,
        gap: str | None = None,
        **options: Any,
    ) -> Plan:
        """Prompts by their numbers, cut into batches for `complete`; arguments and errors as for `generate`."""
        decoding = resolve_settings(self.loaded, options)
        encoded = self._encode(prompts, raw, special, gap, decoding)
        plan = make_plan(encoded, decoding, self.batch_size, self.batch_tokens)
        if not decoding.is_set("speculation"):  # which reads several tokens at once
            for model in self._compiled:
                model.expect(plan.steps)
        return plan

    def complete(self, batch: Batch, decoding: DecodingConfig) -> dict[int, list[Generation]]:
        """The results of each prompt of a batch, best first, by the prompts' numbers."""
        found: dict[int, list[Generation]] = {}
        for prompt, hypotheses in zip(batch, self._search(batch, decoding), strict=True):
            results = [self._generation(prompt, index, each, decoding) for index, each in enumerate(hypotheses)]
            if isinstance(decoding, SampleConfig) and decoding.mbr is not None:
                results = most_alike(results, decoding.num_return)
            found[prompt.number] = results
        return found

    def stream(self, prompt: Prompt, *, raw: bool = False, special: bool = False, **options: Any) -> Iterator[str]:
        """The text of one result in pieces, as it is decided: no half characters, no parts of stop strings.

        The pieces make up the text that `generate` gives. Beam search decides what all of its beams agree on;
        minimum Bayes risk decides at the end, all at once.

        Raises:
            UsageError: as for `generate`, or more than one result is asked for.
        """
        pieces = self.stream_pieces(prompt, raw=raw, special=special, **options)
        return (piece.text for piece in pieces if piece.text)

    def stream_pieces(
        self, prompt: Prompt, *, number: int = 0, raw: bool = False, special: bool = False, **options: Any
    ) -> Iterator[StreamPiece]:
        """As `stream`, but each step of the search is told of, also where it adds no text.

        Args:
            prompt, raw, special, options: as for `generate`.
            number: of the prompt, by which samples of one seed differ.
        """
        decoding = resolve_settings(self.loaded, {"num_return": 1, **options})
        if decoding.num_return > 1:
            raise UsageError(f"num_return is {decoding.num_return}", "stream", "a stream shows one result")
        return self._stream(self._encode({number: prompt}, raw, special, None, decoding)[0], decoding)

    def room(self, prompt: Prompt, max_length: int | None = None) -> int | None:
        """How many tokens may follow a prompt; below 1 if the model cannot read it, None if it can read any number.

        Args:
            prompt: a text or a conversation.
            max_length: the setting of that name, if there is one.

        Raises:
            UsageError: as for `generate`.
        """
        return self._reader.room(prompt, max_length)

    def score(
        self,
        targets: str | Sequence[str],
        prompts: Prompt | Sequence[Prompt] | None = None,
        *,
        raw: bool = False,
        special: bool = False,
        end: bool = True,
    ) -> list[Score]:
        """How likely the model finds texts: by themselves, as what follows a prompt, or as the target of a source.

        Args:
            targets: the texts.
            prompts: one for each text, or one for all; as for `generate`.
            raw: a text follows the prompt itself, even with a chat model.
            special: as for `generate`.
            end: whether the token that ends a text is scored too.

        Raises:
            UsageError: a text or a prompt that cannot be used.
            DivergedError, ResourceError: as for `generate`.
        """
        return list(self.iterate_scores(targets, prompts, raw=raw, special=special, end=end))

    def iterate_scores(
        self,
        targets: str | Sequence[str],
        prompts: Prompt | Sequence[Prompt] | None = None,
        *,
        raw: bool = False,
        special: bool = False,
        end: bool = True,
    ) -> Iterator[Score]:
        """As `score`, but each comes as soon as it and all before it are known."""
        texts = [targets] if isinstance(targets, str) else list(targets)
        given = None if prompts is None else _listed(prompts)
        if given is not None and len(given) == 1:
            given *= len(texts)
        reader = TargetReader(
            self._reader, self.loaded.tokenizer, lambda text: self._constraints.texts.spell(text, begins=False)
        )
        read = reader.read(texts, given, raw=raw, special=special, end=end)
        encoded = [target.prompt for target in read]
        for member in self._members:
            member.check(encoded)
        plan = make_plan(encoded, UNLIMITED, self.batch_size, self.batch_tokens)
        return in_order(self._score([read[prompt.number] for prompt in batch]) for batch in plan.batches)

    def _score(self, targets: Sequence[Target]) -> dict[int, Score]:
        """The scores of texts, by their numbers."""
        prompts = self._reader.batch([target.prompt for target in targets])
        with _ready(self.loaded.model):
            found = token_logprobs(self._model, prompts, [target.token_ids for target in targets])
        tokenizer = self.loaded.tokenizer
        scored = zip(targets, found, strict=True)
        return {target.prompt.number: score_of(target, logprobs, tokenizer) for target, logprobs in scored}

    def _encode(
        self, prompts: Mapping[int, Prompt], raw: bool, special: bool, gap: str | None, decoding: DecodingConfig
    ) -> list[EncodedPrompt]:
        """The prompts in tokens, once it is clear that the settings can be followed."""
        if gap is not None and decoding.demands:
            told = f"{' and '.join(decoding.demands)} say what a text must be, and not what fills its gaps"
            raise UsageError(told, "gap", "give either of the two")
        require_draft(decoding, self._draft)
        if self.shortlist is not None:
            _refuse_beside_shortlist(decoding, gap)
        encoded = self._reader.encode_all(prompts, raw, special, gap, decoding)
        if self._draft is not None and decoding.is_set("speculation"):
            self._draft.check(encoded)
        for member in self._members:
            member.check(encoded)
        self._constraints.make(decoding, self._rows(encoded))
        return encoded

    # -- tokens to tokens

    def _steps(self, prompts: Sequence[EncodedPrompt], decoding: DecodingConfig, first_sample: int = 0) -> Steps:
        contexts = [self._reader.context(prompt) for prompt in prompts]
        rules = self._constraints.make(decoding, self._rows(prompts))
        options: SearchOptions = {
            "limits": [prompt.limit for prompt in prompts],
            "eos_ids": self._reader.framing.end,
            "suppress": self._suppress if prompts[0].gaps is None else self._suppress_beside_gaps,
            "constraints": rules.constraints,
            "inclusion": rules.inclusion,
            "prompt_indices": [prompt.number for prompt in prompts],
            "first_sample": first_sample,
            "stop": StopStrings(self.loaded.tokenizer, decoding.stop, contexts) if decoding.stop else None,
            "draft": None if self._draft is None else self._draft.model,
        }
        batch = self._reader.batch(prompts)
        if self.shortlist is None:
            return search_steps(self._model, batch, decoding, **options)
        lists = [rules.spelling.union(self.shortlist.tokens(prompt.token_ids)) for prompt in prompts]
        return narrow_search_steps(self._first, batch, decoding, lists, self._constraints.size, **options)

    def _rows(self, prompts: Sequence[EncodedPrompt]) -> list[Row]:
        """What constraints must know of the prompts."""
        tokenizer, reader = self.loaded.tokenizer, self._reader
        return [Row(begins(tokenizer, reader.context(prompt)), prompt.limit) for prompt in prompts]

    def _search(self, prompts: Sequence[EncodedPrompt], decoding: DecodingConfig) -> list[list[Hypothesis]]:
        """The hypotheses of each prompt; no more than batch_size samples at a time."""
        with _ready(self.loaded.model):
            if not isinstance(decoding, SampleConfig):
                return run_steps(self._steps(prompts, decoding))
            found: list[list[Hypothesis]] = [[] for _ in prompts]
            for first in range(0, decoding.num_samples, self.batch_size):
                count = min(self.batch_size, decoding.num_samples - first)
                part = decoding.model_copy(update={"num_return": count})
                more = run_steps(self._steps(prompts, part, first))
                found = [before + new for before, new in zip(found, more, strict=True)]
            return found

    def _stream(self, prompt: EncodedPrompt, decoding: DecodingConfig) -> Iterator[StreamPiece]:
        if isinstance(decoding, SampleConfig) and decoding.mbr is not None:
            (best, *_) = self.complete((prompt,), decoding)[prompt.number]
            yield StreamPiece(best.text, len(best.token_ids), best.finish_reason)
            return
        decoder, known = self._decoder(prompt, decoding), 0
        with _ready(self.loaded.model):
            steps = self._steps([prompt], decoding)
            while True:
                try:
                    decided = next(steps)
                except StopIteration as end:
                    ((hypothesis, *_),) = end.value
                    break
                known += len(decided)
                yield StreamPiece("".join(decoder.push(token_id) for _, token_id in decided), known)
        rest = "".join(map(decoder.push, hypothesis.token_ids[known:])) + decoder.flush()
        yield StreamPiece(rest, len(hypothesis.token_ids), hypothesis.finish_reason)

    def _decoder(self, prompt: EncodedPrompt, decoding: DecodingConfig) -> IncrementalDecoder:
        """What turns the tokens that follow a prompt into text, up to a stop string."""
        tokenizer = self.loaded.tokenizer
        return IncrementalDecoder(tokenizer, decoding.stop, begins=begins(tokenizer, self._reader.context(prompt)))

    def _generation(
        self, prompt: EncodedPrompt, index: int, hypothesis: Hypothesis, decoding: DecodingConfig
    ) -> Generation:
        decoder = self._decoder(prompt, decoding)
        text = "".join(map(decoder.push, hypothesis.token_ids)) + decoder.flush()
        fills: tuple[str, ...] = ()
        if prompt.gaps is not None:
            text, fills = filled_text(prompt.gaps, hypothesis.token_ids, text, self.loaded.tokenizer)
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
            proposed=hypothesis.proposed,
            accepted=hypothesis.accepted,
            fills=fills,
        )


def _refuse_beside_shortlist(decoding: DecodingConfig, gap: str | None) -> None:
    """Refuse what any token may be needed for, or what compares more than scores.

    Raises:
        UsageError: it is asked for.
    """
    asked = [name for name in ("regex", "json_schema") if decoding.is_set(name)]
    asked += ["gap"] * (gap is not None) + ["contrastive search"] * (decoding.strategy == "contrastive")
    if asked:
        told = f"{asked[0]} may need tokens that are not in a short-list"
        raise UsageError(told, "shortlist", f"leave out the short-list, or {asked[0]}")


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, also if a single one is given."""
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Any] = list(prompts)
    return [listed] if listed and isinstance(listed[0], Mapping) else listed


@contextmanager
def _ready(model: Transformer) -> Iterator[None]:
    """The model without dropout for a while; a lack of memory is told in our words."""
    training = model.training
    model.eval()
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fix = "lower batch_size, num_return, beam_size or max_new_tokens"
        raise OutOfMemoryError("out of memory", "generation", fix) from error
    finally:
        model.train(training)
