"""Phase schedules: lists such as [1024, 32, 1], validated before any compute, and their groups.

The first entry may be a list of growing teacher grids, [[4, 8, 16, 32], 1], written 4<8<16<32>1.
Plain integers, no tensors: editors, plots and cost estimates read schedules too.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tract.base.checks import check_whole

MOST_STEPS = 100_000  # in any grid: files may claim any number
Entry = int | Sequence[int]  # a number of steps, or the teacher's growing grids


@dataclass(frozen=True)
class Phase:
    """One phase of a schedule: a student of student_steps learns from a teacher of teacher_steps.

    grid_steps is T, the length of the first teacher's grid; all indices refer to its levels. With
    equal steps (segment 1) a student with another network learns the teacher's own steps. coarser:
    teacher grids used before that of teacher_steps in this phase.
    """

    grid_steps: int
    teacher_steps: int
    student_steps: int
    coarser: tuple[int, ...] = ()

    @property
    def stride(self) -> int:
        """Grid indices crossed by one teacher step."""
        return self.grid_steps // self.teacher_steps

    @property
    def segment(self) -> int:
        """Teacher steps inside one student step."""
        return self.teacher_steps // self.student_steps

    @property
    def parts(self) -> list["Phase"]:
        """One phase for each teacher grid, from the coarsest to the finest."""
        grids = (*self.coarser, self.teacher_steps)
        return [replace(self, teacher_steps=steps, coarser=()) for steps in grids]

    def part_at(self, done: int, steps: int) -> "Phase":
        """Return the part in use after `done` optimizer steps; all parts are equally long."""
        return self.parts[done * (len(self.coarser) + 1) // steps]

    def hops(self, first):
        """Return grid indices t, u, s of teacher steps `first`, an integer or tensor from 1.

        The teacher's hop leads from t to u; s is the clean end of the group that contains both.
        """
        i_s = (first - 1) // self.segment * self.segment
        return first * self.stride, (first - 1) * self.stride, i_s * self.stride

    def __str__(self) -> str:
        return format_schedule([(*self.coarser, self.teacher_steps), self.student_steps])


def parse_schedule(step_schedule: Sequence[Entry], grid_steps: int | None = None) -> list[Phase]:
    """Return the phases of a schedule; raises ValueError if it is invalid.

    grid_steps: the teacher's, by default the first entry. Each entry must divide the one before it.
    One may be repeated, as in 1024>32>32>1: in that phase of equal steps a student with another
    network takes over. In a list of growing grids each must divide the next; the last is the
    teacher's grid.
    """
    shown = f"step_schedule is {list(step_schedule)}"
    grids = [_grids(entry) for entry in step_schedule]
    if not all(grids):
        raise ValueError(f"{shown}: an empty list is not a grid; omit it")
    for steps in itertools.chain(*grids):
        check_whole(f"{shown}: an entry", steps, 1, MOST_STEPS)
    if any(len(grid) > 1 for grid in grids[1:]):
        raise ValueError(
            f"{shown}: only the first entry can be a list of growing grids, because the teacher "
            "of a later phase is a student, which has only its own steps: use a number there"
        )
    steps = [grid[-1] for grid in grids]
    if len(steps) < 2:
        example = [grid_steps or (*steps, 1024)[0], 1]
        raise ValueError(f"{shown}: give two entries or more, such as {example}")
    grid_steps = grid_steps or steps[0]
    if steps[0] != grid_steps:
        raise ValueError(
            f"{shown} but the teacher's grid has {grid_steps} steps: start with {grid_steps}"
        )
    for before, after in itertools.pairwise(steps):
        if after > before:
            raise ValueError(f"{shown}: {after} does not decrease from {before}; use a divisor")
        if before % after:
            divisors = [d for d in range(1, before) if before % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - after))[:2])
            raise ValueError(
                f"{shown}: {after} does not divide {before}, so the groups would not line up; "
                f"near divisors of {before} are {' and '.join(map(str, near))}"
            )
    coarser = grids[0][:-1]
    _check_growth(shown, coarser, *steps[:2])
    first, *others = [Phase(grid_steps, a, b) for a, b in itertools.pairwise(steps)]
    phases = [replace(first, coarser=coarser), *others]
    if sum(phase.segment == 1 for phase in phases) > 1:
        raise ValueError(
            f"{shown}: entries are repeated more than once, but the network changes only once: "
            "omit a repetition"
        )
    return phases


def _check_growth(shown: str, coarser: Sequence[int], finest: int, student_steps: int) -> None:
    """Raise ValueError unless growing grids refine each other and the student's steps."""
    for before, after in itertools.pairwise((*coarser, finest)):
        if before >= after or after % before:
            raise ValueError(
                f"{shown}: the grid of {after} does not refine that of {before}: each number in "
                "the list must divide the next"
            )
    if coarser and (coarser[0] <= student_steps or coarser[0] % student_steps):
        raise ValueError(
            f"{shown}: the coarsest grid has {coarser[0]} steps, which is not a proper multiple of "
            f"the student's {student_steps}: begin with a multiple of {student_steps}, "
            f"{2 * student_steps} or more"
        )


def format_schedule(step_schedule: Sequence[Entry]) -> str:
    """Format a schedule as in the paper, 1024>32>1; growing grids as 4<8<16<32>1."""
    return ">".join("<".join(map(str, _grids(entry))) for entry in step_schedule)


def in_steps(number: int) -> str:
    """Format a number of steps for labels: 1 step, 2 steps."""
    return f"{number} step" + ("s" if number > 1 else "")


def first_grid(step_schedule: Sequence[Entry]) -> int:
    """Return T, the steps of the schedule's teacher grid, the last one if it grows."""
    return _grids(step_schedule[0])[-1]


def _grids(entry: Entry) -> tuple[int, ...]:
    """Return the grids of an entry: one unless it is a list."""
    return tuple(entry) if isinstance(entry, list | tuple) else (entry,)


def equal_steps(phases: Sequence[Phase]) -> int | None:
    """Return the index of the phase of equal steps, in which the network changes, or None."""
    return next((i for i, phase in enumerate(phases) if phase.segment == 1), None)


def halving_schedule(grid_steps: int, last: int = 1) -> list[int]:
    """Return BTD's schedule T, T/2, ..., last; raises ValueError if halving misses last."""
    steps = [grid_steps]
    while steps[-1] > last and steps[-1] % 2 == 0:
        steps.append(steps[-1] // 2)
    if steps[-1] != last:
        raise ValueError(
            f"halving {grid_steps} leads to {steps[-1]}, not to {last}: use {last} times a power "
            "of two"
        )
    return steps


def doubling(coarsest: int, finest: int) -> list[int]:
    """Return growing grids coarsest, twice that, ..., finest; raises as `halving_schedule`."""
    return halving_schedule(finest, coarsest)[::-1]
