"""Greedy and beam search against `generate` of transformers, for any model that both sides can run.

A case is drawn from its number: prompts, end tokens, lengths and any mixture of settings. `compare` runs it on both
sides. Where the two differ, the difference must be a tie: a change of the logits by TIE at most gives their result.
"""

import random
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from decode_fakes import TableState, batch

from txtgen.config.decoding import BeamConfig, GreedyConfig, SampleConfig
from txtgen.config.decoding_values import LengthDecay, SequenceBias
from txtgen.decode import PromptBatch, search
from txtgen.decode.chain import Place, make_filters
from txtgen.decode.distribution import shape_distribution
from txtgen.decode.filters import align_right
from txtgen.decode.stopping import Stopping

TIE = 2e-5
ATTEMPTS = 60
PLACEHOLDER = -1e6
"""Slots that were never finished score -1e9, divided by some power of the length."""


@dataclass
class Case:
    """What to generate from (prompts, or the sources of an encoder-decoder), and how, in both languages."""

    number: int
    prompts: list[list[int]]
    start: int | None
    pad: int
    limit: int
    eos_ids: tuple[int, ...]
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    beams: int = 1

    @property
    def config(self):
        return BeamConfig(beam_size=self.beams, **self.ours) if self.beams > 1 else GreedyConfig(**self.ours)

    @property
    def length(self) -> int:
        """Of the prompts, with their padding; one, if there is a source."""
        return 1 if self.start is not None else max(map(len, self.prompts))

    def both(self, **settings: Any) -> None:
        """Settings that are called and written alike."""
        self.ours |= settings
        self.theirs |= {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}


def draw_case(number: int, model) -> Case:
    """The case of this number for a model of transformers."""
    choice = random.Random(number)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    seq2seq = model.config.is_encoder_decoder
    start = model.config.decoder_start_token_id if seq2seq else None
    pad = model.config.pad_token_id if seq2seq else vocabulary - 1
    words = [token for token in range(vocabulary) if token not in (start, pad)]
    count = choice.choice([1, 1, 3])
    prompts = [choice.choices(words, k=choice.randint(1, 6)) for _ in range(count)]
    eos_ids = tuple(choice.sample(words, choice.choice([0, 1, 1, 2, 3])))
    case = Case(number, prompts, start, pad, choice.randint(1, 10), eos_ids)
    case.theirs["decoder_start_token_id"] = start
    if not seq2seq and choice.random() < 0.3:
        case.prompts = [prompt[:1] for prompt in prompts]
    uneven = len(set(map(len, case.prompts))) > 1
    _draw_strategy(case, choice)
    _draw_words(case, choice, words, same=vocabulary == model.config.vocab_size)
    _draw_ends(case, choice, words, count_prompt=seq2seq or not uneven)
    if uneven:
        # Over there, padding is a token like others; here it must not matter.
        case.both(suppress_tokens=(*case.ours.get("suppress_tokens", ()), pad))
    return case


def _draw_strategy(case: Case, choice: random.Random) -> None:
    case.beams = choice.choice([1, 2, 3, 4, 5, 6])
    case.theirs["num_beams"] = case.beams
    if case.beams > 1:
        num_return = choice.randint(1, case.beams)
        early = choice.choice([True, False, "never"])
        case.both(length_penalty=choice.choice([-1.0, -0.5, 0.0, 0.6, 1.0, 2.0]))
        case.ours |= {"num_return": num_return, "early_stopping": early}
        case.theirs |= {"num_return_sequences": num_return, "early_stopping": early}


def _draw_words(case: Case, choice: random.Random, words: list[int], same: bool) -> None:
    """Settings that look at tokens. same: whether source and target share a vocabulary."""
    some = lambda: choice.random() < 0.25  # noqa: E731
    runs = lambda: [tuple(choice.choices(words, k=choice.choice([1, 1, 2, 3]))) for _ in range(choice.randint(1, 8))]  # noqa: E731
    follow = [(choice.choice(prompt), choice.choice(words)) for prompt in case.prompts]
    # Often enough ends that slots fill up early, and that beams must look far for something to go on with.
    ends = {(eos,): choice.uniform(1.0, 7.0) for eos in case.eos_ids if case.beams > 1 and choice.random() < 0.6}
    if ends or some():
        bias = {tokens: choice.uniform(-4.0, 4.0) for tokens in runs() + follow} | ends
        case.ours["sequence_bias"] = tuple(SequenceBias(token_ids=tokens, bias=b) for tokens, b in bias.items())
        case.theirs["sequence_bias"] = [[list(tokens), b] for tokens, b in bias.items()]
    if same and some():
        case.both(encoder_repetition_penalty=choice.choice([0.7, 1.5]))
    if some():
        case.both(repetition_penalty=choice.choice([0.8, 1.3, 2.0]))
    if some():
        case.both(no_repeat_ngram_size=choice.choice([1, 2, 3]))
    if same and some():
        case.both(encoder_no_repeat_ngram_size=choice.choice([1, 2, 3]))
    if some():
        bad = tuple({*runs(), *follow, *((eos,) for eos in case.eos_ids)})
        case.ours["bad_words_ids"] = bad
        case.theirs["bad_words_ids"] = [list(tokens) for tokens in bad]


def _draw_ends(case: Case, choice: random.Random, words: list[int], count_prompt: bool) -> None:
    """Settings that look at lengths. count_prompt: whether rows have one length on both sides."""
    some = lambda: choice.random() < 0.25  # noqa: E731
    longest = {"max_length": case.length + case.limit} if some() else {"max_new_tokens": case.limit}
    case.theirs |= longest
    if some():
        case.both(min_new_tokens=choice.randint(1, case.limit))
    elif count_prompt and some():
        case.both(min_length=choice.randint(1, case.length + case.limit))
    forced = []
    if count_prompt and some():
        forced.append(choice.choice(words))
        case.both(forced_bos_token_id=forced[0])
    if some():
        last = choice.choice([case.eos_ids or (words[0],), (choice.choice(words),), tuple(choice.sample(words, 2))])
        if case.beams > 1:
            last = last[:1]  # several that are forced tie exactly, and nobody promises which one comes first
        case.both(forced_eos_token_id=last)
        forced += last
    if case.eos_ids and some():
        start, factor = choice.randint(0, 4), choice.choice([0.9, 1.1, 1.6])
        case.ours["exponential_decay_length_penalty"] = LengthDecay(start=start, factor=factor)
        case.theirs["exponential_decay_length_penalty"] = (start, factor)
    free = [word for word in words if word not in forced]
    if some():
        case.both(suppress_tokens=tuple(choice.sample(free, 8)))
    if some():
        case.both(begin_suppress_tokens=tuple(choice.sample(free, 12)))
    if some():
        case.both(renormalize_logits=True)


@torch.no_grad()
def generated_there(model, case: Case) -> list[list[tuple[float, tuple[int, ...]]]]:
    """(score, new tokens) of every result of every prompt; the score of greedy search is the log-probability."""
    from transformers import GenerationConfig

    rows, mask = _padded(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.generation_config = GenerationConfig()
        found = model.generate(
            torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            eos_token_id=list(case.eos_ids) or None,
            pad_token_id=case.pad,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **case.theirs,
        )
    copies = len(found.sequences) // len(case.prompts)
    results: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in case.prompts]
    for row, ids in enumerate(found.sequences.tolist()):
        new = ids[case.length :]
        ends = [place + 1 for place, token in enumerate(new) if token in case.eos_ids]
        new = tuple(new[: ends[0] if ends else case.limit])
        if case.beams > 1:
            score = float(found.sequences_scores[row])
        else:
            steps = zip(found.logits, new, strict=False)
            score = float(sum(logits[row].float().log_softmax(-1)[token] for logits, token in steps))
        if score > PLACEHOLDER:
            results[row // copies].append((score, new))
    return results


def generated_here(model, case: Case) -> list[list[tuple[float, tuple[int, ...]]]]:
    """As `generated_there`, by our own search."""
    prompts = _prompt_batch(case)
    found = search(model, prompts, case.config, limits=[case.limit] * len(prompts), eos_ids=case.eos_ids)
    return [[(hypothesis.score, hypothesis.token_ids) for hypothesis in results] for results in found]


def _padded(case: Case) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts or sources and their mask as transformers wants them: a decoder's are padded on the left."""
    width = max(map(len, case.prompts))
    rows = [(prompt, [case.pad] * (width - len(prompt))) for prompt in case.prompts]
    if case.start is not None:
        return [ids + fill for ids, fill in rows], [[1] * len(ids) + [0] * len(fill) for ids, fill in rows]
    return [fill + ids for ids, fill in rows], [[0] * len(fill) + [1] * len(ids) for ids, fill in rows]


def _prompt_batch(case: Case) -> PromptBatch:
    """The same as we want them: padded on the right."""
    prompts = batch(case.prompts)
    if case.start is None:
        return prompts
    start = torch.full((len(prompts), 1), case.start)
    mask = torch.arange(prompts.input_ids.shape[1]) < prompts.lengths[:, None]
    return PromptBatch(start, torch.ones_like(prompts.lengths), prompts.input_ids, mask)


class Shaken:
    """A step model whose logits are off by TIE at most."""

    def __init__(self, model, seed: int) -> None:
        self.model, self.random = model, torch.Generator().manual_seed(seed)

    def shaken(self, logits):
        return logits + (torch.rand(logits.shape, generator=self.random) * 2 - 1) * TIE

    def prefill(self, prompt, capacity):
        logits, state = self.model.prefill(prompt, capacity)
        return self.shaken(logits), state

    def extend(self, tokens, state):
        return self.shaken(self.model.extend(tokens, state))


def compare(hf_model, step_model, number: int) -> bool:
    """Whether both sides agree on the case of this number; False: a tie was broken differently.

    hf_model: of transformers, decoder-only or encoder-decoder. step_model: a StepModel of the same weights.
    """
    case = draw_case(number, hf_model)
    theirs, ours = generated_there(hf_model, case), generated_here(step_model, case)
    if _ids(ours) == _ids(theirs):
        for here, there in zip(ours, theirs, strict=True):
            for (score, _), (expected, _) in zip(here, there, strict=True):
                assert abs(score - expected) <= 1e-4 * max(1.0, abs(expected) / 10), (score, expected, case)
        return True
    for row, prompt in enumerate(case.prompts):
        if _ids(ours)[row] != _ids(theirs)[row]:
            # A tie concerns one prompt; the noise of the others would only hide it.
            attempts = (generated_here(Shaken(step_model, seed), case)[row] for seed in range(ATTEMPTS))
            same = any([ids for _, ids in attempt] == _ids(theirs)[row] for attempt in attempts)
            assert same, f"prompt {prompt}: {ours[row]} and not {theirs[row]}; {case}"
    return False


def compare_all(hf_model, step_model, numbers) -> None:
    """`compare` for many numbers, of which 3 in 1,000 may be ties; 1 at least."""
    ties = [number for number in numbers if not compare(hf_model, step_model, number)]
    assert len(ties) <= max(1, 0.003 * len(numbers)), ties


def distributions(hf_model, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities [R,V] that sampling draws from, theirs and ours, somewhere inside a random case."""
    from transformers import GenerationConfig

    case, choice = draw_case(number, hf_model), random.Random(-number)
    ours = {name: value for name, value in case.ours.items() if name in SampleConfig.model_fields} | {"num_return": 1}
    theirs = case.theirs | {"num_beams": 1, "num_return_sequences": 1, "max_length": case.length + case.limit}
    cuts = {
        "temperature": [0.3, 2.0],
        "top_h": [0.3, 0.8],
        "top_k": [1, 5, 20],
        "top_p": [0.5, 0.9],
        "min_p": [0.02, 0.2],
        "typical_p": [0.3, 0.9],
        "epsilon_cutoff": [0.01, 0.1],
        "eta_cutoff": [0.01, 0.3],
    }
    drawn = {name: choice.choice(values) for name, values in cuts.items() if choice.random() < 0.4}
    theirs = {"top_k": 0} | theirs | drawn
    copies, num_new = 3, choice.randrange(case.limit)
    random_numbers = torch.Generator().manual_seed(number)
    vocabulary = hf_model.get_output_embeddings().weight.shape[0]
    new = torch.randint(vocabulary, (len(case.prompts) * copies, num_new), generator=random_numbers)
    new[new == case.pad] = case.prompts[0][0]  # padding is never generated, and over there its n-grams count
    scores = torch.randn(len(new), vocabulary, generator=random_numbers) * 3
    rows, mask = map(torch.tensor, _padded(case))
    first = rows if case.start is None else torch.full((len(rows), 1), case.start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = GenerationConfig(do_sample=True, eos_token_id=list(case.eos_ids) or None, **theirs)
        hf_model._prepare_special_tokens(settings, True, device="cpu")
        settings.update(max_new_tokens=None)
        processors = hf_model._get_logits_processor(
            settings,
            input_ids_seq_length=case.length,
            encoder_input_ids=rows,
            device="cpu",
            model_kwargs={"attention_mask": mask.repeat_interleave(copies, 0)},
        )
        expected = processors(torch.cat([first.repeat_interleave(copies, 0), new], 1), scores)
    prompts = _prompt_batch(case)
    config = SampleConfig(**ours, **drawn)
    stopping = Stopping(frozenset(case.eos_ids), (case.limit,) * len(prompts))
    filters = make_filters(config, prompts, stopping, (), (), vocabulary)
    before = align_right(prompts.input_ids, prompts.lengths).repeat_interleave(copies, 0)
    owners = [prompt for prompt in range(len(prompts)) for _ in range(copies)]
    place = Place(torch.cat([before, new], 1), [num_new] * len(owners), owners)
    found = shape_distribution(filters(scores, place), config)
    return expected.softmax(-1), found.softmax(-1)


def _ids(results):
    return [[ids for _, ids in found] for found in results]


class Rows(TableState):
    """Whole rows, and the source of each."""

    def __init__(self, rows, capacity, source) -> None:
        super().__init__(rows, capacity)
        self.source = source

    def select(self, rows) -> None:
        super().select(rows)
        self.source = {name: tensor[rows] for name, tensor in self.source.items()}


class Uncached:
    """A model of transformers as a step model that reads whole rows at every step."""

    def __init__(self, model) -> None:
        self.model = model

    def logits(self, state: Rows):
        rows = batch(state.rows)
        name = "decoder_input_ids" if state.source else "input_ids"
        # Padding is on the right, where no token looks.
        logits = self.model(**{name: rows.input_ids}, **state.source).logits
        return logits[torch.arange(len(rows)), rows.lengths - 1]

    def prefill(self, prompt, capacity):
        pairs = zip(prompt.input_ids.tolist(), prompt.lengths.tolist(), strict=True)
        source = {}
        if prompt.source_ids is not None:
            source = {"input_ids": prompt.source_ids, "attention_mask": prompt.source_mask.long()}
        state = Rows([ids[:length] for ids, length in pairs], capacity, source)
        return self.logits(state), state

    def extend(self, tokens, state):
        state.rows = [row + new for row, new in zip(state.rows, tokens.tolist(), strict=True)]
        return self.logits(state)[:, None]
