"""Phase schedules: lists such as [1024, 32, 1], checked before any compute, and their groups.

Plain integers, no tensors: editors, plots and cost estimates read these as well as the distiller.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """One arrow of a schedule: a student of student_steps learns from a teacher of teacher_steps.

    grid_steps is T, the length of the first teacher's grid; all indices count its levels. With
    equal steps (segment 1) nothing is shortened: another network learns what the teacher knows.
    """

    grid_steps: int
    teacher_steps: int
    student_steps: int

    @property
    def stride(self) -> int:
        """Grid indices crossed by one teacher step."""
        return self.grid_steps // self.teacher_steps

    @property
    def segment(self) -> int:
        """Teacher steps inside one student step."""
        return self.teacher_steps // self.student_steps

    def __str__(self) -> str:
        return f"{self.teacher_steps}>{self.student_steps}"


def parse_schedule(step_schedule: Sequence[int], grid_steps: int) -> list[Phase]:
    """Phases of a schedule that starts at the teacher's grid; ValueError if it is impossible.

    Each entry must divide the one before it; the last must be at least 1. One may come twice, as
    in 1024>32>32>1: in that phase of equal steps another network takes over.
    """
    steps = list(step_schedule)
    shown = f"step_schedule is {steps}"
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in steps):
        raise ValueError(f"{shown}: every entry must be a whole number of steps")
    if len(steps) < 2:
        raise ValueError(f"{shown}: give two entries or more, such as [{grid_steps}, 1]")
    if steps[0] != grid_steps:
        raise ValueError(
            f"{shown} but the teacher's grid has {grid_steps} steps: start with {grid_steps}"
        )
    if min(steps) < 1:
        raise ValueError(f"{shown}: {min(steps)} is no number of steps; end at 1 or more")
    for before, after in itertools.pairwise(steps):
        if after > before:
            raise ValueError(f"{shown}: {after} does not decrease from {before}; use a divisor")
        if before % after:
            raise ValueError(
                f"{shown}: {after} does not divide {before}, so the groups would not line up; "
                f"near divisors of {before} are {_near_divisors(before, after)}"
            )
    phases = [Phase(grid_steps, a, b) for a, b in itertools.pairwise(steps)]
    if sum(phase.segment == 1 for phase in phases) > 1:
        raise ValueError(
            f"{shown}: steps stay equal more than once, and the network changes only once; leave "
            "out what repeats"
        )
    return phases


def equal_steps(phases: Sequence[Phase]) -> int | None:
    """Index of the phase of equal steps, in which another network takes over; None without one."""
    return next((i for i, phase in enumerate(phases) if phase.segment == 1), None)


def halving_schedule(grid_steps: int, last: int = 1) -> list[int]:
    """BTD's schedule T, T/2, ..., last; ValueError where halving does not lead there."""
    steps = [grid_steps]
    while steps[-1] > last and steps[-1] % 2 == 0:
        steps.append(steps[-1] // 2)
    if steps[-1] != last:
        raise ValueError(
            f"halving {grid_steps} leads to {steps[-1]}, not to {last}: use {last} times a power "
            "of two"
        )
    return steps


def _near_divisors(number: int, wanted: int) -> str:
    divisors = [d for d in range(1, number) if number % d == 0]
    nearest = sorted(sorted(divisors, key=lambda d: abs(d - wanted))[:2])
    return " and ".join(map(str, nearest))
