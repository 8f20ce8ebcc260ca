"""Rules of the house that a reader relies on: what imports what, and what importing costs."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tract

FOLDER = Path(tract.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
HEAVY = ["matplotlib", "cleanfid", "diffusers", "ipywidgets", "papermill", "pandas", "torchvision"]


def order():
    """Names of files in the order of the package's docstring."""
    return re.findall(r"^    (\w+)  ", tract.__doc__.split("Files,")[1], re.MULTILINE)


def imported(path):
    """Names of the files of tract that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tract":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tract."):
            yield node.module.removeprefix("tract.")
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("tract.")
                for alias in node.names
                if alias.name.startswith("tract.")
            )
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"


def test_the_docstring_lists_every_file_once():
    assert sorted(order()) == [path.stem for path in FILES if path.stem != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_imports_only_those_above_it(path):
    if path.stem != "__init__":
        above = set(itertools.takewhile(lambda name: name != path.stem, order()))
        assert set(imported(path)) <= above
    else:
        assert list(imported(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_in_its_first_line_what_it_is_for(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring.splitlines()[0].rstrip().endswith((".", ":"))


def test_the_mathematics_imports_none_of_the_workbench():
    code = f"import sys, tract, tract.distill; print([m for m in {HEAVY} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"  # and nothing else is printed by importing
    assert done.stderr == ""
