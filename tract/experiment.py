"""What the notebooks of one run directory share: data, levels, the noise to compare on, results.

experiment.json    written by the first notebook, read by the others
NAME/              one directory for each training run, see `runs`, with samples.safetensors
results.csv        one row for each model and number of steps
"""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from tract.cards import claim, read_card
from tract.checks import check_flag, check_text, check_whole
from tract.data import Data, load_data, to_unit
from tract.denoiser import Denoiser
from tract.distill import Distillation, distill, start_distillation
from tract.evaluate import fixed_noise, sample_batches
from tract.guards import only_writer
from tract.levels import Level, levels_of
from tract.metrics import fd_pixels, rmse
from tract.presets import build_denoiser, check_fits, preset
from tract.results import RESULTS, append_results, read_results, wide
from tract.runs import Saving, complete, history
from tract.samplers import step_indices
from tract.state import fingerprint, load_model, read_tensors, save_model, write_tensors
from tract.teachers.load import Teacher, load_teacher
from tract.train import Training, start_training, train_teacher

TEACHER = "teacher"  # name of the teacher's run
DATA_OPTIONS = ("image_size", "grey", "flip")  # of load_data


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
    image_size: int = 0  # this and the next two are DATA_OPTIONS, for data "images" alone
    grey: bool = False
    flip: bool = False

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
        options = {name: getattr(self, name) for name in DATA_OPTIONS}
        data = load_data(self.data_name, self.data_dir, **options)
        if self.conditional and data.labels is None:
            raise ValueError(
                "conditional is True, but not all images lie in folders of their class: sort them, "
                "or use False"
            )
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
        for name in DATA_OPTIONS:
            if not card[name]:  # cards from before there were such options stay valid
                del card[name]
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

    def import_teacher(self, path_or_name: str) -> Denoiser:
        """Take a published teacher, as `load_teacher` finds it, for the teacher of this experiment.

        It is read once; then the run directory has all. ValueError if its levels or its network
        do not fit, or another teacher is here already.
        """
        folder, about, note = self.folder / TEACHER, self.card(), {}
        card = {"experiment": about, "method": TEACHER, "source": path_or_name}
        finished = (folder / "model.safetensors").is_file()
        if not finished:
            teacher = load_teacher(path_or_name, device())
            self._check_levels(teacher)
            check_fits(teacher.denoiser.config, self.data)
            note = {"description": teacher.description, "sha256": fingerprint(teacher.denoiser)}
        claim(self.folder / "experiment.json", about, note={"data_dir": self.data_dir})
        with only_writer(folder):
            begun = any(folder.glob("*.safetensors"))  # a model, or checkpoints of a training
            claim(folder / "card.json", card, binding=begun, note=note)
            if not finished:
                save_model(folder / "model.safetensors", teacher.denoiser, card | note)
        if finished:
            print(f"{TEACHER}: imported before, read from {folder / 'model.safetensors'}")
        return load_model(folder, device())[0]

    def _check_levels(self, teacher: Teacher) -> None:
        """ValueError unless a teacher knows the levels of this experiment.

        Networks know any number of levels of their process; those of DDPM's betas are other ones.
        """
        fixed = teacher.process == "ddpm_linear" and teacher.teacher_steps != self.teacher_steps
        if teacher.process != self.process or fixed:
            raise ValueError(
                f"the teacher knows {teacher.process} levels with {teacher.teacher_steps} steps, "
                f"the experiment has {self.process} with {self.teacher_steps}: set process to "
                f"{teacher.process!r} and teacher_steps to {teacher.teacher_steps}"
            )

    def distill(self, settings: Distillation, saving: Saving | None = None) -> Denoiser:
        """Distil the teacher, resume that, or read the finished student."""
        teacher, teacher_card = load_model(self.folder / TEACHER, device())
        state = start_distillation(teacher, settings)
        records = distill(state, self.data, self.grid(settings), settings)
        card = {
            "experiment": self.card(),
            "network": (state.newcomer or state.ema).config,
            "method": settings.method,
            "teacher": teacher_card.get("settings") or teacher_card.get("source"),
            "teacher_sha256": fingerprint(teacher),
        }
        return complete(self.folder / run_name(settings), state, records, settings, card, saving)

    def grid(self, settings: Training) -> Level:
        """Levels that a run steps through: as many as its schedule starts with.

        ValueError where the teacher knows its own levels only, as those of DDPM's betas.
        """
        steps = getattr(settings, "step_schedule", (self.teacher_steps,))[0]
        if self.process == "ddpm_linear" and steps != self.teacher_steps:
            raise ValueError(
                f"step_schedule starts with {steps}, and ddpm_linear has other levels for other "
                f"numbers of steps: start with the teacher's {self.teacher_steps}"
            )
        return levels_of(self.process, steps)

    def measure(self, denoiser: Denoiser, settings: Training, steps: Sequence[int]) -> pd.DataFrame:
        """Sample at each number of steps, keep the samples, add rows to results.csv.

        Returns the table of all runs, in its wide form. The first of the teacher's steps must be
        reference_steps: the others are compared to it.
        """
        levels = self.grid(settings)
        for n in steps:
            step_indices(levels.num_steps, n)
        read_results(self.folder / RESULTS)  # refused before sampling
        eps, labels = self.noise
        samples = {
            n: sample_batches(denoiser, eps, levels, n, labels=labels, clamp=self.clamp)
            for n in steps
        }
        kept = {str(n): x for n, x in samples.items()}
        write_tensors(self.folder / run_name(settings) / "samples.safetensors", kept, {})
        reference = self.samples(TEACHER)[self.reference_steps].to(eps)
        row = self._row(denoiser, settings)
        rows = []
        for n, x in samples.items():
            at = row | {"nfe": n, "samples": len(x)}
            to_data, to_teacher = fd_pixels(x, self.data), rmse(x, reference)
            rows.append(at | _number("fd_pixels", to_data, data_sha256=self.data.sha256[:12]))
            rows.append(at | _number("rmse_to_teacher", to_teacher, nfe=self.reference_steps))
        return wide(append_results(self.folder / RESULTS, rows))

    def measure_phases(self, settings: Distillation, count: int = 64) -> None:
        """Add, for every phase, the rmse of its student's samples to the teacher's full rollout.

        The student of a phase takes its own number of steps, the first teacher all of its grid's,
        from the same noise: what the next phase takes for the truth drifts away from it.
        """
        levels, eps = self.grid(settings), self.noise[0][:count]
        labels = None if self.noise[1] is None else self.noise[1][:count]
        rollout = self._rollout(levels, eps, labels)
        rows = []
        for phase, nfe in enumerate(settings.step_schedule[1:], 1):
            name = f"phase-{phase}" if phase < settings.num_phases else "model"
            path = self.folder / run_name(settings) / f"{name}.safetensors"
            student = load_model(path, device())[0]
            x = sample_batches(student, eps, levels, nfe, labels=labels, clamp=self.clamp)
            phases = ">".join(map(str, settings.step_schedule[: phase + 1]))
            row = self._row(student, settings) | {"phases": phases, "nfe": nfe, "samples": len(x)}
            distance = rmse(x, rollout)
            rows.append(row | _number("rmse_to_rollout", distance, nfe=levels.num_steps))
        append_results(self.folder / RESULTS, rows)

    def _rollout(self, levels: Level, eps: Tensor, labels: Tensor | None) -> Tensor:
        """The teacher's samples with all steps of a grid, made once."""
        path = self.folder / TEACHER / f"rollout-{levels.num_steps}-{len(eps)}.safetensors"
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                teacher = load_model(self.folder / TEACHER, device())[0]
                steps = levels.num_steps
                x = sample_batches(teacher, eps, levels, steps, labels=labels, clamp=self.clamp)
                write_tensors(path, {"samples": x}, {})
            return read_tensors(path)[0]["samples"].to(eps)

    def _row(self, denoiser: Denoiser, settings: Training) -> dict:
        """What rows of results say about a run."""
        folder = self.folder / run_name(settings)
        past, card = {"images_seen": 0, "seconds": 0.0}, read_card(folder / "card.json")
        if "source" not in card:  # trained here
            past = history(folder).iloc[-1]
        distilled = isinstance(settings, Distillation)
        return {
            "data": self.data_name,
            "process": self.process,
            "method": settings.method if distilled else TEACHER,
            "phases": settings.phases if distilled else "",
            "student_params": sum(p.numel() for p in denoiser.parameters()),
            "images": int(past["images_seen"]),
            "seed": settings.seed,
            "device": card["provenance"]["device"],
            "commit": card["provenance"]["commit"],
            "seconds": round(past["seconds"], 1),
            "run": run_name(settings),
            "teacher": card.get("teacher_sha256", fingerprint(denoiser))[:12],
        }

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

    def comparison(self, table: pd.DataFrame, count: int) -> dict[str, Tensor]:
        """Rows of images by label: data, then each row of a wide table, all from the same noise."""
        rows = {"data": self.images(count)}
        for row in table.itertuples():
            label = f"{row.method} {_shortened(row.phases)}".strip()
            label += f", {row.nfe} step" + ("s" if row.nfe > 1 else "")
            label = label if label not in rows else f"{label}, {row.run}"
            rows[label] = self.samples(row.run)[row.nfe][:count]
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
    """Directory of a run: the teacher's, or what tells one distillation from another.

    Such as TRACT-1024-32-1-30720images-seed0; settings that are not the default come in between.
    """
    if not isinstance(settings, Distillation):
        return TEACHER
    steps, images = settings.phases.replace(">", "-"), f"{settings.images}images"
    changed = [
        f"{field.name}{getattr(settings, field.name)}"
        for field in fields(settings)
        if field.default is not MISSING
        and field.name not in ("method", "seed")
        and getattr(settings, field.name) != field.default
    ]
    return "-".join([settings.method, steps, images, *changed, f"seed{settings.seed}"])


def _number(metric: str, value: float, **conditions) -> dict:
    """The columns of one measured number."""
    return {"metric": metric, "value": round(value, 6), "conditions": json.dumps(conditions)}


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
