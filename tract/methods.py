"""BTD, TRACT and consistency distillation as data, and the target that they share.

From a level t a first hop leads to u, one step on, and a second from there to the end s of the
group. The methods differ only in who makes them, and at which levels the student is taught.
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
    """Teacher steps 1..n (B,), uniformly: a self-teacher is evaluated inside every group."""
    return draw_uniform(phase.teacher_steps, batch, generator)


def draw_group_start(phase: Phase, batch: int, generator: torch.Generator) -> Tensor:
    """Noisy ends of groups (B,), uniformly: the only levels at which a BTD student is evaluated."""
    return phase.segment * draw_uniform(phase.student_steps, batch, generator)


class Method(NamedTuple):
    """Who makes the two hops, and where the student must be taught for that; by default TRACT's.

    self_taught: whether the second hop is the self-teacher's, for pictures. check: raises
    ValueError for phases that the method cannot have. schedule: its own schedule from [T, ..., n].
    first_hop: None for the teacher's step, by the solver of the settings.
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
                f"BTD halves the steps in every phase, and {phase} does not: use "
                "halving_schedule(T), or method 'TRACT'"
            )


def _one_phase(phases: Sequence[Phase]) -> None:
    if [phase.student_steps for phase in phases if phase.segment > 1] != [1]:
        raise ValueError(
            "consistency distillation has one phase, straight to 1 step: use step_schedule "
            f"[{phases[0].grid_steps}, 1], or method 'TRACT'"
        )


# Paper, algorithm 1: the student's own running average finishes the group, however long.
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
# Song et al. 2023, algorithm 2: TRACT in its corner, one group T > 1.
CONSISTENCY = Method("consistency", check=_one_phase, schedule=lambda steps: [steps[0], 1])
# Song et al. 2023, algorithm 3, in any segments: the data make the first hop, there is no teacher.
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
    """x0 (B, ...) that leads from t to s in one step, as the hops t -> u and u -> s do in two.

    Paper eq. 8 and 9 for VP, 14 and 15 for VE; with the teacher as `second` it is BTD's target.
    Where u = s it is the first hop's x0; second is None where that is so for all. solver: makes
    the first hop, and the teacher's second. x0: the data (B, ...), for solvers that know them.
    """
    x0_first = solver(teacher, x_t, t, u, labels, x0)
    if second is None:
        return x0_first
    estimate = solver if second is teacher else ddim_x0
    x0_second = estimate(second, ddim_step(x_t, x0_first, t, u), u, s, labels, x0)
    weight = broadcast(closure_weight(t, u, s), x_t)
    # Not lerp alone: no step from the clean level u = s = 0 is a number.
    return torch.where(weight == 1, x0_first, torch.lerp(x0_second, x0_first, weight))
