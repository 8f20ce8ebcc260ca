"""Notebooks are executed by this Python, wherever they lie and whatever the machine has."""

import json
import sys

import nbformat
import pytest
from helpers import write_notebook

from tract.base.compute import use_threads
from tract.jobs.execute import execute
from tract.jobs.parameters import declared_parameters


def test_a_kernel_is_of_this_python_whatever_other_environments_have(tmp_path, monkeypatch):
    spec = tmp_path / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = ["/usr/bin/env", "OTHER=1", sys.executable, "-m", "ipykernel_launcher"]
    argv += ["-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "other"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    temporary = tmp_path / ("long" * 30)  # and a socket's name has 107 bytes at most
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    source = "import os, sys; print(os.environ.get('OTHER'), sys.executable)"
    path, out = write_notebook(tmp_path / "n.ipynb", "a = 1", source), tmp_path / "o.ipynb"
    content = nbformat.read(path, as_version=4)
    content.metadata.clear()  # papermill would miss a language
    nbformat.write(content, path)
    execute(path, out, {"a": 2}, shown=False)
    (output,) = nbformat.read(out, as_version=4).cells[-1].outputs
    assert output.text == f"None {sys.executable}\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("cells"),
        lambda c: c["cells"][1].update(source=5),
        lambda c: c["cells"][1]["metadata"].update(tags=None),
        lambda c: c.update(nbformat=3),
        lambda c: c.update(cells={}),
    ],
)
def test_a_malformed_notebook_is_refused_in_one_line(tmp_path, change):
    path = write_notebook(tmp_path / "n.ipynb", "a = 1")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"n.ipynb is not a notebook \(.*\): restore it$"
    ) as refusal:
        declared_parameters(path)
    assert len(str(refusal.value).splitlines()) == 1


def test_more_threads_than_any_machine_has_are_refused():
    with pytest.raises(ValueError, match="threads is 100000: use 1024 or less"):
        use_threads(100_000)
