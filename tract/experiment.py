"""What the notebooks of one run directory share: data, levels, the noise to compare on, results.

experiment.json    written by the first notebook, read by the others
NAME/              one directory for each training run, see `runs`, with samples.safetensors
results.csv        one row for each model and number of steps
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tract.cards import claim, read_card
from tract.checks import check_flag, check_text, check_whole
from tract.data import Data, load_data, to_unit
from tract.denoiser import Denoiser
from tract.distill import Distillation, distill, start_distillation
from tract.evaluate import fixed_noise, sample_batches
from tract.levels import Level, levels_of
from tract.metrics import fd_pixels, rmse
from tract.presets import build_denoiser, check_fits, preset
from tract.results import append_results, read_results
from tract.runs import Saving, complete, history
from tract.samplers import step_indices
from tract.state import fingerprint, load_model, read_tensors, write_tensors
from tract.train import Training, start_training, train_teacher

TEACHER = "teacher"  # name of the teacher's run
RESULT_KEY = ("method", "phases", "nfe", "seed")  # what tells two rows of results.csv apart


@dataclass(frozen=True)
class Experiment:
    """Data, levels and evaluation of all runs in one folder; everything is checked when made."""

    folder: Path
    data_name: str
    data_dir: str = ""
    conditional: bool = False  # use the labels
    process: str = "cosine"  # a name in levels.PROCESSES
    teacher_steps: int = 1024  # T, the length of the teacher's grid
    reference_steps: int = 256  # the teacher's own, that students are compared with
    num_samples: int = 384
    clamp: bool = True  # predictions to [-1, 1], in targets and sampling
    seed: int = 0  # of the noise that is sampled from

    def __post_init__(self):
        check_text("run_dir", str(self.folder) if isinstance(self.folder, Path) else self.folder)
        object.__setattr__(self, "folder", Path(self.folder))
        step_indices(self.levels.num_steps, self.reference_steps)
        check_flag("conditional", self.conditional)
        check_whole("num_samples", self.num_samples, 2)
        check_flag("clamp", self.clamp)
        check_whole("seed", self.seed, 0)
        _ = self.data

    @cached_property
    def data(self) -> Data:
        data = load_data(self.data_name, self.data_dir)
        return (data if self.conditional else data.unlabelled()).to(device())

    @cached_property
    def levels(self) -> Level:
        return levels_of(self.process, self.teacher_steps)

    @cached_property
    def noise(self) -> tuple[Tensor, Tensor | None]:
        """The noise, and labels, that every model is sampled from."""
        return fixed_noise(self.data, self.num_samples, self.seed)

    def card(self) -> dict:
        """What must stay the same for two runs to be comparable."""
        card = asdict(self)
        del card["folder"], card["data_dir"]
        return card | {"data_sha256": self.data.sha256}

    def train_teacher(
        self, preset_name: str, settings: Training, saving: Saving | None = None
    ) -> Denoiser:
        """Train, resume or read the teacher; ValueError if the network does not fit the data."""
        network = preset(preset_name)
        if self.conditional:
            network["options"]["num_classes"] = self.data.num_classes
        check_fits(network, self.data)
        state = start_training(build_denoiser(network, settings.seed).to(device()), settings)
        records = train_teacher(state, self.data, self.levels, settings)
        about = self.card()  # hashes all data
        claim(self.folder / "experiment.json", about, note={"data_dir": self.data_dir})
        card = {"experiment": about, "network": network, "method": TEACHER}
        return complete(self.folder / TEACHER, state, records, settings, card, saving)

    def distill(self, settings: Distillation, saving: Saving | None = None) -> Denoiser:
        """Distil the teacher, resume that, or read the finished student."""
        teacher, teacher_card = load_model(self.folder / TEACHER, device())
        state = start_distillation(teacher, settings)
        records = distill(state, self.data, self.levels, settings)
        card = {
            "experiment": self.card(),
            "network": teacher.config,
            "method": settings.method,
            "teacher": teacher_card.get("settings"),
            "teacher_sha256": fingerprint(teacher),
        }
        return complete(self.folder / run_name(settings), state, records, settings, card, saving)

    def measure(self, denoiser: Denoiser, settings: Training, steps: Sequence[int]) -> pd.DataFrame:
        """Sample at each number of steps, keep the samples, add rows to results.csv; returns it.

        The first of the teacher's steps must be reference_steps: the others are compared to it.
        """
        name = run_name(settings)
        read_results(self.folder / "results.csv", RESULT_KEY)  # refused before sampling
        for n in steps:
            step_indices(self.levels.num_steps, n)
        eps, labels = self.noise
        samples = {
            n: sample_batches(denoiser, eps, self.levels, n, labels=labels, clamp=self.clamp)
            for n in steps
        }
        write_tensors(
            self.folder / name / "samples.safetensors", {str(n): x for n, x in samples.items()}, {}
        )
        reference = self.samples(TEACHER)[self.reference_steps].to(eps)
        past = history(self.folder / name).iloc[-1]
        distilled = isinstance(settings, Distillation)
        rows = [
            {
                "method": settings.method if distilled else TEACHER,
                "phases": settings.phases if distilled else "",
                "nfe": n,
                "images": int(past["images_seen"]),
                "seconds": round(past["seconds"], 1),
                "fd_pixels": round(fd_pixels(x, self.data), 6),
                "rmse_to_teacher": round(rmse(x, reference), 6),
                "seed": settings.seed,
            }
            for n, x in samples.items()
        ]
        return append_results(self.folder / "results.csv", rows, RESULT_KEY)

    def samples(self, name: str) -> dict[int, Tensor]:
        """Samples of a measured run by number of steps; FileNotFoundError if there are none."""
        path = self.folder / name / "samples.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: execute the notebook that measures {name} first")
        samples = {int(n): x for n, x in read_tensors(path)[0].items()}
        return dict(sorted(samples.items(), reverse=True))

    def images(self, count: int) -> Tensor:
        """The first images of the data, in [-1, 1]."""
        return to_unit(self.data.samples[:count]).cpu()

    def comparison(self, count: int) -> dict[str, Tensor]:
        """Rows of images by label: data, then every measured run, all from the same noise."""
        rows = {"data": self.images(count)}
        table = read_results(self.folder / "results.csv", RESULT_KEY)
        for row in table.itertuples():
            samples = self.samples(_run_name(row.method, row.phases, row.seed))[row.nfe]
            label = f"{row.method} {_shortened(row.phases)}".strip()
            label += f", {row.nfe} step" + ("s" if row.nfe > 1 else "")
            rows[label if label not in rows else f"{label}, seed {row.seed}"] = samples[:count]
        return rows


def open_experiment(folder: str | Path) -> Experiment:
    """The experiment that the teacher's notebook began; FileNotFoundError if there is none."""
    path = Path(folder) / "experiment.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: execute 01_teacher first, or correct run_dir")
    card = read_card(path)
    try:
        sha256 = card.pop("data_sha256")
        data_dir = card.pop("provenance")["data_dir"]
        experiment = Experiment(Path(folder), data_dir=data_dir, **card)
    except (KeyError, TypeError) as error:  # an entry is missing, or is none of ours
        raise ValueError(
            f"{path} describes no experiment ({error}): restore it, or begin in another run_dir"
        ) from error
    if experiment.data.sha256 != sha256:
        raise ValueError(
            f"the data {experiment.data_name} changed since {path} was written: restore it, or "
            "begin in another run_dir"
        )
    return experiment


def run_name(settings: Training) -> str:
    """Directory of a run: the teacher's, or method, schedule and seed of a distillation."""
    if not isinstance(settings, Distillation):
        return TEACHER
    return _run_name(settings.method, settings.phases, settings.seed)


def _run_name(method: str, phases: str, seed: int) -> str:
    return TEACHER if method == TEACHER else "-".join([method, *phases.split(">"), f"seed{seed}"])


def _shortened(phases: str) -> str:
    """1024>512>256>...>1 as 1024>512>...>1, for labels."""
    steps = phases.split(">")
    return ">".join([*steps[:2], "...", steps[-1]]) if len(steps) > 4 else phases


def device() -> str:
    """The device to compute on: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(count: int) -> None:
    """Compute with so many CPU threads; 0 leaves the number to torch. ValueError below 0.

    Threads wait for each other at every layer: with small layers two are hardly faster than one,
    and far slower as soon as another program wants one of their cores.
    """
    check_whole("threads", count, 0)  # 0 leaves it to torch
    if count:
        torch.set_num_threads(count)
