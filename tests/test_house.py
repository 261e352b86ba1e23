"""The conscience of the house: sizes, names, doors and packaging, checked by a machine."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradsae_fast
import gradsae_kernels

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "gradsae_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
DRAWERS = {"utils", "common", "helpers", "misc", "core", "base", "manager"}
TOP_LEVEL = {"pyproject.toml", "README.md", "gradsae_fast", "kernels", "benchmarks", "tests"}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_the_top_level_holds_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {line.split("/")[0] for line in tracked.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_small_documented_and_well_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 320, "split it: one noun per file"
    assert ast.get_docstring(ast.parse(text)), "a module begins with a docstring"
    assert path.stem not in DRAWERS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_stay_below_the_wall(path: Path) -> None:
    wall = 80 if path.stem in {"numba_kernel", "triton_kernel"} else 60
    for node in functions(path):
        # The options of a verb are a table that happens to be a signature.
        first = node.body[0].lineno if path.stem.startswith("cli") else node.lineno
        assert (node.end_lineno or 0) - first + 1 <= wall, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            reraised = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert caught not in {"Exception", "BaseException", "everything"} or reraised, f"line {node.lineno}"


@pytest.mark.parametrize("path", [path for path in SOURCES if ">>> " in path.read_text(encoding="utf-8")], ids=str)
def test_examples_in_docstrings_are_true(path: Path) -> None:
    relative = path.relative_to(ROOT if path.is_relative_to(ROOT / "gradsae_fast") else ROOT / "kernels")
    module = importlib.import_module(".".join(relative.with_suffix("").parts).removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0


def test_kernels_is_a_container_and_shadows_nothing() -> None:
    assert not list((ROOT / "kernels").glob("*.py"))
    code = "import sys; sys.path.insert(0, '.'); from transformers.utils import is_kernels_available as f; f()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_door_opens_without_torch() -> None:
    code = (
        "import sys, gradsae_fast, gradsae_fast.cli; assert not {'torch', 'transformers', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_those_that_the_readme_lists() -> None:
    for module in (gradsae_fast, gradsae_kernels):
        assert sorted(module.__all__) == list(module.__all__) or module is gradsae_kernels
        for name in module.__all__:
            assert hasattr(module, name)
            assert name in README or name in (ROOT / "kernels" / "README.md").read_text(encoding="utf-8"), name


def test_every_verb_is_in_the_readme() -> None:
    from gradsae_fast.cli import app
    from gradsae_fast.cli_rank import rank

    for verb in app.registered_commands:
        assert f"gradsae {verb.name or verb.callback.__name__}" in README  # type: ignore[union-attr]
    for verb in rank.registered_commands:
        assert f"gradsae rank {verb.name}" in README


def test_the_readme_begins_with_two_commands_and_ci_runs_its_test_command() -> None:
    commands = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    assert commands[0].startswith("pip install . && gradsae demo")
    assert commands[1].strip() == 'pip install -e ".[test]" && pytest -n 2 --dist loadfile'
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'pip install --quiet -e ".[test]"' in script
    assert "\npytest -n 2 --dist loadfile\n" in script
    assert ".ci/peers" in script


def test_the_torch_range_is_the_tested_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "torch>=2.11,<2.14" in project["dependencies"]
