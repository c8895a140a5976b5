"""`txtgen score`: how likely a model finds texts."""

from collections.abc import Iterator, Sequence

from txtgen.commands.models import load_for
from txtgen.commands.prompting.inputs import is_json_lines, json_objects, read_lines, required_prompt
from txtgen.config.commands import ScoreConfig
from txtgen.errors import UsageError
from txtgen.generator import Prompt, Score


def run(config: ScoreConfig) -> Iterator[Score]:
    """Score every text, in their order, each as soon as it and all before it are known.

    Raises:
        UsageError: there is no text, or texts and prompts do not fit each other or the model.
        CheckpointError: the model cannot be read.
    """
    targets = list(config.targets)
    prompts: Sequence[Prompt] | None = config.prompts or None
    if config.input is not None:
        if targets:
            raise UsageError("texts are given twice", "--target, --input", "give either of the two")
        targets, found = _read(config.input)
        if found is not None and prompts is not None:
            raise UsageError("prompts are given twice", f"--prompt, {config.input}", "leave out --prompt")
        prompts = found or prompts
    if not targets:
        raise UsageError("there is no text", "", "give --target TEXT, --input FILE, or pipe texts in")
    generator = load_for(config)
    return generator.iterate_scores(targets, prompts, raw=config.raw, special=config.special, end=config.end)


def _read(name: str) -> tuple[list[str], list[Prompt] | None]:
    """The texts of a file, and the prompt of each unless no line has one."""
    lines = read_lines(name, "the texts")
    if not is_json_lines(name):
        return lines, None
    objects = list(json_objects(lines, name))
    targets: list[str] = []
    for where, found in objects:
        if not isinstance(target := found.get("target"), str):
            raise UsageError(
                "no target", where, 'write {"target": "..."}, with "prompt" or "messages" if there are such'
            )
        targets.append(target)
    if not any({"prompt", "messages"} & found.keys() for _, found in objects):
        return targets, None
    return targets, [required_prompt(found, where) for where, found in objects]
