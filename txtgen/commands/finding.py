"""Which file the user means by a model. It needs no torch, so that the file can be read while torch is imported."""

from pathlib import Path

from txtgen.commands.running.run_record import RunPaths
from txtgen.errors import CheckpointError


def find_model(model: str | Path | None, runs_path: str = "runs") -> Path:
    """The .pth file or the Hugging Face folder that is meant by one of these, a run folder, or None for the newest run.

    Of a run folder it is best.pth, last.pth where no validation has chosen a best one, or the newest of its steps.

    Raises:
        CheckpointError: there is none.
    """
    if model is None:
        return _newest_run(Path(runs_path))
    path = Path(model)
    if path.is_dir():
        for name in ("best.pth", "last.pth"):
            if (path / name).is_file():
                return path / name
        if (path / "config.json").is_file():
            return path
        if steps := RunPaths(path).steps():
            return steps[-1][1]
        raise CheckpointError(
            "no model in this folder",
            str(path),
            "name a run folder (with best.pth or last.pth) or a Hugging Face folder (with config.json)",
        )
    if not path.is_file():
        raise CheckpointError("no such model", str(path), "give a .pth file, a run folder or a Hugging Face folder")
    return path


def newest_runs(runs_path: Path) -> list[Path]:
    """The folders of all runs that have saved, the one that did last at first."""
    found = [path for path in runs_path.glob("*/last.pth") if ".old-" not in path.parent.name]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def _newest_run(runs_path: Path) -> Path:
    found = newest_runs(runs_path)
    if not found:
        raise CheckpointError("no run found", str(runs_path), "name a model, or train one: txtgen pretrain FILES")
    return find_model(found[0])
