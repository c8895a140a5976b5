"""What run folders tell of their runs, whatever state they are in."""

import json
import os
import socket
import subprocess
import sys

import pytest

from txtgen.cli import run
from txtgen.commands.running import journal
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.running.run_record import MAX_FILE_BYTES, read_run
from txtgen.commands.running.status import Status
from txtgen.commands.runs import list_runs


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.checkpoints.mkdir(parents=True)
    return folder


def output(arguments: list[str], capfd) -> str:
    capfd.readouterr()
    assert run(arguments) == 0
    return capfd.readouterr().out


def test_finished_runs_are_listed(trained, capfd) -> None:
    runs = str(trained / "runs")
    found = json.loads(output(["runs", "list", "--runs-path", runs, "--json"], capfd))
    assert [one["name"] for one in found] == ["translator", "decoder"]  # the latest first
    decoder = found[1]
    assert (decoder["command"], decoder["state"], decoder["step"], decoder["steps"]) == ("pretrain", "finished", 6, 6)
    losses = [json.loads(line) for line in (trained / "runs/decoder/metrics.jsonl").read_text().splitlines()]
    assert decoder["best"]["val_loss"] == min(line["val_loss"] for line in losses if "val_loss" in line)
    assert decoder["parameters"] > 0
    assert decoder["problems"] == []
    table = output(["runs", "list", "--runs-path", runs], capfd)
    assert "6 of 6" in table
    assert f"{decoder['parameters']:,}" in table


def test_hard_links_count_once(folder) -> None:
    (folder.checkpoints / "step-00000001.pth").write_bytes(b"x" * 1000)
    os.link(folder.checkpoints / "step-00000001.pth", folder.last)
    assert read_run(folder.path).num_bytes == 1000


def test_one_run_is_shown(trained, capfd) -> None:
    shown = json.loads(output(["runs", "show", str(trained / "runs" / "decoder"), "--json"], capfd))
    assert shown["summary"]["last"]["tokens"] > 0
    assert shown["summary"]["typical"]["tokens_per_second"] > 0
    assert shown["num_samples"] == 2
    assert shown["about"]["corpus"][0]["estimated_tokens"] > 0
    assert shown["about"]["starts"][0]["torch"]
    assert shown["config"]["train"]["steps"] == 6
    assert "last.pth" in shown["checkpoints"]
    table = output(["runs", "show", "decoder", "--runs-path", str(trained / "runs")], capfd)
    assert "tokens estimated" in table
    assert "environment, torch" in table


def test_samples_are_kept_with_their_steps(trained) -> None:
    samples = [json.loads(line) for line in (trained / "runs/decoder/samples.jsonl").read_text().splitlines()]
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [(3, "the cat"), (6, "the cat")]
    assert all(isinstance(sample["text"], str) for sample in samples)


def test_a_resumed_run_tells_of_both_starts_and_repeats_no_sample(workshop, monkeypatch) -> None:
    constant = ["--set", "train.schedule.kind=constant"]
    assert run(["pretrain", "decoder.yaml", "--name", "a", *constant]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(journal, "corpus_statistics", lambda *_, **__: pytest.fail("it is known what the corpus is like"))
        assert run(["pretrain", "decoder.yaml", "--name", "a", "--resume", "--steps", "9", *constant]) == 0
    about = json.loads((workshop / "runs/a/run.json").read_text())
    assert about["corpus"][0]["tokens"] > 0
    assert [start["step"] for start in about["starts"]] == [0, 6]
    samples = [json.loads(line)["step"] for line in (workshop / "runs/a/samples.jsonl").read_text().splitlines()]
    assert samples == [3, 6, 9]


def test_differences_are_told_key_by_key(trained, capfd) -> None:
    runs = ["decoder", "translator", "--runs-path", str(trained / "runs")]
    found = json.loads(output(["runs", "diff", *runs, "--json"], capfd))
    assert found["config"]["model.kind"] == ["decoder", "encoder_decoder"]
    assert found["config"]["train.steps"] == [6, 4]
    assert found["config"]["model.num_layers"] == [1, None]
    assert "train.clip_norm" not in found["config"]
    assert [one["name"] for one in found["runs"]] == ["decoder", "translator"]
    table = output(["runs", "diff", *runs], capfd)
    assert "encoder_decoder" in table
    assert "best BLEU" in table
    assert "the configs are the same" in output(["runs", "diff", "decoder", *runs[:1], *runs[2:]], capfd)


def test_a_run_whose_process_is_gone_is_killed(folder) -> None:
    code = (
        "import sys; from pathlib import Path; from txtgen.commands.running.run_folder import RunFolder\n"
        "from txtgen.commands.running.status import Status\n"
        "folder = RunFolder(Path(sys.argv[1]))\n"
        "with folder.lock(): Status(folder.status).set('running', step=3); print('on', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        assert read_run(folder.path).state == "running"
        process.kill()
        process.wait()
    assert read_run(folder.path).state == "killed"


def test_another_process_with_the_same_number_is_not_the_run(folder) -> None:
    Status(folder.status).set("running", step=3)  # by this very process, which does not hold the folder
    assert read_run(folder.path).state == "killed"
    with folder.lock():
        assert read_run(folder.path).state == "running"


def test_a_run_on_another_machine_is_said_to_be_there(folder) -> None:
    status = {"state": "running", "pid": 1, "host": socket.gethostname() + "-2"}
    folder.status.write_text(json.dumps(status))
    assert read_run(folder.path).state == f"running on {status['host']}"


DAMAGED = {
    "status.json": [b"", b"{", b"[1]", b'{"state": 3, "step": "x", "pid": "y", "time": NaN}', b"\xff", b"[" * 99_999],
    "run.json": [b"{}", b"null", b'{"parameters": 3, "starts": [1], "corpus": 7}', b'{"starts": {}, "corpus": [[]]}'],
    "config.yaml": [b"", b"- 1", b"a: b: c", b"train: 3", b"\x00", b"x: &a [*a]"],
    "metrics.jsonl": [b"{", b'{"step": 1, "val_loss": "x"}\n{"val_loss": 2}\n3\n', b'{"step": 1e999, "loss": 1}\n'],
    "samples.jsonl": [b"\xff", b'{"step": []}'],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, contents in DAMAGED.items() for content in contents]
)
def test_no_damage_keeps_a_run_from_being_told(folder, name, content, capfd) -> None:
    (folder.path / name).write_bytes(content)
    runs = ["--runs-path", str(folder.path.parent)]
    for command in (["list"], ["show", "a"], ["diff", "a", "a"]):
        output(["runs", *command, *runs], capfd)
        json.loads(output(["runs", *command, *runs, "--json"], capfd))


def test_damage_is_told_in_the_row(folder, capfd) -> None:
    folder.status.write_text("{")
    folder.metrics.write_text('{"step": 1, "val_loss": 2.0}\n{"step": 2, "val_lo')
    with open(folder.about, "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    (found,) = list_runs(str(folder.path.parent))
    assert found.state == "unknown"
    assert found.best["val_loss"] == 2.0
    assert found.problems == ("status.json: damaged", "metrics.jsonl: 1 damaged line", "run.json: damaged")
    assert "status.json: damaged" in output(["runs", "list", "--runs-path", str(folder.path.parent)], capfd)


def test_there_may_be_no_runs(tmp_path, capfd) -> None:
    assert output(["runs", "list", "--runs-path", str(tmp_path / "none"), "--json"], capfd) == "[]\n"
    assert run(["runs", "show", "a", "--runs-path", str(tmp_path)]) == 5
    assert "no such run" in capfd.readouterr().err
