"""Parameters of notebooks: declared by a notebook, given in a YAML file or on the command line."""

import ast
import difflib
import json
import os
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from warnings import catch_warnings

import nbformat
import yaml

from tract.base.checks import reading, shown
from tract.base.files import place
from tract.base.yaml_files import read_parameters, read_yaml
from tract.phases import format_schedule
from tract.settings import Distillation, check_residual

# Former names of parameters.
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

# The notebooks are beside the package in a clone; pip installs them into a shared folder.
CLONE = Path(__file__).resolve().parents[2]
NOTEBOOKS = CLONE / "notebooks"
if not NOTEBOOKS.is_dir():
    NOTEBOOKS = Path(sysconfig.get_path("data")) / "share" / "tract" / "notebooks"

# Parameters that are paths unless empty, besides those that end in _dir.
PATHS = ("teacher", "figure", "figures", "results", "published", "classifier", "grid", "models")


def declared_parameters(notebook: str | Path) -> dict[str, object]:
    """Return names and default values in a notebook's cell tagged `parameters`.

    Raises FileNotFoundError if it is missing, ValueError for a file without such a cell.
    """
    path = Path(notebook)
    if not path.is_file():
        raise FileNotFoundError(f"no notebook {path}: correct the path; tract's are in {NOTEBOOKS}")
    with reading(path, "is not a notebook", "restore it"):
        content = json.loads(path.read_bytes())
        with catch_warnings(action="ignore"):
            nbformat.validate(content)
        if content["nbformat"] < 4:
            raise ValueError(f"format {content['nbformat']}, not 4")
        tagged = [c for c in content["cells"] if "parameters" in c["metadata"].get("tags", [])]
        declared = [_assignments("".join(cell["source"])) for cell in tagged]
    if not declared:
        raise ValueError(f"{path} has no cell tagged 'parameters': add it")
    return declared[0]


def check_parameters(declared: Mapping[str, object], given: Mapping[str, object]) -> dict:
    """Return the given parameters, with numbers of their defaults' type: 96e6 becomes an integer.

    Raises ValueError if one is not declared, or differs in type from its default.
    """
    checked = {}
    for name, value in given.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            close = [RENAMED[name]] if RENAMED.get(name) in declared else close
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {list(declared)}"
            raise ValueError(f"unknown parameter {shown(name)}: {hint}")
        default = declared[name]
        if _kind(value) != _kind(default):
            raise ValueError(
                f"parameter {name} is {shown(value)}: give a {_kind(default)}, as the default "
                f"{default!r} is"
            )
        whole = type(default) is int and isinstance(value, float) and value.is_integer()
        checked[name] = int(value) if whole else value
    return checked


def typed_parameters(notebook: Path, file: Path | None, typed: Sequence[tuple[str, str]]) -> dict:
    """Return the parameters of a notebook from a YAML file and the command line, checked.

    A parameter whose default is text is taken literally, others are YAML. Paths are relative to the
    current folder.
    """
    given = read_parameters(file) if file else {}
    declared = declared_parameters(notebook)
    for name, text in typed:
        is_text = isinstance(declared.get(name), str)
        given[name] = text if is_text else read_yaml(text, f"parameter {name}")
    return {n: from_here(n, value) for n, value in check_parameters(declared, given).items()}


def from_here(name: str, value: object) -> object:
    """Return a parameter's value, with a path relative to the current folder made absolute."""
    is_path = name.endswith("_dir") or name in PATHS
    if not is_path or not value or not isinstance(value, str):
        return value
    if name == "teacher":
        from tract.teachers.load import may_be_hub_name

        if may_be_hub_name(value):
            return value
    return os.path.abspath(place(value))  # noqa: PTH100


def refuse_unknown_parameters(cells: Sequence[str]) -> None:
    """Raise ValueError if papermill injected a parameter that the notebook does not declare.

    cells: IPython's `In`, the cells executed so far. Papermill itself only warns.
    """
    injected = [i for i, cell in enumerate(cells) if cell.startswith("# Parameters\n")]
    if injected:
        declared: dict[str, object] = {}
        for cell in cells[: injected[-1]]:  # executed before, possibly repeatedly
            declared |= _assignments(cell)
        check_parameters(declared, _assignments(cells[injected[-1]]))


# Parameters that change where and how fast a result is computed, but not the result.
PLACES = ("run_dir", "figure", "figures", "processes", "threads", "compute", "checkpoint_minutes")


def as_committed(parameters: Mapping[str, object], name: str) -> bool:
    """Return whether a notebook, named without suffix, has its committed parameters.

    parameters: the notebook's names after its parameters. Those in PLACES may differ. False if the
    committed notebook is missing.
    """
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.is_file():
        return False
    declared = declared_parameters(path)
    return all(parameters.get(n) == value for n, value in declared.items() if n not in PLACES)


def check_claims(claims: Mapping[str, bool], asserted: bool) -> None:
    """Print which claims hold; raises AssertionError for those that do not, if asserted."""
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'does not hold'}: {claim}")
    failed = [claim for claim, holds in claims.items() if not holds]
    if asserted and failed:
        raise AssertionError("; ".join(failed))
    if not asserted:
        print("parameters differ from the committed ones: nothing is asserted")


def _assignments(source: str) -> dict[str, object]:
    """Return names that source assigns to literals at its top level, and their values."""
    values = {}
    try:
        nodes = ast.parse(source).body
    except SyntaxError:  # a cell with IPython magic
        return values
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with suppress(ValueError):  # not a literal
                values[node.targets[0].id] = ast.literal_eval(node.value)
    return values


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "number"
    return {str: "text", list: "list"}.get(type(value), type(value).__name__)


def from_parameters(kind: type, parameters: Mapping[str, object], **more):
    """Return an object of a dataclass, such as Distillation, from parameters named like its fields.

    more: fields without such a parameter, or with another value. ema_decay, the decay mu_I,
    replaces ema_residual unless it is 0; raises ValueError if it leaves no residual.
    """
    names = {field.name for field in fields(kind)} & parameters.keys()
    made = kind(**{name: parameters[name] for name in names} | more)
    decay = parameters.get("ema_decay", 0)
    if not decay or "ema_residual" not in names:
        return made
    check_residual("ema_decay", decay)
    residual = decay**made.steps_per_phase
    if residual == 0:
        steps = made.steps_per_phase
        raise ValueError(f"ema_decay is {decay}: use a value closer to 1 for {steps} steps")
    return replace(made, ema_residual=residual)


# Always written, even at their defaults: the notebooks' parameters of a distillation.
ALWAYS = ("method", "train_images", "batch_size", "learning_rate", "loss_weight", "solver")
ALWAYS += ("self_ema", "ema_residual", "seed")


def parameters_of(settings: Distillation) -> dict[str, object]:
    """Return the notebook parameters of these settings; rare ones only if not at their default."""
    parameters = {"step_schedules": [_plain(settings.step_schedule)]}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in ALWAYS or (field.default is not MISSING and value != field.default):
            parameters[field.name] = value
    return parameters


def yaml_of(parameters: dict[str, object]) -> str:
    """Format a file of parameters."""
    return yaml.safe_dump(parameters, sort_keys=False, default_flow_style=None)


def presets_in(folder: Path) -> dict[str, dict]:
    """Return the parameters in a folder's YAML files, one entry per schedule, named by both."""
    presets = {}
    for path in sorted(folder.glob("*.yaml")):
        parameters = read_parameters(path)
        for schedule in parameters.get("step_schedules", []):
            presets[f"{path.stem}, {format_schedule(schedule)}"] = parameters | {
                "step_schedules": [schedule]
            }
    return presets


def line(schedule: object) -> str:
    """Format a schedule, or an entry of one, as one line of YAML."""
    return str(_plain(schedule))


def _plain(schedule: object) -> object:
    return [*map(_plain, schedule)] if isinstance(schedule, list | tuple) else schedule
