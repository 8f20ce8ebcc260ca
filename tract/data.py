"""Data sets in memory: samples, labels, batches, and the conversion of pixels to [-1, 1]."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


def start_hash(shape: tuple[int, ...], dtype: torch.dtype):
    """Return a SHA-256 seeded with the samples' shape and dtype, to be updated with their bytes."""
    return hashlib.sha256(str((tuple(shape), dtype)).encode())


@dataclass(frozen=True)
class Data:
    """Samples to train on: uint8 images (N, C, H, W), or float points (N, D) used unchanged.

    labels: (N,) integers below num_classes, or None. flip: mirror half of the images drawn. hashes:
    the SHA-256 without and with labels, if known.
    """

    name: str
    samples: Tensor
    labels: Tensor | None = None
    flip: bool = False
    hashes: tuple[str, str] | None = None
    classes: int = 0  # for networks that know more classes, such as a null class

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W) or (D,)."""
        return tuple(self.samples.shape[1:])

    @property
    def num_classes(self) -> int:
        return 0 if self.labels is None else max(self.classes, int(self.labels.max()) + 1)

    @property
    def classes_present(self) -> list[int]:
        """The labels that occur, sorted; empty without labels."""
        return [] if self.labels is None else self.labels.unique().tolist()

    @cached_property
    def sha256(self) -> str:
        """Hash of samples and labels, which identifies the data set."""
        if self.hashes is not None:
            return self.hashes[self.labels is not None]
        digest = start_hash(self.shape, self.samples.dtype)
        for tensor in (self.samples, self.labels):
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Data":
        """Copy to a device; raises RuntimeError if the GPU has too little free memory."""
        if torch.device(device).type == "cuda" and not self.samples.is_cuda:
            free, _ = torch.cuda.mem_get_info(device)
            if self.samples.nbytes > free:
                raise RuntimeError(
                    f"{self.name} takes {self.samples.nbytes / 1e9:.1f} GB and the GPU has "
                    f"{free / 1e9:.1f} GB free: end its other programs, or use fewer images"
                )
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, samples=self.samples.to(device), labels=labels)

    def unlabelled(self) -> "Data":
        return replace(self, labels=None)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw size samples with replacement: x0 (size, ...) in [-1, 1], and their labels.

        generator must be on the data's device. Raises ValueError if size exceeds the data.
        """
        self.check_batch(size)
        device = self.samples.device
        index = torch.randint(len(self), (size,), generator=generator, device=device)
        x0 = to_unit(self.samples[index])
        if self.flip:
            mirrored = torch.rand(size, generator=generator, device=device) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        return x0, None if self.labels is None else self.labels[index]

    def check_batch(self, size: int) -> None:
        """Raise ValueError if the batch is larger than the data."""
        if size > len(self):
            raise ValueError(
                f"batch_size is {size} but {self.name} has {len(self)} samples: use {len(self)} "
                "or less"
            )


def to_unit(samples: Tensor) -> Tensor:
    """Map uint8 pixels 0..255 to float32 in [-1, 1]; return floating-point samples unchanged."""
    return samples if samples.is_floating_point() else samples.float() / 127.5 - 1


def to_uint8(x0: Tensor) -> Tensor:
    """Map numbers in [-1, 1] to uint8 pixels, rounded to the nearest and clipped."""
    return ((x0 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
