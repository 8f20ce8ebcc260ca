"""Settings of distillations as papermill's parameters: written, and read from files of presets."""

from dataclasses import MISSING, fields
from pathlib import Path

import yaml

from tract.console import read_parameters
from tract.methods import Distillation
from tract.phases import written

# Written even if they are the defaults: what notebooks of distillations have parameters for.
ALWAYS = ("method", "images", "batch", "learning_rate", "weight", "teacher_step")
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
            presets[f"{path.stem}, {written(schedule)}"] = parameters | {
                "step_schedules": [schedule]
            }
    return presets


def line(schedule: object) -> str:
    """A schedule, or an entry of one, in one line of YAML."""
    return str(_plain(schedule))


def _plain(schedule: object) -> object:
    return [*map(_plain, schedule)] if isinstance(schedule, list | tuple) else schedule
