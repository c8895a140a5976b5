"""Signals in every phase of a run: what is worth finishing is finished and saved, all else stops at once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import pytest
import torch

import txtgen.commands.pretrain
import txtgen.train.loss
from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands.running import measuring, signals, validation
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.running.sampling import Samples
from txtgen.commands.running.signals import Interrupted, StopRequest, interruptible, listen
from txtgen.distributed import World

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}


def status(name: str = "a") -> dict:
    return json.loads(Path(f"runs/{name}/status.json").read_text())


def leftovers() -> list[Path]:
    return list(Path("runs").rglob("*.tmp.*"))


def before(monkeypatch, where, name: str, action, nth: int = 1) -> None:
    """Do something in the midst of a run: as its nth call of a function begins."""
    original, calls = getattr(where, name), count(1)

    def acting(*arguments, **options):
        if next(calls) == nth:
            action()
        return original(*arguments, **options)

    monkeypatch.setattr(where, name, acting)


# -- where nothing is lost


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_before_training_stops_at_once(workshop, capfd, monkeypatch, number) -> None:
    before(monkeypatch, txtgen.commands.pretrain, "begin", lambda: os.kill(os.getpid(), number))
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == CODES[number]
    assert (status()["state"], status()["exit_code"]) == ("interrupted", CODES[number])
    assert number.name in status()["reason"]
    assert "Traceback" not in capfd.readouterr().err
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "2"]) == 0  # nothing is in its way


def test_a_signal_does_not_wait_for_the_tokenizer_to_be_trained(workshop, monkeypatch) -> None:
    end = threading.Event()

    def trains_for_long(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        end.wait(60)

    monkeypatch.setattr(txtgen.commands.pretrain, "train_sentencepiece", trains_for_long)
    started = time.monotonic()
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 143
    assert time.monotonic() - started < 50
    end.set()
    assert status()["state"] == "interrupted"


# -- while it trains


def in_a_step(monkeypatch, action) -> None:
    before(monkeypatch, txtgen.train.loss, "batch_loss", action, nth=3)


def in_validation(monkeypatch, action) -> None:
    before(monkeypatch, measuring, "evaluate_loss", action)


def in_sampling(monkeypatch, action) -> None:
    original, calls = Samples.generate, count()

    def samples(self):
        found = original(self)
        return found if next(calls) == 0 else acting(found)  # the first time only looks whether the prompts fit

    def acting(found):
        action()
        yield from found

    monkeypatch.setattr(Samples, "generate", samples)


def in_a_save(monkeypatch, action) -> None:
    before(monkeypatch, torch, "save", action, nth=2)


def in_the_last_save(monkeypatch, action) -> None:
    original = torch.save

    def save(content, handle):
        if content["training"] is not None and content["training"]["step"] == 6:
            action()
        return original(content, handle)

    monkeypatch.setattr(torch, "save", save)


PHASES = {in_a_step: 3, in_validation: 3, in_sampling: 3, in_a_save: None, in_the_last_save: 6}
CASES = [
    (in_a_step, signal.SIGINT),
    (in_a_step, signal.SIGTERM),
    (in_a_step, signal.SIGHUP),
    (in_validation, signal.SIGINT),
    (in_sampling, signal.SIGHUP),
    (in_a_save, signal.SIGTERM),
    (in_the_last_save, signal.SIGINT),
]


@pytest.mark.parametrize(("phase", "number"), CASES, ids=lambda value: getattr(value, "__name__", None) or value.name)
def test_a_signal_finishes_the_step_and_saves_and_the_run_goes_on_as_if_nothing_had_been(
    workshop, trained, capfd, monkeypatch, phase, number
) -> None:
    assert_stops_and_goes_on(trained, capfd, monkeypatch, phase, number)


@pytest.mark.parametrize("phase", [in_a_step, in_validation, in_the_last_save])
def test_so_it_does_where_processes_read_ahead_and_none_of_them_stays(
    workshop, trained, capfd, monkeypatch, phase
) -> None:
    assert_stops_and_goes_on(trained, capfd, monkeypatch, phase, signal.SIGTERM, "--set", "data.workers=2")
    assert not multiprocessing.active_children()


def assert_stops_and_goes_on(trained, capfd, monkeypatch, phase, number, *arguments: str) -> None:
    with monkeypatch.context() as patch:
        phase(patch, lambda: os.kill(os.getpid(), number))
        assert run(["pretrain", "decoder.yaml", "--name", "a", *arguments]) == CODES[number]
    assert not multiprocessing.active_children()
    assert "Traceback" not in capfd.readouterr().err
    last = load_checkpoint(Path("runs/a/last.pth"), training=True)
    assert PHASES[phase] in (None, last.training["step"])
    done = last.training["step"] == 6
    assert (status()["state"], status()["exit_code"]) == ("finished" if done else "interrupted", CODES[number])
    assert (status()["reason"], status()["step"]) == (number.name, last.training["step"])
    assert not leftovers()
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    ours, theirs = (load_checkpoint(folder / "last.pth") for folder in (Path("runs/a"), trained / "runs" / "decoder"))
    assert all(torch.equal(ours.model[name], theirs.model[name]) for name in theirs.model)
    assert status()["state"] == "finished"
    assert status()["exit_code"] == 0


def test_a_signal_breaks_off_a_translation(workshop, trained, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        before(patch, validation, "translate_pairs", lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(["pretrain", "translator.yaml", "--name", "a"]) == 143
    assert load_checkpoint(Path("runs/a/last.pth"), training=True).training["step"] == 2
    assert "val_loss" not in Path("runs/a/metrics.jsonl").read_text()
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    both = (Path("runs/a"), trained / "runs" / "translator")
    ours, theirs = ([json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in both)
    found = [{line["step"]: line["val_bleu"] for line in lines if "val_bleu" in line} for lines in (ours, theirs)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("phase", "background"),
    [(in_a_step, "false"), (in_a_save, "false"), (in_a_save, "true"), (in_the_last_save, "true")],
)
def test_a_second_signal_stops_at_once_and_harms_nothing(
    workshop, trained, capfd, monkeypatch, phase, background
) -> None:
    received, receive = [], StopRequest.receive

    def counting(*arguments) -> None:
        try:
            receive(*arguments)
        finally:
            received.append(arguments)  # only now: a handler may be interrupted by the next one

    def twice() -> None:
        """From any thread: the main one gets a signal when it next comes to Python."""
        for number in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 30
            while len(received) < number and time.monotonic() < deadline:
                time.sleep(0.01)

    monkeypatch.setattr(StopRequest, "receive", counting)
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        phase(patch, twice)
        saving = ["--set", f"train.save_in_background={background}"]
        assert run(["pretrain", "decoder.yaml", "--name", "a", *saving]) == 130
    error = capfd.readouterr().err
    assert "once more stops at once" in error
    assert "Traceback" not in error
    assert (status()["state"], status()["exit_code"]) == ("interrupted", 130)
    assert "at once" in status()["reason"]
    assert not leftovers()
    _, checkpoint, warnings = RunFolder(Path("runs/a")).newest()
    assert not warnings
    assert checkpoint.training["step"] < 6
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    ours, theirs = (load_checkpoint(folder / "last.pth") for folder in (Path("runs/a"), trained / "runs" / "decoder"))
    assert all(torch.equal(ours.model[name], theirs.model[name]) for name in theirs.model)


# -- the request itself


def test_what_terminal_and_launcher_pass_on_together_is_one_request() -> None:
    now = [0.0]
    request = StopRequest(lambda: now[0])
    with request.deferred():
        request.receive(signal.SIGINT, None)
        now[0] = 0.1
        request.receive(signal.SIGTERM, None)
        assert request.signal == "SIGINT"
        now[0] = 2.0
        with pytest.raises(Interrupted) as stop:
            request.receive(signal.SIGTERM, None)
    assert stop.value.exit_code == 143


def test_a_signal_of_which_another_rank_has_told_is_no_second_one() -> None:
    now = [0.0]
    request = StopRequest(lambda: now[0])
    with request.deferred():
        request.signal = "SIGTERM"  # as the loop sets it
        request.receive(signal.SIGTERM, None)
        now[0] = 2.0
        with pytest.raises(Interrupted):
            request.receive(signal.SIGTERM, None)


def test_a_part_that_may_be_broken_off_is_within_one_that_is_finished() -> None:
    request = StopRequest()
    with request.deferred():
        with pytest.raises(Interrupted), request.deferred(False):
            request.receive(signal.SIGTERM, None)
        assert request
    before = signal.getsignal(signal.SIGTERM)
    with listen():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listen() as request:
            signal.raise_signal(signal.SIGHUP)
            assert not request
    finally:
        signal.signal(signal.SIGHUP, before)


def test_off_the_main_thread_nobody_listens() -> None:
    def listens() -> bool:
        with listen() as request:
            return bool(request)

    assert interruptible(listens) is False
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_real_process_is_not_aborted_by_a_tokenizer_in_training(workshop, moment) -> None:
    """SentencePiece reads from Python in a thread of its own, which knows nothing of the end."""
    Path("text/a.txt").write_text("".join(f"word{number} and {number * 7}\n" for number in range(40_000)))
    command = [sys.executable, "-m", "txtgen", "pretrain", "text/a.txt", "--steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        limit = time.monotonic() + 60
        while not list(Path("runs").glob("*/status.json")) and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
    assert (process.returncode, "terminate" in told) == (130, False), told


def test_a_signal_while_the_ranks_agree_is_not_forgotten(workshop, monkeypatch) -> None:
    """It comes after this rank has said that there is none."""
    original, calls = World.max, count(1)

    def agreeing(self: World, value: int) -> int:
        found = original(self, value)
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(World, "max", agreeing)
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 143
    assert status()["state"] == "interrupted"
