"""Exponential moving averages of a network's weights, without a host synchronisation."""

import torch
from torch import nn


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, decay: float) -> None:
    """Move every parameter of target to decay * target + (1 - decay) * source; copy buffers.

    decay in [0, 1] weighs the old value. ValueError if the two do not have the same names.
    """
    averages, values = dict(target.named_parameters()), dict(source.named_parameters())
    if averages.keys() != values.keys():
        odd = sorted(averages.keys() ^ values.keys())
        raise ValueError(f"the average and its source differ in {odd}: use the same network")
    torch._foreach_lerp_(list(averages.values()), [values[n] for n in averages], 1 - decay)
    sources = dict(source.named_buffers())
    for name, buffer in target.named_buffers():
        buffer.copy_(sources[name])


def bias_corrected(decay: float, update: int) -> float:
    """Decay of the update-th update (1, 2, ...) that makes the average forget its start value.

    1 - (1 - decay) / (1 - decay^update): the first update copies. Paper, section 3.1.
    """
    return 1 - (1 - decay) / (1 - decay**update)


def decay_from_residual(residual: float, updates: int) -> float:
    """Decay that leaves the share `residual` of the start after so many updates.

    In these terms the inference average does not depend on the length of a phase.
    """
    return residual ** (1 / updates)
