"""An installed wheel, without a clone: the command finds the notebooks that came with it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# quickstart up to what it would execute: the notebooks are there and take its parameters.
QUICKSTART = """
from tract.jobs import parameters, quickstart

def execute(notebook, output, given):
    parameters.check_parameters(parameters.declared_parameters(notebook), given)
    print(notebook, output)

quickstart.execute = execute
quickstart.read_results = exit
quickstart.quickstart()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an environment in which the wheel is installed, with what it needs."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")
    for name in ("tract", "notebooks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    (source / "wheels").mkdir()
    build = "import setuptools.build_meta as b; b.build_wheel('wheels')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "wheels").glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    needed = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (needed / "needed.pth").write_text(sysconfig.get_path("purelib"))  # torch and the like
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


def run(installed, folder, program, *arguments):
    """A program of the environment in an empty folder; its output and status."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [installed / "bin" / program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="folders of an environment as on POSIX")
def test_quickstart_finds_its_notebooks_without_a_clone(installed, tmp_path):
    done = run(installed, tmp_path, "python", "-c", QUICKSTART)
    notebooks = installed / "share" / "tract" / "notebooks"
    assert done.stdout.splitlines()[-1] == (
        f"{notebooks / '03_tract.ipynb'} {tmp_path / 'runs' / 'quickstart' / '03_tract.ipynb'}"
    ), done.stderr
    wanted = sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(p.name for p in notebooks.glob("*.ipynb")) == wanted
    wanted = sorted(p.name for p in (ROOT / "notebooks" / "presets").glob("*.yaml"))
    assert sorted(p.name for p in (notebooks / "presets").glob("*.yaml")) == wanted
    done = run(installed, tmp_path, "tract", "run", "notebooks/01_teacher.ipynb", "out.ipynb")
    said = f"no notebook notebooks/01_teacher.ipynb: correct the path; tract's are in {notebooks}"
    assert (done.returncode, done.stderr) == (1, f"tract: {said}\n")
