"""Executing notebooks with papermill: parameters checked first, output shown while it runs."""

import ast
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import papermill


def execute(
    notebook: str | Path, output: str | Path, parameters: Mapping[str, object] | None = None
) -> None:
    """Execute a notebook in its own folder and write the result; what it prints is shown live.

    ValueError for a parameter the notebook does not declare or of another kind than its default,
    FileNotFoundError for a missing notebook; both before a kernel is started. If a cell fails,
    papermill's PapermillExecutionError is raised and output holds the notebook up to there.
    """
    notebook, output = Path(notebook), Path(output)
    if not notebook.is_file():
        raise FileNotFoundError(f"no notebook {notebook}: correct the path")
    parameters = dict(parameters or {})
    check_parameters(declared_parameters(notebook), parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook),
        str(output),
        parameters,
        kernel_name="python3",
        cwd=str(notebook.parent),
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
    )
    keep_last_bar(output)


def declared_parameters(notebook: str | Path) -> dict[str, object]:
    """Names and default values of a notebook's cell tagged `parameters`."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            return _assignments(cell.source)
    raise ValueError(f"{notebook} has no cell tagged 'parameters'")


def check_parameters(declared: Mapping[str, object], given: Mapping[str, object]) -> None:
    """ValueError if a given parameter is not declared, or its default is of another kind."""
    for name, value in given.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {list(declared)}"
            raise ValueError(f"unknown parameter {name!r}: {hint}")
        if _kind(value) != _kind(declared[name]):
            raise ValueError(
                f"parameter {name} is {value!r}: give a {_kind(declared[name])}, as the default "
                f"{declared[name]!r} is"
            )


def refuse_unknown_parameters(cells: Sequence[str]) -> None:
    """ValueError if papermill injected a parameter that the notebook does not declare.

    cells: IPython's `In`, the cells executed so far. Papermill itself only warns.
    """
    injected = [i for i, cell in enumerate(cells) if cell.startswith("# Parameters\n")]
    if injected:
        declared = _assignments("\n".join(cells[: injected[-1]]))
        check_parameters(declared, _assignments(cells[injected[-1]]))


def keep_last_bar(notebook: str | Path) -> None:
    """Leave of every progress bar in a notebook's outputs only what was last to be seen."""
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                lines = output.text.split("\n")
                output.text = "\n".join(line.rstrip("\r").split("\r")[-1] for line in lines)
    nbformat.write(content, notebook)


def _assignments(source: str) -> dict[str, object]:
    """Names assigned to literals at the top level of some source, and their values."""
    values = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = ast.literal_eval(node.value)
    return values


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "number"
    return {str: "text", list: "list"}.get(type(value), type(value).__name__)
