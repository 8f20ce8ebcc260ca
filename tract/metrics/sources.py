"""Sources of images to measure: data sets, folders, zips, saved samples and models."""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tract.base.compute import EAGER, Compute
from tract.data import Data, to_uint8
from tract.datasets.images import Images, image_batches
from tract.datasets.load import LOADERS, load_data
from tract.levels import levels_of
from tract.metrics.features import file_sha256
from tract.metrics.samples import cycling_labels, noise, sample_batches
from tract.networks.weights import fingerprint, load_model, read_tensors
from tract.phases import first_grid
from tract.samplers import step_indices
from tract.seeds import Stream, generator_for
from tract.teachers.load import Teacher, load_teacher

NAMED = [name for name in LOADERS if name != "images"]  # those are given by their path
Shape = tuple[int, int, int]  # (C, H, W)


@dataclass(frozen=True)
class Source:
    """Images by their index, made or read a batch at a time.

    about: what identifies them, as JSON, wherever they lie. shapes: all that occur. count: how
    many there are, or None if they are made as asked. read: uint8 images (C, H, W) from a first
    index up to another; those of a finite source come in a random order that is always the same.
    """

    name: str
    about: dict
    shapes: frozenset[Shape]
    count: int | None
    read: Callable[[int, int], Sequence[Tensor]]
    moments: tuple[Tensor, Tensor] | None = None  # mean and covariance of features, of no images


# A source at a number of steps, None for its own, and a seed: of noise, or of the random order.
Opened = Callable[[int | None, int], Source]


def open_source(
    source: str | Path | Data,
    *,
    data_dir: str | None = None,
    device: str = "cpu",
    compute: Compute = EAGER,
) -> Opened:
    """The images of data, of a data set by name, a folder, zip, file of samples or a model.

    A .npz with mu and sigma, as EDM, ADM and clean-fid publish them, holds statistics of features
    instead of images. A file of samples is .npz, uint8, or .safetensors as `experiment` writes it.
    A model is one of a run, or its folder, or what `load_teacher` reads, whose predictions are
    clamped to [-1, 1]; compute says how it is computed.
    All image files are decoded once, so that a bad one is refused by name before the long part.
    ValueError or FileNotFoundError for what is no such source.
    """
    if isinstance(source, Data):
        return _data(source)
    if is_named(source):
        return _data(load_data(str(source), data_dir))
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no source {path}: give a folder, zip, .npz, .safetensors, a model or one of {NAMED}"
        )
    if path.suffix == ".npz" and (moments := _read_moments(path)):
        about = {"sha256": file_sha256(path)}
        return lambda *_: Source(path.name, about, frozenset(), None, _no_images, moments)
    if path.suffix == ".npz":
        return _array(path.name, _read_npz(path), {"sha256": file_sha256(path)})
    if path.suffix == ".safetensors":
        tensors, card = read_tensors(path)
        if "network" not in card:
            return _samples(path, tensors)
    if path.suffix == ".safetensors" or (path / "model.safetensors").is_file():
        return open_run(path, device, compute=compute)
    if path.suffix == ".zip" or (path.is_dir() and not _is_pipeline(path)):
        return _images(path)
    return _model(path, load_teacher(path, device), device, compute, clamp=True)


def _is_pipeline(folder: Path) -> bool:
    """Whether a folder is a diffusers pipeline, or the model of one."""
    return any((folder / name).is_file() for name in ("model_index.json", "config.json"))


def is_named(source: str | Path | Data) -> bool:
    """Whether it is the name of a data set; a folder of that name comes first."""
    return not isinstance(source, Data) and str(source) in NAMED and not Path(source).exists()


def _data(data: Data) -> Opened:
    if data.samples.ndim != 4 or data.samples.dtype != torch.uint8:
        raise ValueError(f"{data.name} has no images: give data of uint8 (N, C, H, W)")
    return _array(data.name, data.samples.cpu(), {"sha256": data.sha256})


def _array(name: str, images: Tensor, about: dict) -> Opened:
    """Images (N, C, H, W) that are in memory."""
    shapes = frozenset([tuple(images.shape[1:])])

    def at(num_steps: int | None, seed: int) -> Source:
        order = _order(len(images), seed)

        def read(start: int, stop: int) -> Tensor:
            return images[order[start:stop]]

        return Source(name, about | {"seed": seed}, shapes, len(images), read)

    return at


def _order(count: int, seed: int) -> Tensor:
    """A random order: files are often sorted by class, and a part of them must be like the rest."""
    return torch.randperm(count, generator=generator_for("cpu", seed, Stream.SUBSET))


def _read_moments(path: Path) -> tuple[Tensor, Tensor] | None:
    """mu (D,) and sigma (D, D) of a file, float64, or None if it has none; ValueError if odd."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files):
                return None
            mean, covariance = (torch.from_numpy(file[name]).double() for name in ("mu", "sigma"))
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path} has mu of shape {tuple(mean.shape)} and sigma of {tuple(covariance.shape)}: "
            "give a mean (D,) and a covariance (D, D)"
        )
    return mean, covariance


def _no_images(start: int, stop: int) -> Sequence[Tensor]:
    raise ValueError("statistics have no images")


def _read_npz(path: Path) -> Tensor:
    """uint8 images (N, C, H, W) of the one array of a file, or of its arr_0; (N, H, W, C) too."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            name = names[0] if len(names) == 1 else "arr_0"
            array = file[name]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged or has no array of numbers arr_0 ({error}): save it by "
            "numpy.savez(path, images)"
        ) from error
    if array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"{path} has {array.dtype} of shape {array.shape}: save uint8 images (N, H, W, C)"
        )
    return torch.from_numpy(np.ascontiguousarray(array))


def _samples(path: Path, tensors: dict[str, Tensor]) -> Opened:
    """Samples in [-1, 1], or uint8 images, named by their number of steps."""

    def at(num_steps: int | None, seed: int) -> Source:
        name = next(iter(tensors)) if len(tensors) == 1 and num_steps is None else str(num_steps)
        if name not in tensors:
            raise ValueError(f"{path} has samples at {sorted(tensors)} steps: give one of these")
        images = tensors[name]
        if images.ndim != 4:
            raise ValueError(f"{path} has samples of shape {tuple(images.shape)}: give images")
        images = images if images.dtype == torch.uint8 else _rounded(images, str(path))
        sha256 = hashlib.sha256(images.contiguous().numpy()).hexdigest()
        about = {"sha256": sha256, "nfe": int(name) if name.isdecimal() else None}
        return _array(path.name, images, about)(None, seed)

    return at


def _rounded(samples: Tensor, name: str) -> Tensor:
    """Pixels of samples in [-1, 1]; FloatingPointError if there are others than numbers."""
    if not samples.isfinite().all():
        raise FloatingPointError(f"samples of {name} are not finite: check the model")
    return to_uint8(samples).cpu()


def _images(path: Path) -> Opened:
    """Image files at their own size: grey if all are, so that they compare with grey data."""
    images = Images(path)
    checked = np.concatenate(list(image_batches(images, _look)))
    grey = bool(checked[:, 0].all())
    shapes = frozenset(
        (1 if grey else 3, int(h), int(w)) for h, w in np.unique(checked[:, 1:3], axis=0)
    )
    about = {"sha256": hashlib.sha256(checked.tobytes()).hexdigest()}

    def at(num_steps: int | None, seed: int) -> Source:
        names = [images.names[i] for i in _order(len(images), seed).tolist()]

        def read(start: int, stop: int) -> list[Tensor]:
            with ThreadPoolExecutor() as pool:
                return list(
                    pool.map(lambda name: _tensor(images.read(name, grey=grey)), names[start:stop])
                )

        return Source(path.name, about | {"seed": seed}, shapes, len(images), read)

    return at


def _look(image: Image.Image) -> np.ndarray:
    """Whether an image is grey, its height and width, and the four words of its SHA-256."""
    pixels = np.asarray(image)
    grey = (pixels == pixels[..., :1]).all()
    digest = hashlib.sha256(pixels.tobytes()).digest()
    return np.array([grey, *pixels.shape[:2], *np.frombuffer(digest, np.int64)])


def _tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def open_run(
    path: Path,
    device: str,
    role: str = "",
    compute: Compute = EAGER,
    progress: Callable[[float], None] = lambda share: None,
) -> Opened:
    """A model of a run, which steps through the grid that its schedule starts with.

    role: which network of a checkpoint. progress: called with the share done after each step of a
    reading. ValueError for a model that is of no run.
    """
    denoiser, card = load_model(path, device, role)
    try:
        noise_schedule, teacher_steps, clamp = (
            card["experiment"][name] for name in ("noise_schedule", "teacher_steps", "clamp")
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not say for which levels it was trained: give a model of a run"
        ) from error
    grid_steps = first_grid(card.get("settings", {}).get("step_schedule", [teacher_steps]))
    teacher = Teacher(denoiser, noise_schedule, grid_steps, "a run")
    return _model(path, teacher, device, compute, clamp=clamp, progress=progress)


def _model(
    path: Path,
    teacher: Teacher,
    device: str,
    compute: Compute,
    *,
    clamp: bool,
    progress: Callable[[float], None] = lambda share: None,
) -> Opened:
    """Samples of a model, with DDIM, from noise that depends on seed and index alone."""
    network = teacher.denoiser.config["options"]
    if "image_size" not in network:
        raise ValueError(f"{path} makes no images, but points: give a model of images")
    shape = (network["image_channels"], network["image_size"], network["image_size"])
    levels = levels_of(teacher.noise_schedule, teacher.teacher_steps)
    options = {"clamp": clamp, "compute": compute, "shown": False}
    about = {
        "sha256": fingerprint(teacher.denoiser),
        "noise_schedule": teacher.noise_schedule,
        "grid_steps": levels.num_steps,
        "sampler": "ddim",
        "clamp": clamp,
        "device": str(device),
    }
    if compute != EAGER:  # what was measured before there were others is still known
        about["compute"] = str(compute)

    def at(num_steps: int | None, seed: int) -> Source:
        num_steps = levels.num_steps if num_steps is None else num_steps
        step_indices(levels.num_steps, num_steps)

        def read(start: int, stop: int) -> Tensor:
            eps = noise(shape, start, stop, seed).to(device)
            labels = cycling_labels(teacher.num_classes, start, stop)
            drawn = {
                "labels": None if labels is None else labels.to(device),
                "batch": len(eps),
                "on_step": progress,
            }
            x = sample_batches(teacher.denoiser, eps, levels, num_steps, **drawn, **options)
            return _rounded(x, str(path))

        now = about | {"nfe": num_steps, "seed": seed}
        return Source(str(path), now, frozenset([shape]), None, read)

    return at
