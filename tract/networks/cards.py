"""Cards of models and runs: check their fields, compare them, find the run of a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tract.base.checks import check_choice, check_flag, check_text, check_whole, reading, shown
from tract.levels import NOISE_SCHEDULES
from tract.phases import MOST_STEPS, Entry, first_grid, parse_schedule


@dataclass(frozen=True)
class About:
    """The fields of a model's card that sampling, measuring and exporting use."""

    method: str
    noise_schedule: str
    teacher_steps: int
    clamp: bool
    step_schedule: tuple[Entry, ...]  # empty for a teacher
    classes: tuple[int, ...] = ()  # trained on, if the network has more

    @property
    def grid_steps(self) -> int:
        """Steps of the grid of levels on which it is sampled."""
        return first_grid(self.step_schedule or [self.teacher_steps])


def about_model(card: dict, path: str | Path) -> About:
    """Return the checked fields of a model's card; raises ValueError, with the path, if invalid."""
    what = "does not say for which levels it was trained"
    with reading(path, what, "give a model of a run"):
        experiment, settings = card["experiment"], card.get("settings") or {}
        about = About(
            card.get("method", "unknown"),
            experiment["noise_schedule"],
            experiment["teacher_steps"],
            experiment.get("clamp", True),
            tuple(settings.get("step_schedule", ())),
            tuple(experiment.get("classes", ())),
        )
        check_text("method", about.method)
        check_choice("noise_schedule", about.noise_schedule, NOISE_SCHEDULES)
        check_whole("teacher_steps", about.teacher_steps, 1, MOST_STEPS)
        check_flag("clamp", about.clamp)
        for label in about.classes:
            check_whole("classes", label, 0)
        if "step_schedule" in settings:
            parse_schedule(about.step_schedule)
    return about


def differences(before: object, now: object, name: str = "") -> list[str]:
    """List all entries that differ between two JSON-able cards, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        odd = (
            differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
            for key in sorted(before.keys() | now.keys())
        )
        return [difference for some in odd for difference in some]
    return [] if before == now else [f"{name} ({shown(before)} there, {shown(now)} here)"]


def check_owner(path: str | Path, found: dict, runs: Sequence[dict], part: str = "") -> None:
    """Raise ValueError unless a file's card belongs to one of these runs, or to part of one.

    part: an entry that only this kind of file has: "phase", "step" of the best, "counters" of a
    checkpoint; a run's result has none of them. The network of the first two may be the one that
    the run's student replaced.
    """
    if part in ("phase", "step"):
        runs = [{n: value for n, value in run.items() if n != "network"} for run in runs]
    odd = min(
        ([d for key in run for d in differences(found.get(key), run[key], key)] for run in runs),
        key=len,
    )
    others = {"phase", "step", "counters"} - {part}
    odd += [f"a {key} in it" for key in sorted(others & found.keys())]
    odd += [f"no {part} in it"] if part and part not in found else []
    if odd:
        raise ValueError(
            f"{path} belongs to another run or to a part of it, with {', '.join(odd[:3])}: "
            "restore the run's own, or remove it"
        )
