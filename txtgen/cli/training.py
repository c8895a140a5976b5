"""Commands that train: pretrain, finetune, cooldown."""

from typing import Annotated

import typer

from txtgen.cli.options import NOTHING, TRAINED, TRAINING, Given, SetOptions, sugar, with_options

Inputs = Annotated[
    list[str] | None, typer.Argument(metavar="CONFIG.yaml | TEXT...", help="A config, or text files and folders.")
]


@with_options(training=TRAINING)
def pretrain(inputs: Inputs = None, training: Given = NOTHING) -> None:
    """Train a new model, from a config or from text files with the built-in small config."""
    start_training("pretrain", inputs, None, training)


@with_options(training=TRAINING)
def finetune(
    inputs: Inputs = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The model to start from.")] = None,
    training: Given = NOTHING,
) -> None:
    """Go on training a model on other data, in far smaller steps."""
    start_training("finetune", inputs, base, training)


def cooldown(
    checkpoint: Annotated[
        str, typer.Option("--from", metavar="CHECKPOINT", help="A .pth with training state, or a run for its last.")
    ],
    steps: Annotated[int | None, typer.Option(help="In which the rate falls. [default: half of those done]")] = None,
    minutes: Annotated[float | None, typer.Option(help="The same in time.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the new run. [default: RUN-cooldown and a number]")] = None,
    runs_path: Annotated[str | None, typer.Option(help="Where the new run goes. [default: as its run said]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Move a run of this name aside.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Although files or how they are learnt changed.")
    ] = False,
    settings: SetOptions = None,
) -> None:
    """Finish a run in its stable phase: a new run goes on from its checkpoint while the learning rate falls."""
    from txtgen.commands import cooldown as command
    from txtgen.commands.running.signals import exit_code_of
    from txtgen.config.commands import CooldownConfig
    from txtgen.config.flags import from_flags

    tree = {"checkpoint": checkpoint, "steps": steps, "minutes": minutes, "name": name, "runs_path": runs_path}
    tree |= {"overwrite": overwrite, "accept_changes": accept_changes}
    config = from_flags(CooldownConfig, tree, None)
    raise typer.Exit(exit_code_of(lambda: command.run(config, settings or []).exit_code))


def start_training(command: str, inputs: list[str] | None, base: str | None, given: Given) -> None:
    """Go the way of pretrain and finetune. given: of the options in TRAINING."""
    flags = {key: given.get(name) for name, key in TRAINED.items()}
    overrides = sugar({"base": base, **flags}, given.get("settings"))
    from txtgen.commands.launching import Request, launch

    learning = ("steps", "minutes", "dtype", "device", "settings")
    start = {name: value for name, value in given.items() if name not in learning}
    raise typer.Exit(launch(Request(command, tuple(inputs or ()), base=base, **start), overrides))
