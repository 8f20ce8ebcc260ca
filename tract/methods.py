"""BTD, TRACT and consistency distillation: what tells them apart, and the settings of a run.

From a level t the teacher makes the first hop, one step to u. Who makes the second, from u to the
end s of the group, and at which levels the student is taught, is all that the methods differ in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tract.checks import check_choice, check_flag, is_number
from tract.denoiser import Denoise
from tract.growth import GROWTHS
from tract.phases import Entry, Phase, equal_steps, first_grid, parse_schedule, written
from tract.presets import STUDENTS
from tract.samplers import X0_ESTIMATES
from tract.train import Training


def draw_any_level(phase: Phase, batch: int, generator: torch.Generator) -> Tensor:
    """Teacher steps 1..n (B,), uniformly: a self-teacher is asked inside every group."""
    device = generator.device
    return torch.randint(1, phase.teacher_steps + 1, (batch,), generator=generator, device=device)


def draw_group_start(phase: Phase, batch: int, generator: torch.Generator) -> Tensor:
    """Noisy ends of groups (B,), uniformly: all that is asked of a student of fixed teachers."""
    device = generator.device
    group = torch.randint(1, phase.student_steps + 1, (batch,), generator=generator, device=device)
    return group * phase.segment


class Method(NamedTuple):
    """Who makes the second hop, and where the student must be taught for that."""

    name: str
    second_hop: Callable[[Denoise, Denoise], Denoise]  # of (teacher, self_teacher)
    draw: Callable[[Phase, int, torch.Generator], Tensor]
    check: Callable[[Sequence[Phase]], None]


def _any_phases(phases: Sequence[Phase]) -> None:
    pass


def _halving_phases(phases: Sequence[Phase]) -> None:
    for phase in phases:
        if phase.segment > 2:
            raise ValueError(
                f"BTD halves the steps in every phase, and {phase} does not: use "
                "halving_schedule(T), or method 'TRACT'"
            )


def _one_phase(phases: Sequence[Phase]) -> None:
    if [phase.student_steps for phase in phases if phase.segment > 1] != [1]:
        raise ValueError(
            "consistency distillation has one phase, straight to 1 step: use step_schedule "
            f"[{phases[0].grid_steps}, 1], or method 'TRACT'"
        )


# Salimans & Ho 2022, algorithm 2: the student matches two steps of the teacher.
BTD = Method("BTD", lambda teacher, self_teacher: teacher, draw_group_start, _halving_phases)
# Paper, algorithm 1: the student's own running average finishes the group, however long.
TRACT = Method("TRACT", lambda teacher, self_teacher: self_teacher, draw_any_level, _any_phases)
# Song et al. 2023, algorithm 2: that same thing in its corner, one group T > 1.
CONSISTENCY = TRACT._replace(name="consistency", check=_one_phase)

METHODS = {method.name: method for method in (BTD, TRACT, CONSISTENCY)}


@dataclass(frozen=True, kw_only=True)
class Distillation(Training):
    """Settings of a distillation; images are divided equally among the phases.

    student: "" to keep the teacher's network, else the network that takes over in the schedule's
    phase of equal steps, see `presets.new_student`.
    """

    step_schedule: tuple[Entry, ...]  # such as (1024, 32, 1), from the teacher's grid
    growth: str = "equal"  # how long each of growing teacher grids is used: a name in GROWTHS
    method: str = "TRACT"  # a name in METHODS
    teacher_step: str = "ddim"  # of the first teacher; or "heun", two evaluations a step
    self_ema: float = 0.5  # mu_S, the decay of the self-teacher
    restart_ema: bool = True  # average each phase afresh, else over the phases before as well
    clamp: bool = True  # clamp predictions to [-1, 1] in targets; for images
    student: str = ""  # a name in STUDENTS

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.step_schedule, list | tuple):
            raise ValueError(
                f"step_schedule is {self.step_schedule!r}: use a list of steps, such as [1024, 1]"
            )
        entries = (tuple(e) if isinstance(e, list) else e for e in self.step_schedule)
        object.__setattr__(self, "step_schedule", tuple(entries))
        check_choice("method", self.method, METHODS)
        check_choice("teacher_step", self.teacher_step, X0_ESTIMATES)
        if not (is_number(self.self_ema) and 0 <= self.self_ema < 1):
            raise ValueError(f"self_ema is {self.self_ema!r}: use 0 or more and less than 1")
        check_flag("restart_ema", self.restart_ema)
        check_flag("clamp", self.clamp)
        check_choice("student", self.student, STUDENTS)
        phases = parse_schedule(self.step_schedule)
        METHODS[self.method].check(phases)
        check_choice("growth", self.growth, GROWTHS)
        if self.growth != "equal" and not phases[0].coarser:
            raise ValueError(
                f"growth is {self.growth!r}, and step_schedule {list(self.step_schedule)} lists no "
                "growing grids: list them as its first entry, such as [[4, 8, 16, 32], 1]"
            )
        if self.student and equal_steps(phases) is None:
            *before, last = self.step_schedule
            raise ValueError(
                f"student is {self.student!r}, and a new network has to learn its teacher's own "
                f"steps first: repeat an entry of step_schedule, such as "
                f"{[*before, before[-1], last]}"
            )
        parts = len(phases[0].parts)
        if self.steps_per_phase < parts:
            what = f"{parts} grids" if parts > 1 else f"{len(phases)} phases"
            raise ValueError(
                f"images is {self.images}, less than one batch of {self.batch} for each of "
                f"{what}: use {self.batch * len(phases) * parts} or more"
            )

    @property
    def phases(self) -> str:
        """The schedule as the paper writes it: 1024>32>1."""
        return written(self.step_schedule)

    @property
    def grid_steps(self) -> int:
        """T, the steps of the teacher's grid that the schedule starts from."""
        return first_grid(self.step_schedule)

    @property
    def num_phases(self) -> int:
        return len(self.step_schedule) - 1

    @property
    def steps_per_phase(self) -> int:
        return self.images // (self.batch * self.num_phases)

    @property
    def num_steps(self) -> int:
        return self.steps_per_phase * self.num_phases
