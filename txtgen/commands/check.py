"""`txtgen check resume`: proves on a copy that a run goes on from its checkpoint as if nothing had happened."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from txtgen.checkpoint import Checkpoint, load_checkpoint
from txtgen.commands import finetune, pretrain
from txtgen.commands.devices import select_device
from txtgen.commands.running.journal import Journal
from txtgen.commands.running.resuming import config_of, differing, horizon_of
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.running.run_record import find_run, read_lines
from txtgen.commands.running.session import Session
from txtgen.commands.running.starting import Start
from txtgen.commands.showing.console import ProgressDisplay
from txtgen.config.commands import CheckConfig
from txtgen.config.runs import PretrainConfig
from txtgen.data import Batch
from txtgen.distributed import World
from txtgen.errors import CheckpointError
from txtgen.train import Horizon, train

STEPS = 10
"""How far a run is continued whose checkpoint before the last is not kept, or which ends with the last."""

ROUNDING = 1e-4
"""By how much, relative, losses may differ where the machine is not the one that the run was made on."""

Verdict = Literal["exact", "equal to rounding", "different"]


@dataclass(frozen=True, slots=True)
class StepTrace:
    """What a step saw and did: a hash of its batch, its loss in nats per token and its gradient norm."""

    step: int
    batch: str
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class ResumeCheck:
    """How a continuation compares with what it should equal.

    start, path: the checkpoint that was continued. against: "the run itself" up to its last checkpoint, or "a second
    continuation". steps: what happened. others: step -> loss of what it is compared with, as far as it is known.
    same: what was compared -> whether it is equal. machine: how it differs from the one that the run was made on.
    """

    run: str
    path: str
    start: int
    against: str
    steps: list[StepTrace]
    others: dict[int, float]
    same: dict[str, bool]
    machine: str
    verdict: Verdict

    @property
    def exit_code(self) -> int:
        """0, or that of a checkpoint that does not do what it should."""
        return CheckpointError.exit_code if self.verdict == "different" else 0


def run(config: CheckConfig) -> ResumeCheck:
    """Continue a copy of a run: from the checkpoint before the last up to the last, which it must equal; or, for
    another number of steps, where no two are kept, or where the length of the run was decided anew between them, as by
    the clock of one that is to fit into a time, twice from the same checkpoint. The run is not touched.

    Raises:
        CheckpointError: there is nothing to resume.
        TxtgenError: whatever would stop the run, such as a changed corpus.
    """
    folder = RunFolder(find_run(config.run, config.runs_path))
    found = _readable(folder)
    (last, newest, latest_horizon), (start, path, horizon) = found[0], found[-1]
    straight, left = horizon == latest_horizon, horizon.steps - start
    # A finished run has no steps left: beyond its end it is only compared with itself.
    wanted = min(config.steps or (last - start) or STEPS, left or STEPS)
    first = _continued(path, wanted, config.device)
    lines = {line["step"]: line for line in read_lines(folder.metrics, [], containing='"loss"')}
    known = [trace.step for trace in first.traces if straight and trace.step <= last]
    noted = {step: lines[step] for step in known if step in lines}
    same = {}
    if noted:
        same["losses in metrics.jsonl"] = all(noted[t.step]["loss"] == t.loss for t in first.traces if t.step in noted)
    others = {step: float(line["loss"]) for step, line in noted.items()}
    if straight and start + wanted == last:
        against = "the run itself"
        same |= _compared(first.end, load_checkpoint(newest, training=True))
    else:
        against = "a second continuation"
        second = _continued(path, wanted, config.device)
        same |= {
            "batches": [trace.batch for trace in first.traces] == [trace.batch for trace in second.traces],
            "losses": first.traces == second.traces,
            **_compared(first.end, second.end),
        }
        others = {trace.step: trace.loss for trace in second.traces} | others
    return ResumeCheck(
        run=str(folder.path),
        path=str(path),
        start=start,
        against=against,
        steps=first.traces,
        others=others,
        same=same,
        machine=first.machine,
        verdict=_verdict(first, others, same),
    )


def _readable(folder: RunFolder) -> list[tuple[int, Path, Horizon]]:
    """The newest two step checkpoints that can be read, the newest first, or the one that there is; each with its step
    and its horizon."""
    found: list[tuple[int, Path, Horizon]] = []
    for step, path in reversed(folder.steps()):
        try:
            checkpoint = load_checkpoint(path, training=True)
        except CheckpointError:
            continue
        found.append((step, path, _horizon(checkpoint)))
        if len(found) == 2:
            break
    if not found:
        raise CheckpointError("no checkpoint to resume from", str(folder.path), "name a run that has saved")
    return found


def _horizon(checkpoint: Checkpoint) -> Horizon:
    """How long the run is to be by its checkpoint, and how that was decided."""
    assert checkpoint.training is not None
    return horizon_of(checkpoint.training, config_of(checkpoint, []).train)


@dataclass(frozen=True)
class Continuation:
    """What happened when a checkpoint was continued, and the checkpoint that it would have saved at its end."""

    traces: list[StepTrace]
    end: Checkpoint
    machine: str


def _continued(path: Path, steps: int, device_name: str) -> Continuation:
    """Continue a checkpoint in a folder of its own, which is removed again."""
    checkpoint = load_checkpoint(path, training=True)
    config, end_step = config_of(checkpoint, []), checkpoint.lineage["step"] + steps
    if end_step > _horizon(checkpoint).steps:
        longer = config.train.model_copy(update={"steps": end_step, "minutes": None})
        config = config.model_copy(update={"train": longer})
    device = select_device(device_name if device_name != "auto" else config.device)
    machine = differing(checkpoint, config.train, device, World())
    traces: list[StepTrace] = []
    hashes: list[str] = []
    with TemporaryDirectory(prefix="txtgen-check-") as place, ProgressDisplay(0, quiet=True) as display:
        folder = RunFolder(Path(place))
        folder.checkpoints.mkdir()
        start = Start(folder, World(), device, checkpoint)
        if isinstance(config, PretrainConfig):
            job = pretrain.build(config, start, display)
        else:
            job = finetune.build(config, start, display)
        session = Session(job, display, Journal(job))
        with (
            session.saving,
            closing(session.batches(session.reading)) as batches,
        ):
            seen = _hashed(batches, hashes)
            reports = train(session.state, seen, config.train, dtype=job.dtype, seed=config.seed, loss=job.loss)
            for report in islice(reports, steps):
                traces.append(StepTrace(report.step, hashes[-1], report.loss, report.grad_norm))
            end = session.saving.checkpoint(session.progress())
    return Continuation(traces, end, machine)


def _hashed(batches: Iterator[Batch], hashes: list[str]) -> Iterator[Batch]:
    for batch in batches:
        digest = hashlib.sha256()
        for field in fields(Batch):
            value = getattr(batch, field.name)
            if isinstance(value, torch.Tensor):
                digest.update(f"{field.name}{list(value.shape)}".encode())
                digest.update(value.numpy().tobytes())
        hashes.append(digest.hexdigest()[:16])
        yield batch


def _compared(one: Checkpoint, other: Checkpoint) -> dict[str, bool]:
    """Whether the parts of two checkpoints are equal, bit for bit."""
    ours, theirs = one.training or {}, other.training or {}
    weights = equal(one.model, other.model) and equal(ours.get("weights"), theirs.get("weights"))
    return {
        "weights": weights,
        "optimizer": equal(ours["optimizer"], theirs["optimizer"]),
        "place in the data": equal(ours["bookmark"], theirs["bookmark"]),
        "tokens": ours["tokens"] == theirs["tokens"],
    }


def equal(one: Any, other: Any) -> bool:
    """Whether two trees of dicts, lists, tensors and plain values are equal, bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _verdict(found: Continuation, others: dict[int, float], same: dict[str, bool]) -> Verdict:
    """On another machine than the run's, only data and tokens are promised exactly, losses to rounding."""
    if all(same.values()):
        return "exact"
    promised = [name for name in ("batches", "place in the data", "tokens") if name in same]
    near = all(
        abs(trace.loss - others.get(trace.step, trace.loss)) <= ROUNDING * abs(trace.loss) for trace in found.traces
    )
    return "equal to rounding" if found.machine and near and all(same[name] for name in promised) else "different"
