"""Parameters of notebooks: what a notebook declares, what a YAML file or a command gives."""

import ast
import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path

import nbformat
import yaml

from tract.base.yaml_files import read_parameters
from tract.phases import format_schedule
from tract.settings import Distillation

# Parameters that had other names before.
RENAMED = {
    "images": "train_images",
    "batch": "batch_size",
    "weight": "loss_weight",
    "process": "noise_schedule",
    "preset": "network",
    "teacher_step": "solver",
    "hops": "solvers",
    "student": "student_network",
    "metric_steps": "metric_every",
    "ablations": "comparisons",
    "questions": "comparisons",
    "groups": "comparisons",
}

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def declared_parameters(notebook: str | Path) -> dict[str, object]:
    """Names and default values of a notebook's cell tagged `parameters`."""
    try:
        content = nbformat.read(notebook, as_version=4)
    except (ValueError, AttributeError, KeyError, TypeError) as error:  # no JSON, or of other form
        raise ValueError(f"{notebook} is no notebook ({error}): restore it") from error
    for cell in content.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return _assignments(cell.source)
    raise ValueError(f"{notebook} has no cell tagged 'parameters': add it")


def check_parameters(declared: Mapping[str, object], given: Mapping[str, object]) -> None:
    """ValueError if a given parameter is not declared, or its default is of another kind."""
    for name, value in given.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            close = [RENAMED[name]] if RENAMED.get(name) in declared else close
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
        declared: dict[str, object] = {}
        for cell in cells[: injected[-1]]:  # all that was executed before, perhaps twice
            declared |= _assignments(cell)
        check_parameters(declared, _assignments(cells[injected[-1]]))


# Parameters that change where and how fast something is computed, but no result.
PLACES = ("run_dir", "figure", "figures", "processes", "threads", "compute", "checkpoint_minutes")


def as_committed(cells: Sequence[str], name: str) -> bool:
    """Whether a notebook, by its name without ending, has the parameters that it is committed with.

    cells: IPython's `In`. What is in PLACES may differ. False where the committed notebook is not
    beside the package.
    """
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.is_file():
        return False
    values: dict[str, object] = {}
    for cell in cells:
        if "  # help: " in cell or cell.startswith("# Parameters\n"):
            values |= _assignments(cell)
    declared = declared_parameters(path)
    return all(values.get(n) == value for n, value in declared.items() if n not in PLACES)


def check_claims(claims: Mapping[str, bool], asserted: bool) -> None:
    """Print which claims hold; AssertionError for those that do not, where they are asserted."""
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'does not hold'}: {claim}")
    failed = [claim for claim, holds in claims.items() if not holds]
    if asserted and failed:
        raise AssertionError("; ".join(failed))
    if not asserted:
        print("with other parameters than the committed ones: nothing is asserted")


def _assignments(source: str) -> dict[str, object]:
    """Names assigned to literals at the top level of some source, and their values."""
    values = {}
    try:
        nodes = ast.parse(source).body
    except SyntaxError:  # a cell with IPython's magic
        return values
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with suppress(ValueError):  # no literal
                values[node.targets[0].id] = ast.literal_eval(node.value)
    return values


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "number"
    return {str: "text", list: "list"}.get(type(value), type(value).__name__)


def from_parameters(kind: type, parameters: Mapping[str, object], **more):
    """An object of a dataclass, such as Distillation: fields are parameters of the same name.

    more: fields that have no parameter of their name, or another value.
    """
    names = {field.name for field in fields(kind)} & parameters.keys()
    return kind(**{name: parameters[name] for name in names} | more)


# Written even if they are the defaults: what notebooks of distillations have parameters for.
ALWAYS = ("method", "train_images", "batch_size", "learning_rate", "loss_weight", "solver")
ALWAYS += ("self_ema", "ema_residual", "seed")


def parameters_of(settings: Distillation) -> dict[str, object]:
    """Parameters of a notebook that distils with these settings; rare ones if they are changed."""
    parameters = {"step_schedules": [_plain(settings.step_schedule)]}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in ALWAYS or (field.default is not MISSING and value != field.default):
            parameters[field.name] = value
    return parameters


def yaml_of(parameters: dict[str, object]) -> str:
    """A file of parameters."""
    return yaml.safe_dump(parameters, sort_keys=False, default_flow_style=None)


def presets_in(folder: Path) -> dict[str, dict]:
    """The parameters in a folder's YAML files, one entry for each schedule, named by both."""
    presets = {}
    for path in sorted(folder.glob("*.yaml")):
        parameters = read_parameters(path)
        for schedule in parameters.get("step_schedules", []):
            presets[f"{path.stem}, {format_schedule(schedule)}"] = parameters | {
                "step_schedules": [schedule]
            }
    return presets


def line(schedule: object) -> str:
    """A schedule, or an entry of one, in one line of YAML."""
    return str(_plain(schedule))


def _plain(schedule: object) -> object:
    return [*map(_plain, schedule)] if isinstance(schedule, list | tuple) else schedule
