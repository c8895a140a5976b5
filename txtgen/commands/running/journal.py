"""What a run in progress writes down for people: metrics, samples, and what it is made of."""

import json
import logging
import os
import platform
import time
from dataclasses import asdict
from typing import Any

import txtgen
from txtgen.commands.running.board import Board
from txtgen.commands.running.job import Job
from txtgen.commands.running.resuming import environment
from txtgen.commands.running.run_record import read_object
from txtgen.commands.showing.page import write_page
from txtgen.data import StreamReport, corpus_statistics
from txtgen.generator import Generation
from txtgen.model import count_parameters

logger = logging.getLogger(__name__)


class Journal:
    """The notes of a run, written by rank 0 alone. No note that cannot be written stops the training."""

    def __init__(self, job: Job) -> None:
        self.job, self.folder = job, job.folder
        self.writes = job.world.is_main
        self._about: dict[str, Any] = {}
        """What run.json says."""
        self._reading = StreamReport()
        self._page_due, self._page_failed = 0.0, False
        self._board: Board | None = None

    def begin(self, step: int, reading: StreamReport) -> None:
        """Say in run.json what the run is, and from which step on and on what machine it goes on now.

        Args:
            step: after which it goes on.
            reading: what this start of it has met in its corpus, kept up to date by others.

        Raises:
            ResourceError: TensorBoard is asked for and missing.
        """
        if not self.writes:
            return
        job, self._reading = self.job, reading
        if job.config.train.tensorboard:
            self._board = Board(self.folder.path / "tensorboard", step)
        before = read_object(self.folder.about, [])
        starts = before.get("starts") if step else None
        self._about = {
            "command": job.command,
            "folder": os.getcwd(),  # where relative paths of the config lead from
            "base": getattr(job.config, "base", None),
            "parents": list(job.parents),
            "parameters": {
                **count_parameters(job.model),
                "trained": sum(weights.numel() for weights in job.model.parameters() if weights.requires_grad),
            },
            "tokenizer": {"kind": job.tokenizer.kind, "vocabulary": len(job.tokenizer)},
            "starts": [*(starts if isinstance(starts, list) else []), {"step": step, **self._machine()}],
        }
        if step and "corpus" in before and not job.start.accept_changes:
            self._about["corpus"] = before["corpus"]
        self._write_about()

    def go_back(self, step: int) -> None:
        """Forget what was noted of later steps, which are done again."""
        if not self.writes:
            return
        self.folder.forget_after(step)
        if self._board is not None:
            self._board.close()
            self._board = Board(self.folder.path / "tensorboard", step)

    def _write_about(self) -> None:
        self.folder.write_note(self.folder.about, json.dumps(self._about, indent=1) + "\n")

    def _tell_of_corpus(self) -> None:
        """Say in run.json what the corpus is like, once, and not before the first step, which that would delay."""
        if not self._about or "corpus" in self._about:
            return
        job, self._about["corpus"] = self.job, []
        found = corpus_statistics(job.config.data, job.tokenizer, job.source_tokenizer, seed=job.config.seed)
        self._about["corpus"] = [source.facts() for source in found]
        self._write_about()

    def _tell_of_reading(self) -> None:
        """Say in run.json what was met in the corpus since this start."""
        reading = asdict(self._reading)
        if self._about and self._reading.records and reading != self._about.get("reading"):
            self._about["reading"] = reading
            self._write_about()

    def page(self, *, now: bool = False) -> None:
        """Write report.html, if that is worth its time: it may take a hundredth of the run's, more only `now`."""
        started = time.monotonic()
        if not self.writes or (not now and started < self._page_due):
            return
        try:
            self._tell_of_corpus()
            self._tell_of_reading()
            started = time.monotonic()
            write_page(self.folder.path)
        except Exception as error:  # a page must never cost the run
            if not self._page_failed:
                logger.warning("report.html could not be written: %s", error)
            self._page_failed = True
        taken = time.monotonic() - started
        self._page_due = started + 100 * taken

    def _machine(self) -> dict[str, Any]:
        job = self.job
        return {
            "time": time.time(),
            "txtgen": txtgen.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            **environment(job.config.train, job.device, job.dtype, job.world),
        }

    def write(self, line: dict[str, Any]) -> None:
        """Note the metrics of a step, or of a validation."""
        if self.writes:
            self.folder.append(self.folder.metrics, line)
            if self._board is not None:
                self._board.scalars(line)

    def sample(self, step: int, generation: Generation) -> None:
        """Note what was generated for a prompt."""
        if self.writes:
            sample = {"step": step, "prompt": generation.prompt, "text": generation.text}
            self.folder.append(self.folder.samples, sample)
            if self._board is not None:
                self._board.text(generation.prompt, generation.prompt + generation.text, step)

    def close(self) -> None:
        """Write what is left to write: the page as it is now, and TensorBoard's files."""
        self.page(now=True)
        if self._board is not None:
            self._board.close()
