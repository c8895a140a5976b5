"""Progress and messages on stderr, escaped; tables on stdout."""

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, TextIO, cast

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from txtgen.commands.showing.output import write_exact
from txtgen.config.train import UNLIMITED
from txtgen.errors import safe_text

if TYPE_CHECKING:  # a table needs no torch
    from txtgen.train import StepReport

PLAIN_LINE_SECONDS = 5.0
MIN_BAR = 12
"""Columns that a bar is worth drawing in."""
PIPED_WIDTH = 240
"""Columns of a table that no terminal bounds."""


class Terminal(io.TextIOBase):
    """Standard error, which may go away while a run goes on: from then on, what is written to it goes nowhere."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As standard error has it."""
        return getattr(self._file(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write if anybody is there to read."""
        file = self._file()
        if file is not None:
            try:
                file.write(text)
                file.flush()
            except (OSError, ValueError):
                self._lose(file)
        return len(text)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        file = self._file()
        return file is not None and not file.closed and file.isatty()

    def fileno(self) -> int:
        """The file's own number."""
        file = self._file()
        if file is None:
            raise OSError("there is no standard error")
        return file.fileno()

    def _file(self) -> TextIO | None:
        """Standard error itself, also while rich stands before it to keep its live line in order."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def _lose(self, file: TextIO) -> None:
        """What Python, or C++ below it, writes there later must not fail either."""
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class Display:
    """What a command shows on stderr while it works: a live line with a bar on a terminal, plain lines otherwise.

    Args:
        name: of what is counted.
        total: how many there will be; None: that is not decided.
        quiet: show nothing.
    """

    def __init__(self, name: str, total: int | None, quiet: bool = False) -> None:
        self.console = Console(file=cast(IO[str], Terminal()), highlight=False, emoji=False, markup=False, quiet=quiet)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._progress = Progress(_Row(), console=self.console, transient=True, expand=True)
        self._task = self._progress.add_task(name, total=total, figures=())
        self._display = Live(
            self._progress, console=self.console, transient=True, refresh_per_second=4, redirect_stdout=False
        )
        self._warnings = _Warnings(self)

    def __enter__(self) -> Self:
        """Start drawing, and show the warnings that the package logs."""
        logging.getLogger("txtgen").addHandler(self._warnings)
        if self.live:
            self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        logging.getLogger("txtgen").removeHandler(self._warnings)
        if self.live:
            self._display.__exit__(kind, error, trace)

    def note(self, message: str) -> None:
        """Show a line of plain text."""
        self.console.print(Text(safe_text(message)), soft_wrap=True)


class _Row(ProgressColumn):
    """A task on one line. How far it is and the time that is left are always there; where there is no room for all of
    its figures, the bar goes first, then the last figures."""

    def __init__(self) -> None:
        super().__init__()
        self._count, self._left = MofNCompleteColumn(), TimeRemainingColumn()

    def render(self, task: Task) -> RenderableType:
        """The line, as wide as there is room."""
        head = Text.assemble(task.description, " ", cast(Text, self._count(task)))
        left = Text.assemble("  ", cast(Text, self._left(task)))
        return _Fitted(head, tuple(task.fields["figures"]), left, task.total, task.completed)


@dataclass(frozen=True)
class _Fitted:
    head: Text
    figures: tuple[str, ...]
    left: Text
    total: float | None
    completed: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts that there is room for."""
        room = options.max_width - self.head.cell_len - self.left.cell_len
        shown = ["".join(f"  {figure}" for figure in self.figures[:count]) for count in range(len(self.figures) + 1)]
        while len(shown) > 1 and cell_len(shown[-1]) > room:
            shown.pop()
        room -= cell_len(shown[-1])
        yield from self.head.render(console)
        if room > MIN_BAR and self.total is not None and len(shown) > len(self.figures):
            yield Segment(" ")
            yield ProgressBar(total=self.total, completed=self.completed, width=room - 1)
        yield Segment(shown[-1])
        yield from self.left.render(console)


class ProgressDisplay(Display):
    """What a training run shows."""

    def __init__(self, steps: int, quiet: bool = False) -> None:
        self.steps = steps if steps < UNLIMITED else None
        """How many there will be, once that is decided."""
        super().__init__("step", self.steps, quiet)
        self._validation: dict[str, str] = {}
        self._speed: list[str] = []
        self._rate = 0.0
        self._last_line = 0.0

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how far something is that comes before the steps. Gives what is to be called with how many more are
        done; it is told in plain lines if there is no live one."""
        task = self._progress.add_task(what, total=total, figures=())
        self._progress.update(self._task, visible=False)
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self._progress.update(task, completed=done)
            if not self.live and time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
                self._last_line = time.monotonic()
                self.note(f"{what} {done:,}/{total:,}")

        try:
            yield advance
        finally:
            self._progress.remove_task(task)
            self._progress.update(self._task, visible=True)

    def step(self, report: "StepReport") -> None:
        """Show a step: loss, learning rate, tokens per second, time left."""
        rate = report.positions / max(report.seconds, 1e-9)
        self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate
        figures = [f"loss {report.loss:.4f}", *self._validation.values(), f"{self._rate:,.0f} tok/s", *self._speed]
        if self.live:
            self._progress.update(self._task, completed=report.step, figures=figures)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_LINE_SECONDS or report.step in (1, self.steps):
            self._last_line = now
            line = "  ".join([*figures, f"lr {report.learning_rate:.2e}", f"grad {report.grad_norm:.2f}"])
            if self.steps is None:
                self.note(f"step {report.step}  {line}")
                return
            left = (self.steps - report.step) * report.positions / max(self._rate, 1e-9)
            self.note(f"step {report.step}/{self.steps}  {line}  left {duration(left)}")

    def speed(self, figures: dict[str, float]) -> None:
        """Keep in the live line how much of the machine is used, and how much of the time is waited for data."""
        waiting = [f"waiting {figures['data_wait_share']:.0%}"] if figures["data_wait_share"] >= 0.05 else []
        self._speed = [f"mfu {figures['mfu']:.0%}", *waiting]

    def fit(self, steps: int) -> None:
        """Show that the run is to have so many steps."""
        self.steps = steps
        self._progress.update(self._task, total=steps)

    def validation(self, metrics: dict[str, float]) -> None:
        """Show what validation found, and keep its loss, and how much is forgotten, in the live line."""
        if (loss := metrics.get("val_loss")) is not None:
            self._validation["val"] = f"val {loss:.4f}"
        if (forgotten := metrics.get("val_forgotten_bits_per_byte")) is not None:
            self._validation["forgotten"] = f"forgotten {forgotten:+.4f}"
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "step")
        self.note(f"validation  {shown}")

    def sample(self, prompt: str, text: str, joint: str = "") -> None:
        """Show a prompt and what was generated for it, the joint between them."""
        line = Text("sample  ", style="dim")
        line.append(safe_text(prompt), style="bold")
        line.append(joint, style="dim")
        line.append(safe_text(text))
        self.console.print(line)


class PromptsDisplay(Display):
    """What generation for many prompts shows: how many are done, tokens per second, time left.

    Args:
        total: prompts in all.
        done: those that were done before.
        quiet: show nothing.
        clock: tells seconds.
    """

    def __init__(
        self, total: int, done: int = 0, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__("prompts", total, quiet)
        self.total, self.done, self.tokens = total, done, 0
        self._clock, self._first = clock, done
        self._began = self._last_line = clock()

    def add(self, prompts: int, tokens: int) -> None:
        """Show that so many more prompts are done, by so many tokens."""
        self.done, self.tokens, now = self.done + prompts, self.tokens + tokens, self._clock()
        if self.live:
            self._progress.update(self._task, completed=self.done, figures=[self._rate(now)])
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            left = (now - self._began) * (self.total - self.done) / max(self.done - self._first, 1)
            self.note(f"prompts {self.done}/{self.total}  {self._rate(now)}  left {duration(left)}")

    def summary(self) -> str:
        """What was done here, in a few words."""
        now = self._clock()
        return f"{self.done - self._first} prompts, {self._rate(now)}, {duration(now - self._began)}"

    def _rate(self, now: float) -> str:
        return f"{self.tokens / max(now - self._began, 1e-9):,.0f} tok/s"


class _Warnings(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Show a warning."""
        self.display.note(f"warning: {record.getMessage()}")


def duration(seconds: float) -> str:
    """A time span for people, such as 1:02:03 or 4:05."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def tell(message: str, style: str) -> None:
    """Show a line of plain text on stderr where nothing else is shown, in a style such as dim or red."""
    console = Console(file=cast(IO[str], Terminal()), highlight=False, emoji=False, markup=False)
    console.print(Text(safe_text(message), style=style), soft_wrap=True)


def table(title: str, rows: dict[str, object]) -> None:
    """Print names and values to stdout."""
    grid = Table(title=title or None, show_header=False, box=None, pad_edge=False, title_justify="left")
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(Text(safe_text(name)), Text(safe_text(str(value))))
    _print(grid)


def columns(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]], spare: Sequence[str] = ()) -> None:
    """Print rows under heads to stdout; what begins with a digit stands at the right.

    spare: heads of columns that a terminal which is too narrow does without, as many as it must, in this order.
    """
    console, left_out = Console(), set[int]()
    for head in ("", *spare):
        left_out |= {heads.index(head)} if head else set()
        grid = Table(title=title or None, box=None, pad_edge=False, title_justify="left", header_style="bold")
        shown = [number for number in range(len(heads)) if number not in left_out]
        for number in shown:
            digits = any(str(row[number])[:1].isdigit() for row in rows)
            grid.add_column(heads[number], justify="right" if digits else "left", overflow="fold")
        for row in rows:
            grid.add_row(*(Text(safe_text(str(row[number]))) for number in shown))
        wanted = Measurement.get(console, console.options.update(max_width=10_000), grid).maximum
        if not console.is_terminal or wanted <= console.width:
            break
    _print(grid)


def marked(what: str, parts: Sequence[tuple[str, bool]], more: str = "") -> None:
    """Print parts of a text in one line to stdout, for a terminal: those that are marked in colour."""
    line = Text(f"{what}: ")
    for part, flag in parts:
        line.append(safe_text(part), style="bold green" if flag else "dim")
        line.append(" ")
    Console(highlight=False, emoji=False, markup=False).print(line.append(more))


def _print(grid: Table) -> None:
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    with console.capture() as shown:
        console.print(grid)
    # Only spaces are between the end of a row and that of its line.
    write_exact("".join(f"{line.rstrip()}\n" for line in shown.get().splitlines()))
