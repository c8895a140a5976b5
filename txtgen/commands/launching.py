"""From what stands on the command line of pretrain and finetune to a config, and from there to the run."""

import json
import re
import shlex
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from txtgen.checkpoint import load_checkpoint
from txtgen.commands import finetune, pretrain
from txtgen.commands.devices import require_devices
from txtgen.commands.finding import newest_runs
from txtgen.commands.models import resolve_model
from txtgen.commands.running.ranks import follow_launcher, run_ranks, txtgen_command
from txtgen.commands.running.resuming import config_of
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.running.run_record import RunPaths, command_of, require_run, resume_command
from txtgen.commands.running.signals import exit_code_of
from txtgen.commands.running.starting import Launch
from txtgen.commands.showing.outlook_table import show_outlook
from txtgen.commands.sources import guess_source
from txtgen.config.data import DataConfig
from txtgen.config.loader import config_from_tree, dump_config, load_config, load_run_config
from txtgen.config.model import EncoderDecoderConfig
from txtgen.config.objectives import MASK, PREFERENCES, SENTINEL, TEXTS
from txtgen.config.runs import FinetuneConfig, PretrainConfig, row_length
from txtgen.data import describe
from txtgen.errors import CheckpointError, UsageError
from txtgen.tokenizer import Tokenizer

BUILTIN_BATCH_TOKENS = 4096
MIN_VALIDATED_BYTES = 200_000
"""Of less text than this the built-in configs hold nothing out: the share that they name would be next to nothing."""


NO_CORPORA = frozenset({".json", ".toml", ".yaml", ".yml"})
"""Endings of files that are settings, or are not to be read line by line."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line says besides the config: which command, on what inputs, in which folder, how to start."""

    command: str
    inputs: tuple[str, ...]
    name: str | None = None
    runs_path: str = "runs"
    base: str | None = None
    resume: bool = False
    overwrite: bool = False
    accept_changes: bool = False
    dry_run: bool = False
    nproc: int = 1
    max_restarts: int = 0
    json_output: bool = False

    def arguments(self, overrides: list[str]) -> list[str]:
        """The command line of a rank of this request."""
        given = {"--name": self.name, "--runs-path": self.runs_path, "--base": self.base}
        flags = {
            "--resume": self.resume,
            "--overwrite": self.overwrite,
            "--accept-changes": self.accept_changes,
            "--dry-run": self.dry_run,
            "--json": self.json_output,
        }
        return [
            self.command,
            *(part for flag, value in given.items() if value is not None for part in (flag, value)),
            *(flag for flag, wanted in flags.items() if wanted),
            *(part for setting in overrides for part in ("--set", setting)),
            *("--", *self.inputs),
        ]


def launch(request: Request, overrides: list[str]) -> int:
    """Run `pretrain` or `finetune`. Returns the exit code.

    Args:
        request: inputs are one config, or text files; none resumes a run from the config in its folder.
        overrides: --set options, flags included.

    Raises:
        TxtgenError: whatever is wrong with flags, config or run.
    """
    _require_sound_flags(request)
    _require_no_run_among(request)
    follow_launcher()
    if request.resume and not request.inputs:
        folder = _resumed(request)
        _restore_config(RunFolder(folder))
        request = replace(request, name=folder.name, runs_path=str(folder.parent))  # for ranks too
    overrides = _ended_by_time(overrides)
    path, stem, settings = _config(request)
    options = Launch(stem, request.resume, request.overwrite, request.accept_changes)
    if request.command == "pretrain":
        return _run(request, overrides, options, load_config(PretrainConfig, path, settings + overrides), pretrain)
    return _run(request, overrides, options, load_config(FinetuneConfig, path, settings + overrides), finetune)


def _require_sound_flags(request: Request) -> None:
    """Refuse flags that contradict each other, or that nothing would come of.

    Raises:
        UsageError: for the first of them.
    """
    if request.resume and request.overwrite:
        raise UsageError("--resume and --overwrite contradict each other", "", "keep one of them")
    if request.accept_changes and not request.resume:
        raise UsageError("--accept-changes is for a resumed run", "", "add --resume, or leave it out")
    if request.dry_run and request.resume:
        told = "a dry run foretells a whole run; one that is resumed shows what is left of it"
        raise UsageError(told, "--dry-run --resume", "leave one of them out")
    if request.json_output and not request.dry_run:
        raise UsageError("--json prints what a dry run foretells", "", "add --dry-run, or leave it out")


def read_run_config(inputs: tuple[str, ...], base: str | None, overrides: list[str]) -> PretrainConfig | FinetuneConfig:
    """The config of the run that these inputs would start: a config, or data files, to finetune a base if one is given.

    Raises:
        TxtgenError: as for `launch`.
    """
    request = Request("finetune" if base else "pretrain", inputs, base=base)
    path, _, settings = _config(request)
    return load_run_config(path, settings + overrides)


def _ended_by_time(overrides: list[str]) -> list[str]:
    """Minutes without steps end a run by themselves, however many steps its config has."""
    given = {key.strip(): value.strip() for key, _, value in (text.partition("=") for text in overrides)}
    timed = given.get("train.minutes", "null") != "null"
    return ["train.steps=null", *overrides] if timed and "train.steps" not in given else overrides


def _run(request: Request, overrides: list[str], options: Launch, config: Any, command: Any) -> int:
    restarts = 0 if request.dry_run else request.max_restarts
    if request.nproc > 1 or restarts:
        require_devices(config.device, request.nproc)
        return run_ranks(txtgen_command(request.arguments(overrides)), request.nproc, restarts, Path(config.runs_path))
    if request.dry_run:
        return show_outlook(command.dry_run(config), request.json_output)
    return exit_code_of(lambda: int(command.run(config, options).exit_code))


def _config(request: Request) -> tuple[Path, str, list[str]]:
    """The config file to read, the stem that names the run, and settings that come before the user's."""
    inputs = request.inputs
    configs = [path for path in inputs if Path(path).suffix.lower() in (".yaml", ".yml")]
    if configs and len(inputs) > 1:
        more = next((path for path in inputs if path not in configs), "FILE")
        raise UsageError(
            f"a config stands alone on the command line, not beside {len(inputs) - 1} more",
            configs[0],
            f"name its files inside it, or by --set data.sources.0.path={shlex.quote(more)}",
        )
    if configs:
        return Path(configs[0]), Path(configs[0]).stem, []
    if not inputs:
        if not request.resume:
            raise UsageError("nothing to train on", "", f"give a config or text files: txtgen {request.command} FILES")
        folder = Path(request.runs_path, request.name or "")  # as `launch` has found it
        # Whatever the config in it says: it may have been copied or moved since.
        here = {"name": folder.name, "runs_path": str(folder.parent)}
        return folder / "config.yaml", folder.name, [f"{key}={json.dumps(value)}" for key, value in here.items()]
    with as_file(files("txtgen.config") / "builtin" / f"{request.command}.yaml") as path:
        stem = re.sub(r"[*?\[\]]", "", Path(inputs[0]).name.partition(".")[0])  # of a pattern that no shell filled in
        return path, stem or "text", _builtin_settings(request)


def _resumed(request: Request) -> Path:
    """The folder of the run that is gone on with if no config is given: the one of this name, or else the newest that
    the same command began.

    Raises:
        CheckpointError: there is none.
        UsageError: the other command began it.
    """
    if request.name:
        return require_run(request.name, request.runs_path, request.command)
    runs = Path(request.runs_path)
    found = next((path for path in newest_runs(runs) if command_of(path) in (None, request.command)), None)
    if found is None:
        raise CheckpointError(f"there is no {request.command} run to resume", str(runs), "start without --resume")
    return found


def _builtin_settings(request: Request) -> list[str]:
    """What the built-in config needs to know of the files, and of the base model when finetuning."""
    _require_corpora(request.inputs)
    source: dict[str, Any] = guess_source(list(request.inputs))
    settings = [f"data.sources={json.dumps([source])}"]
    read = config_from_tree(DataConfig, {"sources": [source]})
    if sum(summary.num_bytes for summary in describe(read)) < MIN_VALIDATED_BYTES:
        settings.append("data.validation.fraction=0.0")
    if request.command == "finetune":
        if request.base is None:
            raise UsageError("finetuning needs a model to start from", "", "add --base MODEL")
        base = load_checkpoint(resolve_model(request.base, request.runs_path), weights=False)
        length = row_length(None, base.config.model, base.config.framing)
        settings.append(f"train.batch_tokens={length * max(1, BUILTIN_BATCH_TOKENS // length)}")
        has_encoder = isinstance(base.config.model, EncoderDecoderConfig)
        settings.append(f"data.objective.kind={_objective(source['kind'], has_encoder, base.tokenizer)}")
    return settings


def _restore_config(folder: RunFolder) -> None:
    """Write a config.yaml that is missing: a cooldown that was killed just after its first save said it only there.

    Raises:
        CheckpointError: nothing was saved either.
    """
    if not folder.config.exists():
        folder.write_text(folder.config, dump_config(config_of(folder.newest()[1], [])))


def _require_no_run_among(request: Request) -> None:
    """Refuse a run in the place of a config.

    Raises:
        UsageError: with what to type.
    """
    if not request.resume or request.name:
        return
    for path in map(Path, request.inputs):
        folder = path if path.exists() else Path(request.runs_path) / path
        here = RunPaths(folder)
        if here.config.exists() and (here.about.exists() or here.checkpoints.exists()):
            own = command_of(folder) or request.command
            raise UsageError("a run is named by --name", str(path), f"type: {resume_command(own, folder)}")


def _require_corpora(inputs: tuple[str, ...]) -> None:
    """Refuse files, but not what is in folders, that hold settings or one large object far likelier than a text.

    Raises:
        UsageError: one is among them.
    """
    for path in inputs:
        ending = Path(path).suffix.lower()
        if ending in NO_CORPORA:
            records = "records go into a .jsonl file, one object a line; " if ending == ".json" else ""
            raise UsageError(
                f"a {ending} file is not taken for a corpus",
                path,
                f"{records}to learn it as it stands, write a config with a source of kind text",
            )


def _objective(source: str, has_encoder: bool, tokenizer: Tokenizer) -> str:
    """What is learnt by finetuning from a kind of source if nobody says. Of texts, an encoder-decoder mends those that
    are spoilt, by the tokens for it that its tokenizer has."""
    texts = source in TEXTS
    if source in PREFERENCES:
        return "dpo"
    if not has_encoder:
        return "causal_lm" if texts else "chat"
    if not texts:
        return "seq2seq"
    masks = MASK in tokenizer.control_ids and SENTINEL.format(0) not in tokenizer.control_ids
    return "denoising" if masks else "span_corruption"
