"""Commands on runs: list, show, diff, report, and the check of what is promised of one."""

from typing import Annotated

import typer

from txtgen.cli.options import Device, Json

runs_app = typer.Typer(no_args_is_help=True, help="List runs, show or compare them, write a run's report.html.")
check_app = typer.Typer(no_args_is_help=True, help="Prove on a run what txtgen promises of it.")

ListedRuns = Annotated[str, typer.Option(help="Where the runs are.")]
Run = Annotated[str, typer.Argument(metavar="NAME", help="Of a run, or the path of its folder.")]


@runs_app.command("list")
def runs_list(runs_path: ListedRuns = "runs", json_output: Json = False) -> None:
    """List the runs, the latest first: state, step, best validation, parameters, size."""
    from txtgen.commands import runs as command
    from txtgen.commands.showing.run_tables import show_list

    show_list(command.list_runs(runs_path), runs_path, json_output)


@runs_app.command("show")
def runs_show(name: Run, runs_path: ListedRuns = "runs", json_output: Json = False) -> None:
    """Show one run: how far it is, how good, how fast, on what corpus and machine."""
    from txtgen.commands import runs as command
    from txtgen.commands.showing.run_tables import show_run

    show_run(command.show(name, runs_path), json_output)


@runs_app.command("diff")
def runs_diff(one: Run, other: Run, runs_path: ListedRuns = "runs", json_output: Json = False) -> None:
    """Show the config keys in which two runs differ, and their figures side by side."""
    from txtgen.commands import runs as command
    from txtgen.commands.showing.run_tables import show_difference

    show_difference(command.diff(one, other, runs_path), json_output)


@runs_app.command("report")
def runs_report(name: Run, runs_path: ListedRuns = "runs", json_output: Json = False) -> None:
    """Write report.html into a run's folder: curves, samples, config, corpus, machine, in one page."""
    from txtgen.commands.running.run_record import find_run
    from txtgen.commands.showing.output import write_json, write_result
    from txtgen.commands.showing.page import write_page

    path = str(write_page(find_run(name, runs_path)))
    if json_output:
        write_json({"path": path})
    else:
        write_result(path)


@check_app.command("resume")
def check_resume(
    run: Run,
    steps: Annotated[int | None, typer.Option(help="Continue so many steps, twice. [default: up to the last]")] = None,
    device: Device = "auto",
    runs_path: ListedRuns = "runs",
    json_output: Json = False,
) -> None:
    """Continue a copy from the checkpoint before the last, and compare batches, losses and weights."""
    from txtgen.commands import check as command
    from txtgen.commands.showing.result_tables import report_check
    from txtgen.config.commands import CheckConfig
    from txtgen.config.flags import from_flags

    tree = {"run": run, "steps": steps, "device": device, "runs_path": runs_path}
    found = command.run(from_flags(CheckConfig, tree))
    report_check(found, json_output)
    raise typer.Exit(found.exit_code)
