"""Ranks that begin a run at the same moment, over and over."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from txtgen.commands.running import starting
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.running.starting import Launch, start_run
from txtgen.config.loader import config_from_tree
from txtgen.config.runs import PretrainConfig
from txtgen.distributed import World
from txtgen.distributed import world as world_module
from txtgen.errors import DistributedError

TIMES = 50
TREE = {"data": {"sources": [{"kind": "text", "path": __file__}]}, "model": {"kind": "decoder"}, "device": "cpu"}


def begin_over_and_over(world: World, runs_path: str, name: str | None) -> list[tuple[str, bool]]:
    """The folders that a rank gets, and whether they were there."""
    config = config_from_tree(PretrainConfig, {**TREE, "runs_path": runs_path, "name": name})
    original, got = starting.open_world, []
    starting.open_world = lambda *_: nullcontext(
        replace(world, launch=None)
    )  # they are in one; each begins another run
    try:
        for _ in range(TIMES):
            with start_run(config, Launch("race", overwrite=True)) as start:
                world.from_main(start.folder.last.touch)  # or nobody had been here
                got.append((start.folder.path.name, start.folder.last.exists()))
                world.from_main(lambda: None)
    finally:
        starting.open_world = original
    return got


def test_new_folders_are_made_once_and_are_the_same_for_all(ranks, tmp_path) -> None:
    one, two = ranks.run(begin_over_and_over, str(tmp_path), None)
    assert one == two == [(f"race-{number}", True) for number in range(1, TIMES + 1)]


def test_a_folder_is_moved_aside_once_each_time(ranks, tmp_path) -> None:
    one, two = ranks.run(begin_over_and_over, str(tmp_path), "same")
    assert one == two == [("same", True)] * TIMES
    aside = {path.name for path in tmp_path.iterdir()} - {"same"}
    assert aside == {f"same.old-{number}" for number in range(1, TIMES)}
    assert all(RunFolder(Path(tmp_path / name)).occupied for name in aside)


def with_another_torch(world: World) -> str:
    original = torch.__version__
    torch.__version__ = f"9.{world.rank}"
    try:
        world_module._refuse_other_versions(world)
    except DistributedError as error:
        return str(error)
    finally:
        torch.__version__ = original
    return ""


def test_ranks_with_other_versions_of_torch_refuse_each_other(ranks) -> None:
    assert (
        ranks.run(with_another_torch) == ["rank 1 has torch 9.1, rank 0 has 9.0; install the same on all machines"] * 2
    )
