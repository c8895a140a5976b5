"""TensorBoard's files: what they hold, and that they never cost a run."""

import logging
import sys

import pytest

from txtgen.cli import run
from txtgen.commands.running.board import Board


def events(folder) -> dict[str, dict[int, float]]:
    """Curves by name: step -> value."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    found = accumulator.Tags()["scalars"]
    return {name: {event.step: event.value for event in accumulator.Scalars(name)} for name in found}


def test_a_run_draws_its_curves(workshop) -> None:
    pytest.importorskip("tensorboard")
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--set", "train.tensorboard=true"]) == 0
    curves = events("runs/a/tensorboard")
    assert sorted(curves["loss"]) == [1, 2, 3, 4, 5, 6]
    assert sorted(curves["val_loss"]) == [3, 6]
    assert "step" not in curves


def test_what_a_resumed_run_does_again_is_drawn_once(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    first = Board(tmp_path, 0)
    for step in (1, 2, 3, 4):
        first.scalars({"step": step, "loss": float(step)})
    first.close()
    second = Board(tmp_path, 2)
    for step in (3, 4):
        second.scalars({"step": step, "loss": 10.0 * step})
    second.close()
    assert events(tmp_path)["loss"] == {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}


def test_a_missing_tensorboard_is_told_before_anything_is_learnt(workshop, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--set", "train.tensorboard=true"]) == 6
    assert "pip install 'txtgen[tensorboard]'" in capsys.readouterr().err


def test_curves_that_cannot_be_written_cost_one_warning(tmp_path, monkeypatch, caplog) -> None:
    pytest.importorskip("tensorboard")
    board = Board(tmp_path, 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._writer, "add_scalar", full)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            board.scalars({"step": step, "loss": 1.0, "tokens": 2})
        board.text("the cat", "the cat sat", 2)
        board.close()
    assert [record.message for record in caplog.records] == [
        "TensorBoard's files cannot be written, and no longer are: [Errno 28] No space left on device"
    ]
