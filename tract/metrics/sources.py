"""Sources of images to measure: data sets, folders, zips, saved samples and models."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tract.base.checks import check_choice
from tract.base.compute import EAGER, Compute
from tract.base.files import place
from tract.data import Data, to_uint8
from tract.datasets.arrays import array_names, read_arrays, read_images
from tract.datasets.images import Images, image_batches
from tract.datasets.load import LOADERS, load_data
from tract.levels import FIXED, levels_of
from tract.metrics.distances import Moments
from tract.metrics.features import file_sha256
from tract.metrics.samples import cycling_labels, noise, sample_batches
from tract.networks.cards import about_model
from tract.networks.weights import fingerprint, load_model, read_tensors
from tract.optimize import sample_shape
from tract.samplers import SOLVERS, step_indices
from tract.seeds import Stream, generator_for
from tract.teachers.load import Teacher, load_teacher

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
    moments: Moments | None = None  # of Inception's features, where there are no images


# A source at a number of steps, None for its own, and a seed: of noise, or of the random order.
Opened = Callable[[int | None, int], Source]


def open_source(
    source: str | Path | Data,
    *,
    data_dir: str | None = None,
    image_size: int = 0,
    grey: bool = False,
    device: str = "cpu",
    compute: Compute = EAGER,
    solver: str = "ddim",
    own_grid: bool = False,
    spatial: bool = False,
) -> Opened:
    """The images of data, of a data set by name, a folder, zip, file of samples or a model.

    image_size, grey: of data "images" in data_dir. Samples are .npz of uint8, or .safetensors as
    `measure` writes it. The reference can be .npz with mu and sigma; with spatial, mu_s and
    sigma_s. A model is of a run, its file or folder, or what `load_teacher` reads, whose
    predictions are clamped to [-1, 1]; compute, solver: how it is computed and steps, own_grid:
    whether on as many levels as steps. All image files are decoded once: a bad one is refused by
    name before the long part. Raises ValueError or FileNotFoundError for anything else.
    """
    if isinstance(source, Data):
        return _data(source)
    if is_named(source):
        return _data(named_data(str(source), data_dir, image_size, grey))
    check_choice("solver", solver, SOLVERS)
    stepping = {"compute": compute, "solver": solver, "own_grid": own_grid}
    path = place(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no source {path}: give a folder, zip, .npz, .safetensors, a model or one of "
            f"{list(LOADERS)}"
        )
    names = ["mu_s", "sigma_s"] if spatial else ["mu", "sigma"]
    if path.suffix == ".npz" and set(names) <= set(array_names(path)):
        return _statistics(path, names)
    if path.suffix == ".npz":
        return _array(path.name, read_images(path)[0], {"sha256": file_sha256(path)})
    if path.suffix == ".safetensors":
        tensors, card = read_tensors(path)
        if "network" not in card:
            return _samples(path, tensors)
    if path.suffix == ".safetensors" or (path / "model.safetensors").is_file():
        return open_run(path, device, **stepping)
    pipeline = any((path / name).is_file() for name in ("model_index.json", "config.json"))
    if path.suffix == ".zip" or (path.is_dir() and not pipeline):
        return _images(path)
    return _model(path, load_teacher(path, device), device, clamp=True, **stepping)


def is_named(source: str | Path | Data) -> bool:
    """Whether it is the name of a data set; a folder of that name comes first."""
    return not isinstance(source, Data) and str(source) in LOADERS and not Path(source).exists()


def named_data(
    name: str, data_dir: str | None = None, image_size: int = 0, grey: bool = False, **_: object
) -> Data:
    """A data set by name, "images" at a size."""
    options = {"image_size": image_size, "grey": grey} if name == "images" else {}
    return load_data(name, data_dir, **options)


def _data(data: Data) -> Opened:
    if data.samples.ndim != 4 or data.samples.dtype != torch.uint8:
        raise ValueError(f"{data.name} has no images: give data of uint8 (N, C, H, W)")
    return _array(data.name, data.samples.cpu(), {"sha256": data.sha256})


def _array(name: str, images: Tensor, about: dict) -> Opened:
    """Images (N, C, H, W) that are in memory."""
    shapes = frozenset([tuple(images.shape[1:])])
    return _finite(name, about, shapes, len(images), lambda indices: images[indices])


def _finite(
    name: str,
    about: dict,
    shapes: frozenset[Shape],
    count: int,
    get: Callable[[Tensor], Sequence[Tensor]],
) -> Opened:
    """Images by their indices (B,), in a random order: files are often sorted by class."""

    def at(num_steps: int | None, seed: int) -> Source:
        order = torch.randperm(count, generator=generator_for("cpu", seed, Stream.SUBSET))
        read = lambda start, stop: get(order[start:stop])  # noqa: E731
        return Source(name, about | {"seed": seed}, shapes, count, read)

    return at


def _statistics(path: Path, names: list[str]) -> Opened:
    """Mean (D,) and covariance (D, D) of features, as FID's projects publish them."""
    mean, covariance = (
        torch.from_numpy(np.array(a, dtype=np.float64)) for a in read_arrays(path, names)
    )
    finite = bool(mean.isfinite().all() and covariance.isfinite().all())
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not finite:
        raise ValueError(
            f"{path} has {names[0]} of shape {tuple(mean.shape)} and {names[1]} of "
            f"{tuple(covariance.shape)}: use finite ones, a mean (D,) and a covariance (D, D)"
        )
    many = 2**31  # images, whose number these files do not tell
    moments = Moments(many, mean, covariance * (many - 1))
    about = {"sha256": file_sha256(path), "statistics": " and ".join(names)}
    source = Source(path.name, about, frozenset(), None, lambda *_: [], moments)
    return lambda num_steps, seed: source


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

    def read(index: int) -> Tensor:
        pixels = torch.from_numpy(np.array(images.read(images.names[index], grey=grey)))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    def get(indices: Tensor) -> list[Tensor]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(read, indices.tolist()))

    return _finite(path.name, about, shapes, len(images), get)


def _look(image: Image.Image) -> np.ndarray:
    """Whether an image is grey, its height and width, and the four words of its SHA-256."""
    pixels = np.asarray(image)
    grey = (pixels == pixels[..., :1]).all()
    digest = hashlib.sha256(pixels.tobytes()).digest()
    return np.array([grey, *pixels.shape[:2], *np.frombuffer(digest, np.int64)])


def open_run(path: Path, device: str, role: str = "", **options: object) -> Opened:
    """A model of a run, which steps through the grid that its schedule starts with.

    role: which network of a checkpoint. options: compute, solver and own_grid as for `open_source`;
    progress, called with the share done after each step of a reading. ValueError for a model that
    is not of a run.
    """
    denoiser, card = load_model(path, device, role)
    about = about_model(card, path)
    teacher = Teacher(denoiser, about.noise_schedule, about.grid_steps, "a run")
    options |= {"clamp": about.clamp, "classes": about.classes}
    return _model(path, teacher, device, **options)


def _model(
    path: Path,
    teacher: Teacher,
    device: str,
    *,
    clamp: bool,
    classes: Sequence[int] = (),
    compute: Compute = EAGER,
    solver: str = "ddim",
    own_grid: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> Opened:
    """Samples of some classes, or all, from noise that depends on seed and index alone."""
    shape, num_classes = sample_shape(teacher.denoiser.config)
    if len(shape) < 3:
        raise ValueError(f"{path} makes points, not images: give a model of images")
    if own_grid and teacher.noise_schedule in FIXED:
        raise ValueError(f"{path} knows its own levels alone, those of DDPM: omit own_grid")
    trained = levels_of(teacher.noise_schedule, teacher.teacher_steps)
    options = {"clamp": clamp, "compute": compute, "shown": False, "on_step": progress}
    options |= {"solver": SOLVERS[solver]}
    about = {
        "sha256": fingerprint(teacher.denoiser),
        "noise_schedule": teacher.noise_schedule,
        "grid_steps": trained.num_steps,
        "sampler": solver,
        "clamp": clamp,
        "device": str(device),
        **({"compute": str(compute)} if compute != EAGER else {}),
    }

    def at(num_steps: int | None, seed: int) -> Source:
        num_steps = trained.num_steps if num_steps is None else num_steps
        levels = levels_of(teacher.noise_schedule, num_steps) if own_grid else trained
        step_indices(levels.num_steps, num_steps)

        def read(start: int, stop: int) -> Tensor:
            eps = noise(shape, start, stop, seed).to(device)
            labels = cycling_labels(classes or range(num_classes), start, stop)
            labels = None if labels is None else labels.to(device)
            drawn = {"labels": labels, "batch": len(eps)}
            x = sample_batches(teacher.denoiser, eps, levels, num_steps, **drawn, **options)
            return _rounded(x, str(path))

        # Heun asks twice a step, but for the last, which ends at clean data.
        nfe = 2 * num_steps - 1 if solver == "heun" else num_steps
        now = about | {"grid_steps": levels.num_steps, "nfe": nfe, "seed": seed}
        return Source(str(path), now, frozenset([shape]), None, read)

    return at
