"""Rules of the house that a reader relies on: what imports what, and what importing costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tract

FOLDER = Path(tract.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
MODULES = [path for path in FILES if path.stem not in ("__init__", "__main__")]
# The core stands between base and networks, flat in tract/.
ROOMS = [
    "base",
    "core",
    "networks",
    "teachers",
    "datasets",
    "metrics",
    "experiments",
    "jobs",
    "lab",
]
ROOMS += ["studies", "cli"]
HEAVY = ["matplotlib", "cleanfid", "diffusers", "ipywidgets", "papermill", "torchvision"]
LIGHT_CORE = [*HEAVY, "pandas", "PIL", "filelock", "safetensors"]
LINES, FUNCTION_LINES = 300, 50


def name_of(path):
    """A file's name, such as levels or teachers/edm."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def room_of(name):
    return name.split("/")[0] if "/" in name else "core"


def imported(path):
    """Names of the files of tract that a file imports, anywhere in it."""
    files = {name_of(p) for p in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            name = module.removeprefix("tract.").replace(".", "/")
            if module.startswith("tract.") and name in files:
                yield name


def map_of(init):
    """Names that the docstring of an __init__ maps, each in a line of its own."""
    text = ast.get_docstring(ast.parse(init.read_text())).split("reading order")[-1]
    return re.findall(r"^    (\w+)  ", text, re.MULTILINE)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_imports_only_its_own_room_and_those_below(path):
    allowed = ROOMS[: ROOMS.index(room_of(name_of(path))) + 1]
    assert {name for name in imported(path) if room_of(name) not in allowed} == set()


def test_no_files_import_each_other():
    above = {name_of(path): set(imported(path)) for path in MODULES}
    while ready := {name for name, needs in above.items() if not needs & above.keys()}:
        above = {name: needs for name, needs in above.items() if name not in ready}
    assert above == {}


def test_the_maps_list_every_room_and_every_file_once():
    rooms = {name_of(path).split("/")[0] for path in MODULES if "/" in name_of(path)}
    core = [name_of(path) for path in MODULES if "/" not in name_of(path)]
    assert {"core", *rooms} == set(ROOMS)
    assert sorted(map_of(FOLDER / "__init__.py")) == sorted([*core, *rooms])
    for room in rooms:
        files = [path.stem for path in (FOLDER / room).glob("*.py") if path.stem != "__init__"]
        assert sorted(map_of(FOLDER / room / "__init__.py")) == sorted(files), room


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_says_in_its_first_line_what_it_is_for(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree).splitlines()[0].endswith(".")
    assert len(path.read_text().splitlines()) <= LINES
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {n.name: n.end_lineno - n.lineno + 1 for n in functions}
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LINES} == {}


def test_the_core_is_small_and_the_algorithm_is_read_in_nine_files():
    lines = {name_of(p): len(p.read_text().splitlines()) for p in MODULES}
    readme = (FOLDER / "README.md").read_text()
    nine = re.findall(r"`(\w+)`", readme.split("read these nine files:")[1].split(".")[0])
    assert len(nine) == 9
    assert sum(lines[name] for name in nine) <= 1000
    assert sum(count for name, count in lines.items() if room_of(name) == "core") <= 1900
    assert sum(lines.values()) <= 15_200  # the whole package: what it gains, something else gives


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("tract.cli.main", ["torch", "pandas", *HEAVY]),
        ("tract.distill", [*LIGHT_CORE, *(f"tract.{room}" for room in ROOMS[2:])]),
        ("tract.experiments.measure", HEAVY),
    ],
)
def test_importing_costs_nothing_that_is_not_used(module, without):
    code = f"import sys, {module}; print([m for m in {without} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"  # and nothing else is printed by importing
    assert done.stderr == ""
