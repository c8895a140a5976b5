"""Processes that tokenise ahead: the same batches, and no process that outlives the run."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest
from data_fakes import FaultyTokenizer, data_config, objective_of, plain, write_jsonl, write_lines

from txtgen.config.objectives import CausalLmObjective
from txtgen.data import StreamReport, build_objective, merge_bookmarks, train_stream
from txtgen.errors import DataError, DistributedError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Lines, pairs and conversations, of several blocks each."""
    folder = tmp_path_factory.mktemp("corpus")
    write_lines(folder / "lines", [f"line {number} " * (1 + number % 7) for number in range(2000)])
    write_lines(folder / "tsv", [f"source {number}\ttarget {number * number}" for number in range(600)])
    chats = [
        [{"role": "user", "content": f"what is {n}?"}, {"role": "assistant", "content": "?" * n}] for n in range(50)
    ]
    write_jsonl(folder / "chat", [{"messages": messages} for messages in chats])
    return folder


def config_of(corpus, task):
    lines = {"path": f"{corpus}/lines", "documents": "line"}
    tsv = {"kind": "tsv", "path": f"{corpus}/tsv"}
    chat = {"kind": "chat", "path": f"{corpus}/chat"}
    match task:
        case "text":
            return data_config(lines, {"path": f"{corpus}/lines", "documents": "continuous"})
        case "chat":
            return data_config(chat, tsv, objective={"kind": "chat"})
        case "pairs":
            return data_config(tsv, objective={"kind": "seq2seq"})
        case "mixture":
            kinds = ("causal_lm", "prefix_lm", "fill_in_middle", "chat")
            return data_config(lines, tsv, objective={"kind": "mixture", "parts": [{"kind": kind} for kind in kinds]})
        case "denoising":
            return data_config(lines, objective={"kind": "denoising"})


def stream(data, workers=0, rank=0, world_size=1, bookmark=None, report=None, objective=None):
    options = {"batch_tokens": 384, "length": 64, "seed": 3, "rank": rank, "world_size": world_size}
    objective = objective or objective_of(data)
    return train_stream(data, objective, **options, bookmark=bookmark, workers=workers, report=report)


def children():
    return {process.pid for process in multiprocessing.active_children()}


NUMBERS = ((1, 1), (2, 1), (4, 1), (2, 2))
"""Of workers and ranks."""


@pytest.mark.parametrize(
    ("task", "numbers"),
    [("text", NUMBERS), ("pairs", NUMBERS), *((task, ((2, 2),)) for task in ("chat", "mixture", "denoising"))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_number_of_workers_and_ranks_gives_the_same_batches(corpus, task, numbers):
    """Rows and windows in all numbers; what a worker makes of a record, in one."""
    data = config_of(corpus, task)
    straight = [plain(batch) for batch in islice(stream(data), 6)]
    for workers, world_size in numbers:
        ranks = [stream(data, workers, rank, world_size) for rank in range(world_size)]
        alone = [stream(data, 0, rank, world_size) for rank in range(world_size)]
        for number in range(6):
            found = [next(batches) for batches in ranks]
            assert [plain(batch) for batch in found] == [plain(next(batches)) for batches in alone], (workers, number)
            assert merge_bookmarks([batch.bookmark for batch in found]) == straight[number]["bookmark"]
        for batches in ranks:
            batches.close()
    assert not children()


@pytest.mark.parametrize("task", ["text", "pairs"])
def test_the_bookmark_is_of_the_batch_that_was_used_not_of_one_made_ahead(corpus, task):
    data = config_of(corpus, task)
    straight = [plain(batch) for batch in islice(stream(data), 10)]
    ahead = stream(data, workers=2)
    used = [next(ahead) for _ in range(3)]
    time.sleep(0.5)  # for more to be made than is used
    ahead.close()
    resumed = stream(data, workers=1, bookmark=used[-1].bookmark)
    assert [plain(next(resumed)) for _ in range(3)] == straight[3:6]
    resumed.close()


def test_counts_and_warnings_come_from_the_workers(tmp_path, caplog):
    lines = [f'{{"text": "line {number}"}}' if number % 10 else "bad" for number in range(300)]
    source = {"kind": "jsonl", "path": str(write_lines(tmp_path / "x", lines))}
    data = data_config(source, on_bad_record="skip", max_bad_fraction=0.5)
    report = StreamReport()
    batches = stream(data, workers=2, report=report)
    list(islice(batches, 10))
    batches.close()
    assert report.records > report.bad_records > 3
    assert report.bad_examples
    assert report.reading.endswith("x")
    assert "skipping bad records, the first at" in caplog.text


def test_an_error_in_a_worker_names_file_and_line(tmp_path):
    lines = [f'{{"text": "line {number}"}}' for number in range(300)]
    lines[250] = "bad"
    source = {"kind": "jsonl", "path": str(write_lines(tmp_path / "x", lines))}
    with pytest.raises(DataError, match="not valid JSON") as caught:
        list(islice(stream(data_config(source), workers=2), 50))
    assert "x:251" in caught.value.where
    assert not children()


def faulty(tmp_path, word):
    path = write_lines(tmp_path / "x.txt", [f"line {number}" for number in range(800)] + [word] + ["more"] * 50)
    data = data_config({"path": str(path), "documents": "line"})
    return stream(data, 2, objective=build_objective(CausalLmObjective(), FaultyTokenizer(), max_length=64))


def test_a_worker_that_dies_is_an_error_that_names_what_it_read(tmp_path):
    with pytest.raises(DistributedError, match="killed by SIGKILL") as caught:
        list(islice(faulty(tmp_path, "DIE"), 200))
    assert caught.value.exit_code == 8
    assert "x.txt" in caught.value.where or "first batch" in caught.value.where
    assert not children()


def test_a_bug_in_a_worker_is_told_with_its_trace(tmp_path):
    with pytest.raises(RuntimeError, match=r"encode_batch(.|\n)*ZeroDivisionError: a bug"):
        list(islice(faulty(tmp_path, "BUG"), 200))


def test_a_worker_killed_from_outside_is_an_error_not_a_hang(corpus):
    batches = stream(config_of(corpus, "text"), workers=2)
    next(batches)
    victim = min(children())
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(DistributedError, match=r"data worker . was killed by SIGKILL") as caught:
        list(islice(batches, 100))
    assert caught.value.where == f"last heard of reading {corpus}/lines"
    assert not children()


def test_workers_ignore_the_signals_that_stop_a_run(corpus):
    data = config_of(corpus, "text")
    straight = [plain(batch) for batch in islice(stream(data), 8)]
    batches = stream(data, workers=2)
    found = [plain(next(batches))]
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        for worker in children():
            os.kill(worker, getattr(signal, name))
    found += [plain(next(batches)) for _ in range(7)]
    assert found == straight
    batches.close()


PARENT = """
import sys
from multiprocessing import active_children
from test_workers import config_of, stream

if __name__ == "__main__":
    batches = stream(config_of(sys.argv[1], "text"), workers=2)
    if sys.argv[2] == "used":
        next(batches)
        print(*(child.pid for child in active_children()), flush=True)
        sys.stdin.read()
    else:
        next(batches)
        print(*(child.pid for child in active_children()), flush=True)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")")[1].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
@pytest.mark.parametrize("end", ["used", "left open"])
def test_workers_end_with_the_process_that_they_work_for(corpus, tmp_path, end):
    """Killed in the middle, or ending by itself with the stream still open."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    command = [sys.executable, str(script), str(corpus), end]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        if end == "used":
            parent.kill()
        assert parent.wait(timeout=30) == (-signal.SIGKILL if end == "used" else 0)
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))
