"""Options of the command line stand for config keys, and say the same of them."""

from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import typer
from typer.testing import CliRunner

from txtgen.cli.options import DECODING, MODEL_USE, PROMPTED, Option, option, with_options
from txtgen.config.commands import ModelUseConfig, PromptedConfig
from txtgen.config.decoding import STRATEGIES
from txtgen.config.decoding_options import option_names
from txtgen.config.shape import arms, unwrapped


def choices(annotation: Any) -> set[str]:
    """The words that a value may be, if it is one of some."""
    found = [unwrapped(arm)[0] for arm in arms(annotation)]
    return {word for each in found if get_origin(each) is Literal for word in get_args(each)}


def test_options_of_decoding_are_keys_of_its_config() -> None:
    assert set(DECODING) <= set(option_names())
    assert choices(DECODING["strategy"].annotation) == set(STRATEGIES)
    beam = STRATEGIES["beam"].model_fields["early_stopping"]
    assert choices(DECODING["early_stopping"].annotation) == choices(beam.annotation)


@pytest.mark.parametrize("key", PROMPTED)
def test_options_of_what_reads_prompts_are_its_config(key) -> None:
    assert (key in MODEL_USE) == (key in ModelUseConfig.model_fields)
    field = PromptedConfig.model_fields[key]
    unsaid = PROMPTED[key].value(PROMPTED[key].default)
    assert unsaid in (None, field.default), "None leaves it to the config"
    assert choices(PROMPTED[key].annotation) == choices(field.annotation)


def test_a_command_gets_what_was_given_of_a_group() -> None:
    app, seen = typer.Typer(), []
    group = {
        "size": option(int, "Size."),
        "names": option(list[str], "Names.", "--name"),
        "on": option(bool, "On.", "--on", default=False, stands_for=lambda _: {"on": True}),
        "place": Option(Annotated[str, typer.Option()], "here"),
    }

    @app.command()
    @with_options(group=group)
    def command(first: str, group: dict[str, Any], last: Annotated[int, typer.Option()] = 3) -> None:
        seen.append((first, group, last))

    runner = CliRunner()
    assert runner.invoke(app, ["a"]).exit_code == 0
    assert runner.invoke(app, ["b", "--size", "0", "--name", "x", "--name", "y", "--on", "--last", "4"]).exit_code == 0
    assert seen == [
        ("a", {"place": "here"}, 3),
        ("b", {"size": 0, "names": ["x", "y"], "on": {"on": True}, "place": "here"}, 4),
    ]
    assert runner.invoke(app, ["a", "--size", "x"]).exit_code == 2
    shown = runner.invoke(app, ["--help"]).output
    assert shown.index("--size") < shown.index("--on") < shown.index("--last")
