"""Load a published teacher from a file, folder or hub name; its format is detected by content."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tract.base.files import place
from tract.denoiser import Denoiser
from tract.networks.cards import about_model
from tract.networks.weights import load_model
from tract.teachers.apple import read_apple
from tract.teachers.containers import read_torch
from tract.teachers.diffusers_read import fetch, read_pipeline
from tract.teachers.edm import read_edm
from tract.teachers.google import read_google
from tract.teachers.openai import FIRST, NUMBERED, read_openai

PAPER_STEPS = 1024  # of the paper's teachers on the cosine levels
EDM_STEPS = 40  # of its teachers on EDM's
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILE_SUFFIXES = (".safetensors", ".pkl", ".pt", ".pth", ".ckpt", ".bin", ".msgpack", ".zip")
FORMATS = (
    "tract's safetensors, EDM's pickle, Google's msgpack, the TRACT authors' .pt, OpenAI's for "
    "ImageNet-64, or a folder or hub name of a diffusers pipeline"
)


@dataclass(frozen=True)
class Teacher:
    """A denoiser to distil, in evaluation mode, and the levels that it was trained for."""

    denoiser: Denoiser
    noise_schedule: str  # a name in levels.NOISE_SCHEDULES
    teacher_steps: int  # of that process; T of its grid
    origin: str  # whose it is

    @property
    def num_classes(self) -> int:
        """Number of classes of its labels, 0 for none."""
        return self.denoiser.config["options"].get("num_classes", 0)

    @property
    def description(self) -> str:
        """One line for people: network, parameters, prediction type, levels, classes."""
        config = self.denoiser.config
        count = sum(parameter.numel() for parameter in self.denoiser.parameters())
        return (
            f"{self.origin}: network {config['net']} of {count:,} parameters, predicts "
            f"{config['prediction']}, {self.teacher_steps} steps of {self.noise_schedule} levels, "
            f"{self.num_classes or 'no'} classes"
        )


def load_teacher(path_or_name: str | Path, device: str = "cpu") -> Teacher:
    """Read a published teacher, or a model of ours, and print what it was recognised as.

    path_or_name: a file or folder in any of FORMATS, or a pipeline's hub name. FileNotFoundError
    if there is none, ValueError if it is damaged, of another format or does not fit.
    """
    path = place(path_or_name)
    if path.is_dir():
        teacher = _read_folder(path)
    elif path.is_file():
        teacher = _read_file(path)
    elif may_be_hub_name(str(path_or_name)):
        teacher = _pipeline(fetch(str(path_or_name)))
    else:
        raise FileNotFoundError(
            f"no file or folder {path.absolute()}: correct the path, or copy it here first"
        )
    teacher.denoiser.to(device)
    print(f"{path_or_name}: {teacher.description}")
    return teacher


def may_be_hub_name(text: str) -> bool:
    """Whether a text has the form OWNER/NAME and cannot mean a file."""
    first = text.split("/")[0]
    return bool(HUB_NAME.fullmatch(text)) and not (
        Path(first).exists() or Path(text).suffix in FILE_SUFFIXES
    )


def _read_folder(path: Path) -> Teacher:
    if (path / "model.safetensors").is_file():
        return _ours(path)
    if any(path.glob("*.json")) or (path / "unet").is_dir():
        return _pipeline(path)
    raise ValueError(f"{path} is a folder of unknown format: give a file or folder of {FORMATS}")


def _read_file(path: Path) -> Teacher:
    """Read a file in the format that its first bytes show."""
    with path.open("rb") as file:
        start = file.read(9)
    for starts_as, read in FILE_FORMATS:
        if starts_as(start):
            return read(path)
    raise ValueError(f"{path} begins with {start!r}, which is none of {FORMATS}: give another file")


def _torch(path: Path) -> Teacher:
    """A network of OpenAI's or of the authors', told apart by a name."""
    tensors = read_torch(path)
    if f"{FIRST}.weight" not in tensors:
        denoiser = read_apple(path, tensors)
        return Teacher(denoiser, "cosine", PAPER_STEPS, "a network of TRACT's authors")
    denoiser = read_openai(path, tensors)
    if denoiser.prediction == "eps":
        return Teacher(denoiser, *NUMBERED.values(), "a network of guided-diffusion")
    return Teacher(denoiser, "karras", EDM_STEPS, "a network of consistency_models")


def _edm(path: Path) -> Teacher:
    return Teacher(read_edm(path), "karras", EDM_STEPS, "a network of EDM")


def _google(path: Path) -> Teacher:
    denoiser, steps = read_google(path)
    return Teacher(denoiser, "cosine", steps, "a network of progressive distillation")


def _pipeline(folder: Path) -> Teacher:
    denoiser = read_pipeline(folder)
    options = denoiser.config["options"]
    return Teacher(
        denoiser, options["noise_schedule"], options["num_steps"], "a pipeline of diffusers"
    )


def _ours(path: Path) -> Teacher:
    """A model of a run that `experiment` made."""
    denoiser, card = load_model(path)
    about = about_model(card, path)
    origin = f"a {about.method} network of tract"
    return Teacher(denoiser, about.noise_schedule, about.teacher_steps, origin)


def _is_msgpack_map(start: bytes) -> bool:
    return bool(start) and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF))


# File formats: whether a file's first nine bytes are of it, and its reader.
FILE_FORMATS: list[tuple[Callable[[bytes], bool], Callable[[Path], Teacher]]] = [
    (lambda start: start[8:] == b"{", _ours),  # safetensors: JSON after eight bytes of length
    (lambda start: start.startswith((b"PK\x03\x04", b"\x80\x02\x8a\x0a")), _torch),  # torch.save
    (lambda start: start.startswith(b"\x80"), _edm),  # a pickle of protocol 2 or later
    (_is_msgpack_map, _google),
]
