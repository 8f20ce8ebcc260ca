"""Names of runs: as directories and labels, and settings from a card."""

from dataclasses import MISSING, fields

from tract.settings import Distillation, Training

TEACHER = "teacher"  # name of the teacher's run
# Names of runs, and so rows of results, keep their meaning when a default changes: they omit the
# values in UNNAMED, the defaults when names were introduced.
UNNAMED = {"clamp": "all"}


def run_name(settings: Training) -> str:
    """Return the directory of a run: the teacher's, or the settings that identify a distillation.

    Such as TRACT-1024-32-1-30720images-seed0; settings that differ from the default, or from
    UNNAMED, come in between.
    """
    if not isinstance(settings, Distillation):
        return TEACHER
    steps = settings.schedule.replace(">", "-").replace("<", "_")  # valid on any system
    images = f"{settings.train_images}images"
    changed = [
        f"{field.name}{_short(getattr(settings, field.name))}"
        for field in fields(settings)
        if field.default is not MISSING
        and field.name not in ("method", "seed")
        and getattr(settings, field.name) != UNNAMED.get(field.name, field.default)
    ]
    return "-".join([settings.method, steps, images, *changed, f"seed{settings.seed}"])


def label_of(settings: Training) -> str:
    """Return method and schedule of a run, for display."""
    distilled = isinstance(settings, Distillation)
    return f"{settings.method} {settings.schedule}" if distilled else TEACHER


def settings_from(card: dict) -> Training:
    """Return the settings on a card: of a distillation, or of a teacher's training."""
    return (Distillation if "step_schedule" in card else Training)(**card)


def _short(value: object) -> str:
    """Shorten a setting's value for the name of a run: 0.9, or 1e-08_0.15 for several."""
    return "_".join(map(str, value)) if isinstance(value, tuple) else str(value)
