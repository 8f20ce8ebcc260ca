"""When a phase passes on from a teacher grid to the next finer one, nothing being restarted.

A coarse grid has short chains of hops and a teacher whose steps are long and wrong, a fine one the
reverse; growing from one to the other is not of the paper. Plain numbers, no tensors.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

WINDOWS = 40  # means of the loss in a phase, that `when_stalled` compares
STALLED = 0.97  # of the mean before: a loss that falls by less has stalled


@dataclass
class Progress:
    """Where a phase is among its growing grids, and what its loss did on this one.

    part: index of the grid. count, total: of the losses of this window. before: mean of the last
    window, 0 if there is none.
    """

    part: int = 0
    count: int = 0
    total: float = 0.0
    before: float = 0.0


# A rule gives the index of the next step's grid after done of a phase's steps, perhaps one too
# many. What it keeps of the losses it keeps in progress; one that needs none does not read it.
Rule = Callable[[Sequence[int], int, int, Progress, SupportsFloat], int]


def equal_parts(
    grids: Sequence[int], done: int, steps: int, progress: Progress, loss: SupportsFloat
) -> int:
    """Each grid for as long as the others."""
    return done * len(grids) // steps


def geometric_parts(
    grids: Sequence[int], done: int, steps: int, progress: Progress, loss: SupportsFloat
) -> int:
    """Each in proportion to its steps: every level of every grid is taught about as often."""
    ends = itertools.accumulate(grids)
    return sum(done * sum(grids) >= end * steps for end in ends)


def when_stalled(
    grids: Sequence[int], done: int, steps: int, progress: Progress, loss: SupportsFloat
) -> int:
    """On to the next as soon as the loss has stalled, with equal parts at the latest.

    Compared are its means over 1 / WINDOWS of the phase, on the same grid.
    """
    progress.count += 1
    progress.total += float(loss)
    part = progress.part
    if progress.count >= steps / WINDOWS:
        mean = progress.total / progress.count
        part += 0 < STALLED * progress.before < mean
        progress.count, progress.total, progress.before = 0, 0.0, mean
    return max(part, equal_parts(grids, done, steps, progress, loss))


GROWTHS: dict[str, Rule] = {
    "equal": equal_parts,
    "geometric": geometric_parts,
    "stalled": when_stalled,
}


def grown(
    growth: str,
    grids: Sequence[int],
    done: int,
    steps: int,
    progress: Progress,
    loss: SupportsFloat,
) -> Progress:
    """Progress after done of a phase's steps, the last of which had this loss."""
    part = min(GROWTHS[growth](grids, done, steps, progress, loss), len(grids) - 1)
    return progress if part == progress.part else Progress(part)
