"""Exponential moving averages of a network's weights, without host synchronisation."""

from collections.abc import Callable

import torch
from torch import nn


def ema_updater(target: nn.Module, source: nn.Module) -> Callable[[float], None]:
    """Return f(decay), which moves target's parameters towards source's and copies buffers.

    target becomes decay * target + (1 - decay) * source, with decay in [0, 1]. Names are matched
    once, here. Raises ValueError if they differ.
    """
    averages, values = dict(target.named_parameters()), dict(source.named_parameters())
    if averages.keys() != values.keys():
        odd = sorted(averages.keys() ^ values.keys())
        raise ValueError(f"the average and its source differ in {odd}: use the same network")
    buffers, sources = dict(target.named_buffers()), dict(source.named_buffers())
    values, sources = [values[name] for name in averages], [sources[name] for name in buffers]
    averages, buffers = list(averages.values()), list(buffers.values())

    @torch.no_grad()
    def follow(decay: float) -> None:
        torch._foreach_lerp_(averages, values, 1 - decay)
        if buffers:
            torch._foreach_copy_(buffers, sources)

    return follow


def bias_corrected(decay: float, update: int) -> float:
    """Return the decay of the update-th update (1, 2, ...) that removes the influence of the start.

    1 - (1 - decay) / (1 - decay^update): the first update copies. Paper, section 3.1.
    """
    return 1 - (1 - decay) / (1 - decay**update)


def decay_from_residual(residual: float, updates: int) -> float:
    """Return the decay that leaves the share `residual` of the start after this many updates.

    A residual fixes the inference average independently of the length of a phase.
    """
    return residual ** (1 / updates)
