"""`--dry-run`: what a run would read, hold, compute, write and take, told before it begins."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from txtgen.commands.devices import select_device
from txtgen.commands.running.job import Job
from txtgen.commands.running.journal import Journal
from txtgen.commands.running.probe import StepTimes, first_batch, time_samples, time_saves, time_steps, time_validation
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.running.session import Session
from txtgen.commands.running.starting import Start
from txtgen.commands.showing.console import ProgressDisplay
from txtgen.config.runs import RunConfig
from txtgen.config.train import TrainConfig
from txtgen.data import Batch, corpus_statistics, describe, require_files
from txtgen.distributed import World, open_world
from txtgen.errors import ResourceError
from txtgen.memory import give_back_free_memory
from txtgen.model import Transformer, count_parameters
from txtgen.train import MemoryEstimate, count_flops, estimate_memory, matrix_peak, micro_batches


@dataclass(frozen=True, slots=True)
class Section:
    """A few facts under one title. Names of numbers say their unit: _bytes, _seconds, _share, else they are counted."""

    title: str
    facts: dict[str, Any]


def outlook(
    config: RunConfig, sketch: Callable[[World], Transformer], prepare: Callable[[Start, ProgressDisplay], Job]
) -> Iterator[Section]:
    """What a run would cost, section by section; the later ones train a few steps in a folder that is then removed.

    All ranks of the run do it together, and what they take is measured; rank 0 has the sections.

    Args:
        config: of the run.
        sketch: makes the model, on the meta device; its vocabulary may be a guess, for the tokenizer need not be
            trained yet; it tells early whether there is room.
        prepare: makes the run ready.

    Raises:
        ResourceError: the run does not fit on the device or on the disk.
        TxtgenError: as the run itself would.
    """
    device = select_device(config.device)
    libraries = None if device.type == "cuda" else _proc_bytes("VmRSS")
    with open_world(device, config.train.rank_timeout_seconds) as world:
        for section in _sections(config, sketch(world), prepare, device, world, libraries):
            if world.is_main:
                yield section


def _sections(
    config: RunConfig,
    model: Transformer,
    prepare: Callable[[Start, ProgressDisplay], Job],
    device: torch.device,
    world: World,
    libraries: int | None,
) -> Iterator[Section]:
    world.from_main(lambda: require_files(config.data))
    yield Section("corpus", _corpus(config))
    with ExitStack() as made, world.together():
        folder = RunFolder(Path(world.from_main(lambda: made.enter_context(_folder(Path(config.runs_path))))) / "run")
        start = Start(folder, world, device, None)
        try:
            start.require_memory(model, config.train)
        except ResourceError:
            yield Section("parameters", _parameters(model, config.train, world))
            raise
        if world.is_main:
            folder.checkpoints.mkdir(parents=True)
        started = time.perf_counter()
        job = prepare(start, ProgressDisplay(config.train.steps, quiet=True))
        yield from _measured(job, started, libraries)


def _folder(runs_path: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder for as long as it takes, where the run's would be."""
    place = next(path for path in (runs_path, *runs_path.absolute().parents) if path.is_dir())
    return tempfile.TemporaryDirectory(prefix=".txtgen-dry-run-", dir=place)


def _measured(job: Job, started: float, libraries: int | None) -> Iterator[Section]:
    """The sections that need the model and real batches.

    What memory is measured is the most that steps, validation, samples and saves take: what the run will need.

    Args:
        job: ready to run.
        started: when preparing it began.
        libraries: bytes of the process before that; None: they are not known, or not where the model computes.
    """
    config = job.config.train
    yield Section("parameters", _parameters(job.model, config, job.world))
    session = Session(job, ProgressDisplay(config.steps, quiet=True), Journal(job))
    job.world.from_main(session.saving.require_room)
    session.journal.begin(0, session.reading)
    with session.saving:
        batch = first_batch(session)
        prepared = time.perf_counter() - started
        estimates = {
            name: estimate_memory(job.model, session.state.optimizer, batch, config, dtype, job.loss)
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        }
        yield Section("disk", _disk(session))
        give_back_free_memory()
        _forget_peak(job.device)
        steps = time_steps(session, job.world.max(batch.input_ids.shape[0]))
        flops = count_flops(job.model).of(batch) / batch.num_tokens
        spent = _time(session, steps, prepared, flops)
        memory, peak = _memory(session, estimates, libraries), _peak_bytes(job.device)
        if peak is not None and steps.row_share == 1.0:
            memory["measured_bytes"] = peak
        yield Section("memory", memory)
        yield Section("step", _step(job, batch, steps, flops))
        yield Section("time", spent)


def _memory(session: Session, estimates: dict[str, MemoryEstimate], libraries: int | None) -> dict[str, int]:
    """What is held while a step is computed, part by part, and all of it in each dtype."""
    job, config = session.job, session.job.config.train
    own = estimates[str(job.dtype).removeprefix("torch.")]
    beside = {
        "average": own.gradients if config.ema_decay is not None else 0,  # of what is learnt, as they are
        "copy_to_save": session.saving.sizes()[0] if config.save_in_background and job.device.type == "cpu" else 0,
        "libraries": libraries or 0,
    }
    parts = {part: size for part, size in {**asdict(own), **beside}.items() if size}
    totals = {"total": own} | {f"total_in_{name}": estimate for name, estimate in estimates.items()}
    sizes = parts | {name: estimate.total + sum(beside.values()) for name, estimate in totals.items()}
    ranks = {} if job.world.size == 1 else {"each_of_ranks": job.world.size}
    return ranks | {f"{name}_bytes": size for name, size in sizes.items()}


def _corpus(config: RunConfig) -> dict[str, Any]:
    return {
        f"source {number}": f"{source.name}: {source.files:,} files, {source.num_bytes:,} bytes"
        for number, source in enumerate(describe(config.data))
    }


def _parameters(model: Transformer, config: TrainConfig, world: World) -> dict[str, Any]:
    trained = sum(weights.numel() for weights in model.parameters() if weights.requires_grad)
    facts = {**count_parameters(model), "trained": trained}
    if world.size == 1:
        return facts
    parts = world.size if config.sharding == "shard" else 1
    return {**facts, "held_by_a_rank": -(-facts["total"] // parts)}


def _step(job: Job, batch: Batch, steps: StepTimes, flops: float) -> dict[str, Any]:
    """What a step is made of, and how far the steps reach. flops: of a token."""
    config = job.config.train
    sources = corpus_statistics(job.config.data, job.tokenizer, job.source_tokenizer, seed=job.config.seed)
    count = steps_within(config, steps.seconds)
    per_epoch = sum(source.estimated_tokens + source.estimated_documents for source in sources)
    return {
        "tokens_per_step": round(steps.positions),
        "micro_batches": len(list(micro_batches(batch, config.micro_batch_tokens))),
        "flops_per_token": round(flops),
        "steps": count,
        "tokens_in_all": round(steps.positions * count),
        "steps_per_epoch": round(per_epoch / steps.positions),
        "epochs": round(steps.positions * count / per_epoch, 2),
    }


def _disk(session: Session) -> dict[str, Any]:
    whole, model, kept = session.saving.sizes()
    return {
        "checkpoint_bytes": whole,
        "best_model_bytes": model,
        "kept_checkpoints": kept,
        "run_bytes": kept * whole + model,
    }


def _time(session: Session, steps: StepTimes, prepared: float, flops: float) -> dict[str, Any]:
    """Seconds of everything that a run does, and of all of it. flops: of a token."""
    job, config, samples = session.job, session.job.config.train, session.job.config.samples
    validation, base = time_validation(session)
    sample, (save, best) = time_samples(session), time_saves(session)
    rate = flops * steps.positions / steps.seconds / job.world.size
    count = steps_within(config, steps.seconds)
    validations = times(count, config.validate_every)
    sampled = count // samples.every if samples.every else validations
    total = (
        prepared
        + base
        + count * steps.seconds
        + validations * (validation + (best if session.validation.text.parts else 0.0))
        + sampled * sample
        + times(count, config.save_every) * save
    )
    facts = {
        "preparing_seconds": prepared,
        "step_seconds": steps.seconds,
        "tokens_per_second": steps.positions / steps.seconds,
        "model_flop_utilisation_share": rate / matrix_peak(job.device, job.dtype),
        **({"validation_seconds": validation} if session.validation.measures else {}),
        **({"samples_seconds": sample} if samples.prompts else {}),
        "save_seconds": save,
        "total_seconds": total if config.minutes is None else min(total, prepared + 60 * config.minutes),
    }
    return facts if steps.row_share == 1.0 else {**facts, "reckoned_from_rows_share": steps.row_share}


def steps_within(config: TrainConfig, seconds: float) -> int:
    """The steps of a run, or those of so many seconds that its minutes allow."""
    return config.steps if config.minutes is None else min(config.steps, int(60 * config.minutes / seconds))


def times(steps: int, every: int) -> int:
    """How often something happens that is due every so many steps (0: never), and at the end."""
    return (-(-steps // every) if every else 1) if steps else 0


def _forget_peak(device: torch.device) -> None:
    """Let the peak of memory begin anew, where that can be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return


def _peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _proc_bytes("VmHWM")


def _proc_bytes(key: str) -> int | None:
    """What Linux says of this process, None elsewhere."""
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    found = [line.split() for line in lines if line.startswith(key + ":")]
    return 1024 * int(found[0][1]) if found else None
