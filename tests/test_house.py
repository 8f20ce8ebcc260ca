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
FILES = sorted(FOLDER.rglob("*.py"))
PACKAGES = ["tract", "tract.teachers"]
HEAVY = ["matplotlib", "cleanfid", "diffusers", "ipywidgets", "papermill", "pandas", "torchvision"]


def name_of(path):
    """A file's name in the package's docstring, such as state or teachers/edm."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def order():
    """Names of files in the order of the package's docstring."""
    return re.findall(r"^    ([\w/]+)  ", tract.__doc__.split("Files,")[1], re.MULTILINE)


def imported(path):
    """Names of the files of tract that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            modules = [node.module]
            if node.module in PACKAGES:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if module.startswith("tract."):
                yield module.removeprefix("tract.").replace(".", "/")


def test_the_docstring_lists_every_file_once():
    assert sorted(order()) == sorted(name_of(p) for p in FILES if p.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_those_above_it(path):
    if path.stem != "__init__":
        above = set(itertools.takewhile(lambda name: name != name_of(path), order()))
        assert set(imported(path)) <= above
    else:
        assert list(imported(path)) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_says_in_its_first_line_what_it_is_for(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring.splitlines()[0].rstrip().endswith((".", ":"))


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("tract.cli", ["torch", *HEAVY]),
        ("tract.distill", HEAVY),
        ("tract.measuring", [name for name in HEAVY if name != "pandas"]),
    ],
)
def test_importing_costs_nothing_that_is_not_used(module, without):
    code = f"import sys, {module}; print([m for m in {without} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"  # and nothing else is printed by importing
    assert done.stderr == ""
