"""Options that several commands share, each under the config key that it is sugar for. Nothing here takes long."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar

import typer

Command = TypeVar("Command", bound=Callable[..., None])

StrategyName = Literal["greedy", "beam", "sample", "beam_sample", "contrastive"]
EarlyStopping = Literal["true", "false", "never"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16"]
QuantizationName = Literal["int8", "int4"]
NativeName = Literal["auto", "off", "require"]

Dtype = Annotated[DtypeName, typer.Option(help="Of the weights; auto is the model's own.")]
Device = Annotated[DeviceName, typer.Option(help="Where to compute.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="FILE", help="An adapter of the model: a .pth or run folder; may repeat."),
]
RunsPath = Annotated[str, typer.Option(help="Where the newest run is looked for.")]
SetOptions = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a config key, such as train.steps=100.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ShortlistFile = Annotated[
    str | None, typer.Option("--shortlist", metavar="FILE", help="Of txtgen shortlist: score no other tokens, faster.")
]
Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A .pth, run folder or Hugging Face folder. [default: the newest run]"),
]
Given = dict[str, Any]
"""What was given of a group of options."""
NOTHING: Given = {}


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the command line: its type as typer reads it, and the value that it has where it is not given."""

    annotation: Any
    default: Any
    stands_for: Callable[[Any], Any] | None = None
    """From a value given to that of the config."""

    def value(self, given: Any) -> Any:
        """That of the config; None leaves it to the config."""
        if self.stands_for is None:
            return given
        return self.stands_for(given) if given else None


def option(
    kind: Any,
    help: str,
    *names: str,
    default: Any = None,
    metavar: str | None = None,
    least: int | None = None,
    stands_for: Callable[[Any], Any] | None = None,
) -> Option:
    """An option.

    Args:
        kind: of its value; without a default also None, which leaves the key to the config.
        help: what it does.
        names: as on the command line, if not that of the key.
        default: its value where it is not given.
        metavar: what stands for the value in --help.
        least: the smallest value allowed.
        stands_for: from the value given to that of the config.
    """
    facts = typer.Option(*names, help=help, metavar=metavar, min=least)
    return Option(Annotated[kind if default is not None else kind | None, facts], default, stands_for)


TRAINING: dict[str, Option] = {
    "name": option(str, "Of the run's folder. [default: the config's name and a number]"),
    "steps": option(int, "Optimizer steps."),
    "minutes": option(float, "Of the whole run, whatever steps its config has; the schedule is fitted to them."),
    "dtype": option(DtypeName, "Of the matrix products. [default: auto]"),
    "device": option(DeviceName, "Where to compute. [default: auto]"),
    "runs_path": option(str, "Where the runs are. [default: runs]"),
    "resume": option(bool, "Go on with an interrupted run.", "--resume", default=False),
    "overwrite": option(bool, "Start anew; the old run is moved aside.", "--overwrite", default=False),
    "accept_changes": option(
        bool, "Resume although files or how they are learnt changed.", "--accept-changes", default=False
    ),
    "nproc": option(
        int, "Processes on this machine: each has a GPU, or a share of the cores.", default=1, metavar="N", least=1
    ),
    "max_restarts": option(
        int, "Go on from the last checkpoint if a process is killed, so often.", default=0, metavar="N", least=0
    ),
    "dry_run": option(bool, "Try a few steps, say what all would cost, keep nothing.", "--dry-run", default=False),
    "json_output": option(bool, "Print the dry run as JSON.", "--json", default=False),
    "settings": Option(SetOptions, None),
}
"""How a run learns: keys of its config, as `TRAINED` names them; and how it is started."""

TRAINED = {
    "name": "name",
    "runs_path": "runs_path",
    "steps": "train.steps",
    "minutes": "train.minutes",
    "dtype": "train.dtype",
    "device": "device",
}

MODEL_USE: dict[str, Option] = {
    "adapters": Option(Adapters, None),
    "batch_size": option(int, "Prompts at a time.", default=16, least=1),
    "independent": option(bool, "Each prompt by itself, exactly.", "--independent", default=False),
    "dtype": Option(Dtype, "auto"),
    "quantize": option(QuantizationName, "Weights in so many bits."),
    "native": option(NativeName, "Machine code on a CPU: where it can be built, never, always.", default="auto"),
    "ensemble": option(list[str], "Decides together with MODEL; may repeat.", metavar="MODEL"),
    "mixture": option(
        bool,
        "An ensemble by the mean of log-probabilities.",
        "--log-linear",
        default=False,
        stands_for=lambda _: {"mean": "log_linear"},
    ),
    "device": Option(Device, "auto"),
    "runs_path": Option(RunsPath, "runs"),
}
"""How a model computes: keys of `ModelUseConfig`."""

PROMPTED: dict[str, Option] = {
    "raw": option(bool, "Do not wrap the prompt of a chat model as a user turn.", "--raw", default=False),
    "special": option(
        bool, "Spellings of special tokens in the prompt become those tokens.", "--special", default=False
    ),
    **MODEL_USE,
}
"""How a model reads prompts and computes: keys of `PromptedConfig`."""

DECODING: dict[str, Option] = {
    "strategy": option(StrategyName, "How to choose tokens."),
    "beam_size": option(int, "Hypotheses kept (beam)."),
    "length_penalty": option(float, "Score = log-probability / length ** this (beam)."),
    "early_stopping": option(EarlyStopping, "When enough hypotheses are finished (beam)."),
    "num_groups": option(int, "Groups of beams that differ (beam)."),
    "diversity_penalty": option(float, "How much they differ (beam)."),
    "num_return": option(int, "Results per prompt (beam, sample)."),
    "max_new_tokens": option(int, "Generated tokens at most."),
    "max_length": option(int, "Prompt and generated tokens at most."),
    "min_new_tokens": option(int, "Generated tokens at least."),
    "min_length": option(int, "Prompt and generated tokens at least."),
    "temperature": option(float, "Below 1 safer, above 1 wilder (sample)."),
    "top_k": option(int, "Only the k likeliest tokens; 0 is all (sample, contrastive)."),
    "top_p": option(float, "Only the likeliest tokens of this mass (sample)."),
    "min_p": option(float, "Only tokens this likely, relative to the best (sample)."),
    "typical_p": option(float, "Only tokens of usual surprise, of this mass (sample)."),
    "top_h": option(float, "Only tokens with this share of the entropy (sample)."),
    "epsilon_cutoff": option(float, "Only tokens of this probability (sample)."),
    "eta_cutoff": option(float, "The same, lower where many are likely (sample)."),
    "top_n_sigma": option(float, "Only tokens so many standard deviations below the best (sample)."),
    "samplers": option(list[str], "These, in this order; may repeat (sample).", "--sampler", metavar="NAME"),
    "penalty_alpha": option(float, "How much to avoid likeness (contrastive)."),
    "repetition_penalty": option(float, "Above 1, seen tokens become unlikely."),
    "presence_penalty": option(float, "Off the score of generated tokens."),
    "frequency_penalty": option(float, "The same, for each time."),
    "penalty_window": option(int, "Tokens that these two look back; 0 is all."),
    "no_repeat_ngram_size": option(int, "No n-gram of this size twice.", "--no-repeat-ngram"),
    "bad_words": option(list[str], "Never this text; may repeat.", "--bad-word"),
    "prefix": option(str, "Begin with this text."),
    "include": option(list[str], "Have this text in it; may repeat (beam)."),
    "regex": option(str, "The whole text matches this."),
    "forced_bos_token_id": option(int, "First token after the start token."),
    "stop": option(list[str], "End before this text; may repeat."),
    "mbr": option(
        int,
        "Draw N samples, give what is most like all of them (sample).",
        metavar="N",
        stands_for=lambda number: {"candidates": number},
    ),
    "stop_on_loop": option(
        bool, "End a text that says the same again and again.", "--stop-on-loop", default=False, stands_for=lambda _: {}
    ),
    "speculation": option(
        bool,
        "Guess what stood there before: the same text, faster (greedy, sample).",
        "--prompt-lookup",
        default=False,
        stands_for=lambda _: {"kind": "prompt_lookup"},
    ),
    "seed": option(int, "Of sampling."),
}
"""Settings of generation: keys of `DecodingConfig`."""


def with_options(**groups: dict[str, Option]) -> Callable[[Command], Command]:
    """Give a command the options of groups, each in place of its parameter of that name.

    The parameter gets those of the group's options that have a value, by their keys.
    """

    def decorated(command: Command) -> Command:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            options = groups.get(parameter.name)
            if options is None:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
                continue
            parameters += [
                inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.annotation)
                for key, each in options.items()
            ]

        @wraps(command)
        def called(**given: Any) -> None:
            for name, options in groups.items():
                values = {key: each.value(given.pop(key)) for key, each in options.items()}
                given[name] = {key: value for key, value in values.items() if value is not None}
            command(**given)

        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called  # type: ignore[return-value]

    return decorated


def sugar(flags: dict[str, Any], settings: list[str] | None) -> list[str]:
    """Flags as the config keys that they stand for, after the --set options, in the form of a --set option."""
    return [*(settings or ()), *(f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None)]
