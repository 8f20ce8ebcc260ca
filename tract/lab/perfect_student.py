"""Distillation without a network: students that learn their targets perfectly.

In the first round of a phase the self-teacher is a copy of the teacher, and the student learns one
step of the teacher followed by a leap over the rest of the group. The self-teacher then knows that,
and in the next round the student learns two steps and a leap. A group of n steps is learned after
n - 1 rounds: the leap is then its last step, and the student lands where the teacher's steps lead.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tract.denoiser import Denoise
from tract.levels import Level, broadcast
from tract.phases import Phase
from tract.step import closure_weight, ddim_step


@dataclass(frozen=True)
class PerfectStudent:
    """The student of a teacher after the phases of a schedule, with rounds of learning in each."""

    teacher: Denoise
    levels: Level  # the teacher's grid
    phases: Sequence[Phase]
    rounds: Sequence[int]  # 0 or more for each phase

    def walk(self, eps: Tensor) -> list[Tensor]:
        """The student's steps from noise eps (B, ...) to data, split into hops.

        Each of its steps is one step of its teacher, the student of the phase before, per round,
        and a leap to the end of the group.
        """
        last = len(self.phases) - 1
        phase, rounds = self.phases[last], self.rounds[last]
        x = broadcast(self.levels[-1].sigma, eps) * eps
        points = [x]
        for group in range(phase.student_steps, 0, -1):
            i_t, end = (g * phase.segment * phase.stride for g in (group, group - 1))
            hops = min(rounds, phase.segment - 1)
            stops = [i_t - hop * phase.stride for hop in range(hops + 1)] + [end]
            for i, i_next in itertools.pairwise(stops):
                x0 = self._x0(last - 1, x, i)
                x = ddim_step(x, x0, self.levels[i], self.levels[i_next])
                points.append(x)
        return points

    def _x0(self, index: int, x_t: Tensor, i_t: int) -> Tensor:
        """x0 (B, ...) of a phase's student at a level of the grid; index -1 is the teacher."""
        if index < 0:
            return self.teacher(x_t, self.levels[i_t])
        phase = self.phases[index]
        length = phase.segment * phase.stride
        i_s = (i_t - 1) // length * length
        s, hops = self.levels[i_s], []
        for _ in range(self.rounds[index]):
            x0, i_u = self._x0(index - 1, x_t, i_t), i_t - phase.stride
            t, u = self.levels[i_t], self.levels[i_u]
            hops.append((x0, closure_weight(t, u, s)))
            if i_u == i_s:
                break
            x_t, i_t = ddim_step(x_t, x0, t, u), i_u
        else:
            hops.append((self._x0(index - 1, x_t, i_t), torch.tensor(1.0)))  # the leap
        x0 = hops.pop()[0]
        for first, weight in reversed(hops):  # eq. 9: one x0 for all hops
            x0 = torch.lerp(x0, first, broadcast(weight, x0))
        return x0


def shared_rounds(rounds: int, num_phases: int) -> list[int]:
    """Rounds divided among phases as equally as possible; the first ones have more."""
    return [(rounds + num_phases - 1 - i) // num_phases for i in range(num_phases)]
