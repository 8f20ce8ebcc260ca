"""What is computed on: the device, and threads of the CPU."""

import torch

from tract.checks import check_whole


def device() -> str:
    """The device to compute on: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(count: int) -> None:
    """Compute with so many CPU threads; 0 leaves the number to torch. ValueError below 0.

    Threads wait for each other at every layer: with small layers two are hardly faster than one,
    and far slower as soon as another program wants one of their cores.
    """
    check_whole("threads", count, 0)
    if count:
        torch.set_num_threads(count)
