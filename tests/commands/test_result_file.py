"""Results in a file: the whole file or none, whatever happens on the way, and nothing of another job."""

import errno
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked import ForkServer

from txtgen import processes
from txtgen.cli import run
from txtgen.commands.prompting.prompted import PromptJob
from txtgen.commands.prompting.result_file import ResultFile
from txtgen.commands.showing.console import PromptsDisplay
from txtgen.config.commands import GenerateConfig
from txtgen.errors import BusyError, ResourceError
from txtgen.native import UnavailableError

JOB = {"model": "a", "decoding": {"temperature": 0.5}}
TEXTS = {number: f"{number} ü\u2028\n" for number in range(9)}
BATCHES = [[4, 1, 0], [2, 3], [8, 5], [6, 7]]


def complete(path: Path, job=JOB, overwrite=False) -> list[list[int]]:
    """Do the job, or what is left of it. Returns the batches that were left."""
    with ResultFile(path, overwrite) as file:
        file.begin(job, len(TEXTS))
        left = [batch for batch in BATCHES if not file.texts.keys() >= set(batch)]
        for batch in left:
            file.add({number: TEXTS[number] for number in batch})
        file.finish(len(TEXTS))
    return left


def interrupted(path: Path, batches: int, job=JOB, overwrite=False) -> None:
    """Do so many batches of the job."""
    with ResultFile(path, overwrite) as file:
        file.begin(job, len(TEXTS))
        for batch in BATCHES[:batches]:
            file.add({number: TEXTS[number] for number in batch})


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "out.txt"


def journal_of(path: Path) -> Path:
    return path.with_name("out.txt.partial") / "results.jsonl"


WHOLE = "".join(TEXTS.values()).encode()


def test_results_in_any_order_make_a_file_in_order_and_leave_nothing_else(path) -> None:
    assert complete(path) == BATCHES
    assert path.read_bytes() == WHOLE
    assert list(path.parent.iterdir()) == [path]


def test_a_job_that_ended_after_any_byte_goes_on(path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the test is of bytes, not of the disk
    interrupted(path, 4)
    journal = journal_of(path).read_bytes()
    ends = [place + 1 for place, byte in enumerate(journal) if byte == ord("\n")]
    for size in {*range(0, len(journal), 4), *ends, *(end - 1 for end in ends)}:
        path.unlink(missing_ok=True)
        journal_of(path).parent.mkdir(exist_ok=True)
        journal_of(path).write_bytes(journal[:size] + (b"\0" * 5 if size % 3 == 1 else b""))
        done = max(0, sum(end <= size for end in ends) - 1)
        assert complete(path) == BATCHES[done:]
        assert path.read_bytes() == WHOLE
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "line", [b"[]\n", b'{"x": "y"}\n', b'{"9": "y"}\n', b'{"0": 1}\n', b"{" * 9999 + b"\n", b"\xff\n"]
)
def test_lines_that_are_not_ours_are_dropped(path, line) -> None:
    interrupted(path, 2)
    with open(journal_of(path), "ab") as handle:
        handle.write(line + b'\n{"8": "forged"}\n')
    assert complete(path) == BATCHES[2:]
    assert path.read_bytes() == WHOLE


def test_a_job_that_ended_before_its_folder_was_removed_is_done(path, monkeypatch) -> None:
    unlink = Path.unlink

    def killed(self: Path, **more: bool) -> None:
        if self == journal_of(path):
            raise SystemExit
        unlink(self, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(SystemExit):
            complete(path)
    assert path.read_bytes() == WHOLE
    assert journal_of(path).exists()
    assert complete(path) == []
    assert path.read_bytes() == WHOLE
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_there_stays(path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(BusyError, match=r"out\.txt; choose another --output, or give --overwrite"):
        complete(path)
    assert path.read_bytes() == b"precious"
    assert list(path.parent.iterdir()) == [path]
    interrupted(path, 1, overwrite=True)
    with pytest.raises(BusyError, match="there already"):
        complete(path)
    assert path.read_bytes() == b"precious"
    assert complete(path, overwrite=True) == BATCHES[1:]
    assert path.read_bytes() == WHOLE


def test_a_file_that_comes_meanwhile_stays(path) -> None:
    interrupted(path, 4)
    path.write_bytes(b"precious")
    with pytest.raises(BusyError, match="there already"):
        complete(path)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("place", ["folder", "device"])
def test_what_is_no_file_stays(tmp_path, place) -> None:
    path = tmp_path if place == "folder" else Path(os.devnull)
    with pytest.raises(BusyError, match="no file"):
        complete(path, overwrite=True)


def test_results_of_another_job_are_kept_unless_they_are_not_wanted(path) -> None:
    interrupted(path, 3)
    other = {**JOB, "decoding": {"temperature": 0.7}}
    with pytest.raises(BusyError, match=r'decoding was {"temperature": 0\.5}, now {"temperature": 0\.7}') as told:
        complete(path, other)
    assert "--overwrite" in str(told.value)
    assert journal_of(path).exists()
    assert complete(path, other, overwrite=True) == BATCHES
    interrupted(path, 0, overwrite=True)
    assert not path.with_name("out.txt.partial").exists(), "a job without results has nothing to go on from"


def test_nobody_else_writes_meanwhile(path) -> None:
    interrupted(path, 1)
    with ResultFile(path, overwrite=False) as file:
        file.begin(JOB, len(TEXTS))
        for overwrite in (False, True):
            with pytest.raises(BusyError, match=f"the output is in use by process {os.getpid()}"):
                complete(path, overwrite=overwrite)
    assert complete(path) == BATCHES[1:]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_stays(path, overwrite) -> None:
    precious = path.with_name("out.txt.partial") / "deep" / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"years of work")
    with pytest.raises(BusyError, match=r"something else, such as deep; .*out\.txt\.partial; move it away"):
        complete(path, overwrite=overwrite)
    assert list(path.parent.rglob("*")) == [precious.parent.parent, precious.parent, precious]


def test_what_comes_into_the_folder_meanwhile_stays(path) -> None:
    with ResultFile(path, overwrite=False) as file:
        file.begin(JOB, len(TEXTS))
        (file.folder / "precious").write_bytes(b"years of work")
    assert (file.folder / "precious").read_bytes() == b"years of work"
    assert not journal_of(path).exists()


def test_the_journal_is_closed_before_it_goes(path, monkeypatch) -> None:
    """Else Windows would not let go of it."""
    unlink, opened = Path.unlink, []

    def careful(self: Path, **more: bool) -> None:
        if self == journal_of(path):
            opened.extend(os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        unlink(self, **more)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs Linux")
    monkeypatch.setattr(Path, "unlink", careful)
    complete(path)
    assert opened
    assert str(journal_of(path)) not in opened


def test_a_full_disk_is_told_and_what_was_kept_stays(path, monkeypatch) -> None:
    interrupted(path, 2)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="the disk is full"):
            complete(path)
    with pytest.raises(ResourceError, match="cannot write"):
        complete(path.parent / "missing" / "out.txt")
    assert complete(path) in (BATCHES[2:], BATCHES[3:])
    assert path.read_bytes() == WHOLE


def test_progress_without_a_terminal_is_a_line_now_and_then(capfd) -> None:
    seconds = iter([0.0, 1.0, 6.0, 10.0, 12.0, 14.0])
    with PromptsDisplay(40, done=20, clock=lambda: next(seconds)) as display:
        for _ in range(4):
            display.add(4, 90)
        summary = display.summary()
    assert capfd.readouterr().err.splitlines() == [
        "prompts 28/40  30 tok/s  left 0:09",
        "prompts 36/40  30 tok/s  left 0:03",
    ]
    assert summary == "16 prompts, 26 tok/s, 0:14"


# -- of a model


@pytest.fixture(scope="module")
def place(trained, tmp_path_factory) -> Path:
    """A folder with models and files of prompts."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "runs").symlink_to(trained / "runs")
    words = ("the cat", "a dog sees", "", "the sun and the sea", "fox")
    lines = [f"{words[number % 5]}{' the' * (number % 4)}" for number in range(60)]
    (folder / "in.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


SAMPLED = ["--strategy", "sample", "--max-new-tokens", "6", "--num-return", "2", "--seed", "3", "--batch-size", "6"]


def command(place: Path, output: str, model: str = "decoder", *more: str) -> list[str]:
    options = SAMPLED if model == "decoder" else ["--batch-size", "3"]
    files = ["--input", str(place / "in.txt"), "--output", str(place / output)]
    return ["generate", str(place / "runs" / model), *files, *options, *more]


@pytest.mark.parametrize("model", ["decoder", "translator"])
def test_a_file_has_what_standard_output_has(place, capfd, model) -> None:
    capfd.readouterr()
    straight = command(place, f"{model}.txt", model)
    assert run(straight) == 0
    written = capfd.readouterr()
    assert written.out == ""
    assert "60 prompts" in written.err
    without = [part for part in straight if part not in ("--output", str(place / f"{model}.txt"))]
    assert run(without) == 0
    assert (place / f"{model}.txt").read_bytes().decode() == capfd.readouterr().out
    assert run(straight) == 9
    assert "there already" in capfd.readouterr().err


def test_what_changes_the_results_is_another_job(place, capfd, monkeypatch) -> None:
    def stopped(self: ResultFile, texts: dict) -> None:
        add(self, texts)
        raise KeyboardInterrupt

    add = ResultFile.add
    with monkeypatch.context() as patched:
        patched.setattr(ResultFile, "add", stopped)
        assert run(command(place, "changed.txt")) == 130
    told = capfd.readouterr().err
    assert "stopped: 3 of 60 prompts are kept; the same command goes on" in told
    for more, what in [
        (["--seed", "4"], "decoding was"),
        (["--batch-size", "5"], "batch_size was 6, now 5"),
        (["--json"], "json_output was false, now true"),
        (["--prompt", "one more"], "sha256 of the prompts"),
    ]:
        assert run(command(place, "changed.txt", "decoder", *more)) == 9
        assert what in capfd.readouterr().err
    other = command(place, "changed.txt", "translator", *SAMPLED)
    assert run(other) == 9
    assert "sha256 of the model" in capfd.readouterr().err
    assert run(command(place, "changed.txt")) == 0
    assert "3 of 60 prompts are done already" in capfd.readouterr().err


def test_what_computes_counts_and_not_how_it_was_asked_for(place, monkeypatch) -> None:
    def unavailable() -> None:
        raise UnavailableError("no compiler")

    def facts(**more) -> dict:
        config = GenerateConfig(model=str(place / "runs" / "decoder"), **more)
        return PromptJob(config, ["the cat"], lines=False).facts()

    usual = facts()
    assert usual["device"] == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    on_cpu = facts(device="cpu")
    assert facts(workers=2) == facts(device="cpu", workers=1) == on_cpu
    assert (usual == on_cpu) == (not torch.cuda.is_available())
    assert facts(device="cpu", native="off")["native"] is False
    if on_cpu["native"]:
        assert facts(device="cpu", native="require") == on_cpu
    compiled = facts(device="cpu", compile=True)
    assert (on_cpu["compile"], compiled["compile"], compiled["native"]) == (False, True, False)
    assert facts(workers=2, compile=True) == compiled
    monkeypatch.setattr("txtgen.model.stepping.load_library", unavailable)
    for workers in (0, 2):
        assert facts(device="cpu", workers=workers) == facts(device="cpu", native="off")


@pytest.mark.parametrize("model", ["decoder", pytest.param("translator", marks=pytest.mark.slow)])
def test_workers_give_the_same_file(place, model) -> None:
    for workers in ("0", "2"):
        assert run(command(place, f"{model}-{workers}.txt", model, "--workers", workers, "--json")) == 0
    one, two = ((place / f"{model}-{workers}.txt").read_text() for workers in ("0", "2"))
    assert one == two
    assert len(one.splitlines()) == (120 if model == "decoder" else 60)


def test_a_worker_that_is_killed_is_told(place, capfd, monkeypatch) -> None:
    receive = processes.Subprocess.receive

    def killing(self: processes.Subprocess) -> object:
        self._process.kill()
        self._process.join()
        while self._pipe.poll():  # what it may have sent before
            receive(self)
        return receive(self)

    monkeypatch.setattr(processes.Subprocess, "receive", killing)
    assert run(command(place, "lost.txt", "decoder", "--workers", "1")) == 8
    told = capfd.readouterr().err.splitlines()
    assert told == [
        "error: worker 0 was killed by SIGKILL; at 3 prompts, prompt 4 among them; if memory ran out, use fewer workers"
    ]


def test_an_output_that_cannot_be_written_is_told_before_a_model_is_read(place, capfd) -> None:
    assert run(["generate", "missing.pth", "--prompt", "x", "--output", str(place / "in.txt" / "out")]) == 6
    assert "cannot write" in capfd.readouterr().err
    assert run(["generate", "missing.pth", "--prompt", "x", "--overwrite"]) == 2
    assert "--output" in capfd.readouterr().err


# -- killed


@pytest.fixture(scope="module")
def server(place) -> Iterator[ForkServer]:
    if not hasattr(os, "fork") or not Path("/proc/self/fd").exists():
        pytest.skip("needs Linux")
    with ForkServer(place) as server:
        assert server.learn_imports(command(place, "straight.txt")) == 0, server.output()
        yield server


def kill_and_go_on(server: ForkServer, place: Path, name: str, draw: random.Random, *more: str) -> int:
    """Kill a job a moment after it has kept some more batches, until it ends before. Returns how often it was killed.

    Its file is that of the straight one.
    """
    output, journal = place / f"{name}.txt", place / f"{name}.txt.partial" / "results.jsonl"

    def kept() -> int:
        try:
            return journal.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    for kills in range(30):
        wanted = kept() + draw.choice([0, 1, 1, 2, 5, 9])
        pid = server.start(command(place, output.name, "decoder", *more))
        while kept() < wanted and not output.exists():
            time.sleep(0.002)
        time.sleep(draw.choice([0.0, 0.0, 0.01, 0.3]))
        os.kill(pid, signal.SIGKILL)
        assert server.wait(pid) in (-9, 0), server.output()
        assert not output.exists() or output.read_bytes() == (place / "straight.txt").read_bytes()
        if output.exists():
            # Killed before its end, or after it: then there is nothing left to do, and that is told.
            assert server.wait(server.start(command(place, output.name, "decoder", *more))) in (0, 9), server.output()
            assert output.read_bytes() == (place / "straight.txt").read_bytes()
            assert not journal.exists()
            return kills
    raise AssertionError("it never ends")


def test_a_job_that_is_killed_goes_on_with_the_same_command(server, place) -> None:
    assert kill_and_go_on(server, place, "killed", random.Random(1)) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "jobs"), [("0", 12), ("2", 2)])  # workers take seconds to start
def test_jobs_that_are_killed_over_and_over(server, place, workers, jobs) -> None:
    draw = random.Random(2)
    kills = sum(kill_and_go_on(server, place, f"{workers}-{n}", draw, "--workers", workers) for n in range(jobs))
    print(f"{kills} kills")
    assert kills > jobs
