"""`txtgen generate`: prompts in, text out; nothing but text goes to stdout."""

import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from txtgen.commands.models import load_for
from txtgen.commands.prompting.inputs import read_json, read_prompts
from txtgen.commands.prompting.prompted import PromptJob
from txtgen.commands.prompting.result_file import ResultFile
from txtgen.commands.prompting.session import Command, Replies, Session
from txtgen.commands.showing.console import PromptsDisplay
from txtgen.commands.showing.output import write_result
from txtgen.config.commands import GenerateConfig
from txtgen.config.decoding_options import resolve_decoding
from txtgen.errors import UsageError
from txtgen.generator import Generator, Prompt, in_order


def run(config: GenerateConfig) -> None:
    """Generate for every prompt and write the results in the order of the prompts; ask for prompts if there are none.

    One prompt with one result is written as it is decided. With a file of prompts a line, each result is one line
    (newlines in it become spaces, so that line i answers prompt i); `json_output` is exact in every case.

    Raises:
        UsageError: there is no prompt, or an option does not fit.
        CheckpointError: the model cannot be read.
        BusyError: the output is there already, or that of another job.
    """
    prompts: list[Prompt] = list(config.prompts)
    lines = False
    if config.input is not None:
        found, lines = read_prompts(config.input)
        prompts += found
    if not prompts and config.input is not None:
        raise UsageError("there is no prompt", "", "give --prompt TEXT, --input FILE, or pipe prompts in")
    if config.json_schema is not None:
        schema = {"json_schema": read_json(config.json_schema, "the JSON schema")}
        config = config.model_copy(update={"decoding": config.decoding | schema})
    if not prompts:
        _converse(config)
        return
    if config.output is not None:
        with ResultFile(Path(config.output), config.overwrite) as file:
            _write_file(file, PromptJob(config, prompts, lines))
        return
    if len(prompts) == 1 and not (lines or config.json_output or config.gap is not None or config.workers):
        generator = load_for(config)
        if resolve_decoding(generator.loaded.config.generation, config.decoding).num_return == 1:
            _stream(generator, prompts[0], config)
        else:
            _write_all(PromptJob(config, prompts, lines, generator))
        return
    _write_all(PromptJob(config, prompts, lines))


def _write_all(job: PromptJob) -> None:
    """Write the results to standard output, each as soon as it and all before it are there."""
    with PromptsDisplay(len(job.prompts), quiet=sys.stdout.isatty()) as display:
        for generations in in_order(job.results()):
            write_result(job.written(generations), end="")
            display.add(1, sum(len(generation.token_ids) for generation in generations))


def _write_file(file: ResultFile, job: PromptJob) -> None:
    """Write the results into a file, going on from those that it has."""
    total = len(job.prompts)
    file.begin(job.facts(), total)
    with PromptsDisplay(total, len(file.texts)) as display:
        if file.texts:
            display.note(f"{len(file.texts)} of {total} prompts are done already")
        try:
            for results in job.results(file.texts):
                file.add({number: job.written(generations) for number, generations in results.items()})
                tokens = sum(len(generation.token_ids) for generation in chain.from_iterable(results.values()))
                display.add(len(results), tokens)
        except KeyboardInterrupt:
            display.note(f"stopped: {len(file.texts)} of {total} prompts are kept; the same command goes on")
            raise
    file.finish(total)
    display.note(f"{display.summary()}: {file.path}")


def _stream(generator: Generator, prompt: Prompt, config: GenerateConfig) -> None:
    """Write the text of one prompt piece by piece, and end the line whatever happens."""
    # Refuses bad options at once.
    pieces = generator.stream(prompt, raw=config.raw, special=config.special, **config.decoding)
    first = next(pieces, "")  # what is wrong with model or options shows before anything is written
    try:
        write_result(first, end="")
        for piece in pieces:
            write_result(piece, end="")
    finally:
        write_result("")


def _converse(config: GenerateConfig) -> None:
    """A session: what the user types is gone on from."""
    for name in ("output", "json_output", "workers"):
        if getattr(config, name):
            raise UsageError(f"{name} has no meaning in a session", name, "give --prompt TEXT or --input FILE")
    replies = Replies.of(config)
    Session(replies, Continuation(replies, config)).run()


class Continuation:
    """What a session makes of lines: texts that go on from them."""

    def __init__(self, replies: Replies, config: GenerateConfig) -> None:
        self.replies, self.config = replies, config

    def commands(self) -> Mapping[str, Command]:
        """None of its own."""
        return {}

    def answer(self, line: str) -> None:
        """Go on from a line; all results at once where they are several, or a text with its gaps filled."""
        replies, how = self.replies, {"raw": self.config.raw, "special": self.config.special}
        if self.config.gap is None and replies.decoding.num_return == 1:
            replies.stream(line, **how)
            return
        for generation in replies.generator.generate(line, gap=self.config.gap, **how, **replies.options):
            write_result(generation.text)
