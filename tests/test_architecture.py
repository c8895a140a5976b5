"""The floors: imports go strictly down, and rooms on one floor never import each other."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import txtgen

PACKAGE = Path(txtgen.__file__).parent
FLOORS = {
    "errors": 0,
    "config": 1,
    "files": 1,
    "memory": 1,
    "native": 1,
    "processes": 1,
    "sandbox": 1,
    "archive": 2,
    "tokenizer": 2,
    "chat": 2,
    "infilling": 2,
    "distributed": 2,
    "model": 2,
    "decode": 2,
    "lexicon": 3,
    "data": 3,
    "checkpoint": 3,
    "train": 4,
    "generator": 4,
    "convert": 4,
    "evaluate": 5,
    "commands": 6,
    "cli": 7,
    "__main__": 8,
}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Rooms that a file imports anywhere in it, also inside functions and under TYPE_CHECKING."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "txtgen":
            assert node.level == 0, f"{path}: relative import"
            modules = [node.module] if node.module != "txtgen" else [f"txtgen.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            modules = [name.name for name in node.names if name.name.startswith("txtgen.")]
        else:
            continue
        rooms |= {module.split(".")[1] for module in modules if module.count(".")}
    return rooms - {"__version__"}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_strictly_down(path: Path) -> None:
    own = room_of(path)
    for room in imports_of(path) - {own}:
        assert FLOORS[room] < FLOORS[own], f"{own} (floor {FLOORS[own]}) imports {room} (floor {FLOORS[room]})"


def test_modules_inside_a_room_import_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    names = {".".join(("txtgen", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name] = {module for module in found if module in names and module != name}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_config_never_imports_torch() -> None:
    for path in (PACKAGE / "config").rglob("*.py"):
        assert "torch" not in path.read_text(encoding="utf-8").replace("torch-free", ""), path


def test_pickle_is_never_loaded_freely() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                assert "weights_only=True" in ast.unparse(node), f"{path}:{node.lineno}"


def test_the_library_never_prints() -> None:
    for path in FILES:
        if room_of(path) in ("commands", "cli", "__main__"):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not [call for call in calls if ast.unparse(call.func) == "print"], path


def test_rich_has_one_place() -> None:
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {str(path.relative_to(PACKAGE)) for name in names if name.split(".")[0] == "rich"}
    assert found == {str(Path("commands", "showing", "console.py"))}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["pretrain", "--help"],
        ["generate", "--help"],
        ["score", "--help"],
        ["chat", "--help"],
        ["config", "show", "missing.yaml"],
        ["runs", "list"],
    ],
)
def test_help_never_imports_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from txtgen.cli import run; code = run(sys.argv[1:]); "
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == (3 if "missing.yaml" in arguments else 0), done.stderr


def test_import_is_lazy() -> None:
    code = "import sys, txtgen; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_only_some_runs_need_is_not_imported(tmp_path: Path) -> None:
    """torch's compiler takes longer to import than torch, tensors spread over ranks half as long.

    Neither training nor generating needs them; but torch's own optimizers import the compiler, and so does drawing
    weights on the meta device. Moving a module off that device imports sympy, which generating does without. The files
    of safetensors are short-lists and those of Hugging Face.
    """
    config = """
data: {sources: [{kind: text, path: a.txt}]}
tokenizer: {vocab_size: 300}
model: {kind: decoder, d_model: 16, num_layers: 1, num_heads: 2, max_length: 16, ngrams: {max_order: 2}}
train: {steps: 2, batch_tokens: 64, optimizer: {kind: muon}}
"""
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 200, encoding="utf-8")
    (tmp_path / "a.yaml").write_text(config, encoding="utf-8")
    slow = {"torch._dynamo", "torch.distributed.tensor", "safetensors"}
    for command, unneeded in (
        (["pretrain", "a.yaml", "--name", "a"], slow),
        (["generate", "runs/a", "--prompt", "the"], slow | {"sympy"}),
    ):
        code = (
            "import sys; from txtgen.cli import run; "
            f"sys.exit(run({command}) or ', '.join({unneeded} & {{*sys.modules}}) or None)"
        )
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
