"""Plan of a distillation: images, steps and cost of each phase before it starts."""

from collections.abc import Sequence

import pandas as pd

from tract.ema import decay_from_residual
from tract.jobs.cost import image_flops, passes
from tract.phases import Phase
from tract.settings import Distillation


def phase_plan(
    config: dict, settings: Distillation, flop_rate: float | None = None
) -> pd.DataFrame:
    """Return one row for each phase of distilling the described network, and a total.

    Columns: phase, images, steps (of the optimizer), mu_I (decay of the inference average),
    evaluations (forward passes of all networks), GFLOP (including backward passes), time (in words;
    blank without flop_rate, in FLOP per second).
    """
    steps = settings.steps_per_phase
    images = steps * settings.batch_size
    passes_made = [sum(made) - 2 for made in passes(settings)]  # a backward pass counts as two
    table = pd.DataFrame(
        {
            "phase": [str(phase) for phase in settings.phases],
            "images": images,
            "steps": steps,
            "mu_I": decay_from_residual(settings.ema_residual, steps),
            "evaluations": [images * made for made in passes_made],
            "GFLOP": [images * flop / 1e9 for flop in image_flops(config, settings)],
        }
    )
    summed = table[["images", "steps", "evaluations", "GFLOP"]].sum()
    table.loc[len(table)] = {"phase": "all", **summed}
    table["time"] = [
        duration(1e9 * gflop / flop_rate) if flop_rate else "" for gflop in table.GFLOP
    ]
    return table


def split(phases: Sequence[Phase]) -> tuple[int, int] | None:
    """Return the index of the phase with the longest groups, and steps to split it at, or None.

    The two new phases have groups of lengths as equal as possible.
    """
    longest = max(phases, key=lambda phase: phase.segment)
    teacher, student = longest.parts[0].teacher_steps, longest.student_steps
    between = [n for n in range(student + 1, teacher) if teacher % n == n % student == 0]
    if not between:
        return None
    return phases.index(longest), min(between, key=lambda n: max(teacher // n, n // student))


def duration(seconds: float) -> str:
    """Format a time in a suitable unit with two or three digits: 42 s, 1.3 min, 6.2 h, 12 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.{1 if seconds < 10 * length else 0}f} {unit}"
    return f"{seconds:.0f} s"
