"""Random generators keyed by seed, purpose and step, so that a resumed run is reproducible."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """The purpose of a random stream: part of its key, so that no two uses share numbers."""

    TEACHER = 0
    DISTILLATION = 1
    SAMPLES = 2
    DROPOUT = 3
    CLASSIFIER = 4
    SUBSET = 5


def generator_for(device: torch.device | str, *key: int) -> torch.Generator:
    """Return the generator of a key such as (seed, Stream.TEACHER, step), independent of others.

    numpy's SeedSequence mixes the key: torch's CPU generator reads 32 bits of a seed, so shifted or
    added seeds would collide.
    """
    (seed,) = np.random.SeedSequence(key).generate_state(1)
    return torch.Generator(device).manual_seed(int(seed))


def draw_uniform(most: int, batch: int, generator: torch.Generator) -> Tensor:
    """Draw integers 1..most (B,) uniformly, on the generator's device."""
    device = generator.device
    return torch.randint(1, most + 1, (batch,), generator=generator, device=device)


@contextmanager
def dropout_keyed(device: torch.device, *key: int) -> Iterator[None]:
    """Make dropout, which takes no generator, depend only on this key; restores the state."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(generator_for("cpu", *key).initial_seed())
        yield
