"""BTD, TRACT and consistency distillation as table entries, and the target they share.

From a level t the first hop leads to u, one teacher step on; the second leads from u to s, the end
of the group. Methods differ only in what makes the hops and at which levels the student is trained.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tract.denoiser import Denoise
from tract.levels import Level, broadcast
from tract.phases import Phase, halving_schedule
from tract.samplers import Solver, data_x0, ddim_x0
from tract.seeds import draw_uniform
from tract.step import closure_weight, ddim_step


def draw_any_level(phase: Phase, batch: int, generator: torch.Generator) -> Tensor:
    """Draw teacher steps 1..n (B,) uniformly: a self-teacher is evaluated inside every group."""
    return draw_uniform(phase.teacher_steps, batch, generator)


def draw_group_start(phase: Phase, batch: int, generator: torch.Generator) -> Tensor:
    """Draw group starts (B,) uniformly: the only levels at which a BTD student is evaluated."""
    return phase.segment * draw_uniform(phase.student_steps, batch, generator)


class Method(NamedTuple):
    """What makes the two hops, and the levels where the student is trained; TRACT's by default.

    self_taught: whether the self-teacher makes the second hop, for pictures. check: raises
    ValueError for phases the method does not allow. schedule: the method's own schedule from [T,
    ..., n]. first_hop: None for a teacher step by the solver of the settings.
    """

    name: str
    self_taught: bool = True
    second_hop: Callable[[Denoise, Denoise], Denoise] = lambda teacher, self_teacher: self_teacher
    draw: Callable[[Phase, int, torch.Generator], Tensor] = draw_any_level
    check: Callable[[Sequence[Phase]], None] = lambda phases: None
    schedule: Callable[[list[int]], list[int]] = lambda steps: steps
    first_hop: Solver | None = None


def _halving_phases(phases: Sequence[Phase]) -> None:
    for phase in phases:
        if phase.segment > 2:
            raise ValueError(
                f"BTD halves the steps in every phase, but {phase} does not: use "
                "halving_schedule(T), or method 'TRACT'"
            )


def _one_phase(phases: Sequence[Phase]) -> None:
    if [phase.student_steps for phase in phases if phase.segment > 1] != [1]:
        raise ValueError(
            "consistency distillation has one phase, which ends at 1 step: use step_schedule "
            f"[{phases[0].grid_steps}, 1], or method 'TRACT'"
        )


# Paper, algorithm 1: the student's running average leads to the end of the group.
TRACT = Method("TRACT")
# Salimans & Ho 2022, algorithm 2: the student matches two steps of the teacher.
BTD = Method(
    "BTD",
    self_taught=False,
    second_hop=lambda teacher, self_teacher: teacher,
    draw=draw_group_start,
    check=_halving_phases,
    schedule=lambda steps: halving_schedule(steps[0], steps[-1]),
)
# Song et al. 2023, algorithm 2: the special case of TRACT with one group, T > 1.
CONSISTENCY = Method("consistency", check=_one_phase, schedule=lambda steps: [steps[0], 1])
# Song et al. 2023, algorithm 3, in groups of any length: data replace the teacher's first hop.
CT = Method("CT", first_hop=data_x0)

METHODS = {method.name: method for method in (BTD, TRACT, CONSISTENCY, CT)}


@torch.no_grad()
def closure_target(
    teacher: Denoise,
    second: Denoise | None,
    x_t: Tensor,
    t: Level,
    u: Level,
    s: Level,
    labels: Tensor | None = None,
    solver: Solver = ddim_x0,
    x0: Tensor | None = None,
) -> Tensor:
    """Return the x0 (B, ...) whose single step t -> s equals the hops t -> u and u -> s.

    Paper eq. 8 and 9 for VP, 14 and 15 for VE; with the teacher as `second` it is BTD's target.
    Where u = s it is the first hop's x0; second is None if u = s throughout. solver: makes the
    first hop, and the teacher's second. x0: the data (B, ...), for solvers that use them.
    """
    x0_first = solver(teacher, x_t, t, u, labels, x0)
    if second is None:
        return x0_first
    estimate = solver if second is teacher else ddim_x0
    x0_second = estimate(second, ddim_step(x_t, x0_first, t, u), u, s, labels, x0)
    weight = broadcast(closure_weight(t, u, s), x_t)
    # Not lerp alone: a step from the clean level u = s = 0 is nan.
    return torch.where(weight == 1, x0_first, torch.lerp(x0_second, x0_first, weight))
