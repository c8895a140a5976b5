"""`txtgen generate`: prompts in, text out; nothing but text goes to stdout."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

from txtgen.commands.inputs import read_prompts, read_text
from txtgen.commands.models import load
from txtgen.commands.output import write_result
from txtgen.config.commands import GenerateConfig
from txtgen.config.decoding_options import resolve_decoding
from txtgen.config.model import EncoderDecoderConfig
from txtgen.errors import UsageError
from txtgen.generator import Generation, Generator, Prompt


def run(config: GenerateConfig) -> None:
    """Generate for every prompt and write the results in the order of the prompts.

    One prompt with one result is written as it is decided. With a file of prompts a line, each result is one line
    (newlines in it become spaces, so that line i answers prompt i); `json_output` is exact in every case.

    Raises:
        UsageError: there is no prompt, or an option does not fit.
        CheckpointError: the model cannot be read.
    """
    prompts: list[Prompt] = list(config.prompts)
    lines = False
    if config.input is not None:
        found, lines = read_prompts(config.input)
        prompts += found
    if not prompts:
        raise UsageError("there is no prompt", "", "give --prompt TEXT, --input FILE, or pipe prompts in")
    if config.json_schema is not None:
        schema = {"json_schema": read_text(config.json_schema, "the JSON schema")}
        config = config.model_copy(update={"decoding": config.decoding | schema})
    generator = load(
        config.model,
        runs_path=config.runs_path,
        device=config.device,
        dtype=config.dtype,
        batch_size=config.batch_size,
        independent=config.independent,
        quantize=config.quantize,
        native=config.native,
    )
    decoding = resolve_decoding(generator.loaded.config.generation, config.decoding)
    whole = lines or config.json_output or config.gap is not None
    if len(prompts) == 1 and not whole and decoding.num_return == 1:
        _stream(generator, prompts[0], config)
        return
    for generation in answers(generator, prompts, config, lines):
        if config.json_output:
            write_result(json_line(generation))
        else:
            write_result(generation.text.replace("\n", " ") if lines else generation.text)


def answers(generator: Generator, prompts: list[Prompt], config: GenerateConfig, lines: bool) -> Iterator[Generation]:
    """The results in the order of the prompts; a blank line has nothing to translate and gives an empty result."""
    blank = lines and isinstance(generator.loaded.config.model, EncoderDecoderConfig)
    asked = [number for number, prompt in enumerate(prompts) if not (blank and not str(prompt).strip())]
    texts = [prompts[number] for number in asked]
    found = generator.iterate(texts, raw=config.raw, special=config.special, gap=config.gap, **config.decoding)
    results = (replace(generation, prompt_index=asked[generation.prompt_index]) for generation in found)
    pending = next(results, None)
    for number, prompt in enumerate(prompts):
        if pending is None or pending.prompt_index != number:
            yield Generation(number, 0, str(prompt), "", (), (), 0.0, 0.0, "length")
        while pending is not None and pending.prompt_index == number:
            yield pending
            pending = next(results, None)


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


def json_line(generation: Generation) -> str:
    """One JSON object on one line, its text escaped to ASCII so that no terminal acts on it."""
    line = asdict(generation)
    if not generation.fills:
        del line["fills"]
    return json.dumps(line)
