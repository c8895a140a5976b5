"""What the names of dtypes mean on a machine."""

import pytest
import torch

from txtgen.commands.devices import training_dtype
from txtgen.config.model import DecoderConfig, EncoderDecoderConfig


@pytest.mark.parametrize(
    ("native", "config", "width", "expected"),
    [
        (True, DecoderConfig, 128, torch.bfloat16),
        (True, DecoderConfig, 64, torch.float32),
        (True, EncoderDecoderConfig, 256, torch.bfloat16),
        (True, EncoderDecoderConfig, 192, torch.float32),
        (False, DecoderConfig, 1024, torch.float32),
    ],
)
def test_bfloat16_by_itself_where_a_cpu_gains(native, config, width, expected, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    model, cpu = config(d_model=width, num_heads=4), torch.device("cpu")
    assert training_dtype("auto", cpu, model) == expected
    assert training_dtype("float32", cpu, model) == torch.float32
    assert training_dtype("bfloat16", cpu, model) == torch.bfloat16


@pytest.mark.parametrize(
    ("lineage", "expected"),
    [
        ({"device": "cpu", "dtype": "bfloat16"}, torch.bfloat16),
        ({"device": "cpu", "dtype": "float32"}, torch.float32),
        ({"device": "a GPU", "dtype": "float32"}, torch.bfloat16),
        ({}, torch.bfloat16),
    ],
)
def test_a_resumed_run_goes_on_in_the_dtype_it_chose_itself(lineage, expected, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    model, cpu = DecoderConfig(d_model=256, num_heads=4), torch.device("cpu")
    assert training_dtype("auto", cpu, model, lineage) == expected
    assert training_dtype("float32", cpu, model, {"device": "cpu", "dtype": "bfloat16"}) == torch.float32
