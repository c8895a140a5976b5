"""Many prompts as one job: what it is, its results a batch at a time, and how they are written."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from typing import Any

import txtgen
from txtgen.commands.devices import device_name
from txtgen.commands.models import load_for, load_shared, resolve_model, shared_file
from txtgen.config.commands import GenerateConfig
from txtgen.config.model import EncoderDecoderConfig
from txtgen.generator import Generation, Generator, Prompt, Results, complete_by_workers
from txtgen.model import NativeTransformer, step_model

NOT_OF_THE_RESULT = {
    "model", "adapters", "draft", "ensemble", "runs_path", "prompts", "input", "output", "overwrite", "workers",
    "json_schema", "device", "native", "compile", "shortlist",
}  # fmt: skip
"""What a command may be told otherwise and yet go on; of models, short-list, prompts and schema the content counts, of
device, machine code and compiling what is computed by in the end."""


class PromptJob:
    """Prompts, and the batches in which a model goes on from them.

    Args:
        config: what to do.
        prompts: all of them.
        lines: whether prompts and results are one a line.
        generator: what the config loads, if it is loaded already; not for workers.

    Raises:
        UsageError: a prompt or an option that cannot be used.
        CheckpointError: the model cannot be read.
    """

    def __init__(
        self, config: GenerateConfig, prompts: Sequence[Prompt], lines: bool, generator: Generator | None = None
    ) -> None:
        self.config, self.prompts, self.lines = config, prompts, lines
        if config.workers:  # each of which has weights; here the rest of the model is enough
            self._path = resolve_model(config.model, config.runs_path)
            place = {"model": str(self._path), "device": "cpu", "quantize": None, "native": "off", "compile": False}
            generator = load_for(config.model_copy(update=place))
            model = step_model(generator.loaded.model, config.native, config.compile)
            self._is_native = isinstance(model, NativeTransformer)
        else:
            generator = generator or load_for(config)
            self._generator, self._is_native = generator, generator.is_native
        self._device = device_name(next(generator.loaded.model.parameters()).device)
        self._fingerprint, self._others = generator.loaded.fingerprint, generator.other_fingerprints
        self._shortlist = generator.shortlist
        # A blank line has nothing to translate, and gives an empty result.
        translates = lines and isinstance(generator.loaded.config.model, EncoderDecoderConfig)
        asked = {n: prompt for n, prompt in enumerate(prompts) if not (translates and not str(prompt).strip())}
        self._blank = [number for number in range(len(prompts)) if number not in asked]
        self._plan = generator.plan(asked, raw=config.raw, special=config.special, gap=config.gap, **config.decoding)
        self._compiles = config.compile is True if config.workers else generator.compiles

    def facts(self) -> dict[str, Any]:
        """All that the results depend on."""
        facts = {
            "txtgen": txtgen.__version__,
            "sha256 of the model": self._fingerprint,
            "sha256 of other models": self._others,
            "sha256 of the short-list": self._shortlist and self._shortlist.fingerprint(),
            "sha256 of the prompts": sha256(json.dumps(self.prompts).encode()).hexdigest(),
            "lines": self.lines,
            "device": self._device,
            "native": self._is_native,
            "compile": self._compiles,
            **self.config.model_dump(mode="json", exclude=NOT_OF_THE_RESULT),
        }
        found: dict[str, Any] = json.loads(json.dumps(facts))
        return found

    def results(self, done: Collection[int] = ()) -> Iterator[Results]:
        """The results of some prompts at a time, by the prompts' numbers; those that are done are left out.

        They are the same whatever is done already, and however many workers there are.

        Raises:
            TxtgenError: as of `Generator.generate`, also in a worker.
            DistributedError: a worker was killed.
        """
        if blank := [number for number in self._blank if number not in done]:
            yield {number: [self._empty(number)] for number in blank}
        plan = self._plan.without(done)
        if self.config.workers:
            config = self.config.model_copy(update={"native": "require" if self._is_native else "off"})
            with shared_file(self._path, self._fingerprint, config) as (path, fingerprint):
                make = partial(load_shared, path, fingerprint, config, self._shortlist)
                yield from complete_by_workers(make, plan.batches, plan.decoding, self.config.workers)
        else:
            yield from (self._generator.complete(batch, plan.decoding) for batch in plan.batches)

    def written(self, generations: Sequence[Generation]) -> str:
        """The results of a prompt as they are written, a line each."""
        if self.config.json_output:
            speculated = self._plan.decoding.is_set("speculation")
            return "".join(f"{json_line(generation, speculated)}\n" for generation in generations)
        texts = [each.text.replace("\n", " ") if self.lines else each.text for each in generations]
        return "".join(f"{text}\n" for text in texts)

    def _empty(self, number: int) -> Generation:
        return Generation(number, 0, str(self.prompts[number]), "", (), (), 0.0, 0.0, "length")


def json_line(generation: Generation, speculated: bool) -> str:
    """One JSON object on one line, its text escaped to ASCII so that no terminal acts on it.

    speculated: whether tokens were proposed.
    """
    line = asdict(generation)
    if not generation.fills:
        del line["fills"]
    if not speculated:
        del line["proposed"], line["accepted"]
    return json.dumps(line)
