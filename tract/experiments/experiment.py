"""An experiment: the data, levels, teacher and students of one run directory.

experiment.json    written by the first notebook, read by the others
NAME/              one directory for each training run, see `runs`
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tract.base.checks import MOST_SAMPLES, check_flag, check_text, check_whole
from tract.base.compute import EAGER, Compute, device
from tract.base.files import only_writer, place
from tract.base.parallel import check_share
from tract.data import Data
from tract.datasets.load import load_data
from tract.denoiser import Denoiser
from tract.distill import DistillationState, distill, start_distillation
from tract.experiments.card import claim
from tract.experiments.names import TEACHER, run_name
from tract.experiments.run import Checkpointing, Run, complete
from tract.experiments.team import team_size, together
from tract.levels import FIXED, Level, levels_of
from tract.metrics.samples import fixed_noise
from tract.networks.build import build_denoiser, named_network, student_for
from tract.networks.weights import fingerprint, load_model, read_card, save_model
from tract.optimize import check_fits
from tract.records import Record
from tract.samplers import step_indices
from tract.settings import Distillation, Training
from tract.teachers.load import Teacher, load_teacher
from tract.train import TeacherState, start_training, train_teacher

DATA_OPTIONS = ("image_size", "grey", "flip")  # of load_data


@dataclass(frozen=True)
class Experiment:
    """Data, levels and evaluation of all runs in one folder; everything is checked when made."""

    folder: Path
    data_name: str
    data_dir: str = ""
    conditional: bool = False  # use the labels
    noise_schedule: str = "cosine"  # a name in levels.NOISE_SCHEDULES
    teacher_steps: int = 1024  # T, the length of the teacher's grid
    reference_steps: int = 256  # the teacher's own, that students are compared with
    num_samples: int = 384
    clamp: bool = True  # predictions to [-1, 1] in sampling
    seed: int = 0  # of the noise that is sampled from
    image_size: int = 0  # this and the next two are DATA_OPTIONS, for data "images" alone
    grey: bool = False
    flip: bool = False
    num_classes: int = 0  # of the networks, if they know more classes than the data have
    compute: Compute = EAGER  # how, not what: no part of the card

    def __post_init__(self):
        check_text("run_dir", str(self.folder) if isinstance(self.folder, Path) else self.folder)
        object.__setattr__(self, "folder", place(self.folder))
        step_indices(self.levels.num_steps, self.reference_steps)
        check_flag("conditional", self.conditional)
        check_whole("num_samples", self.num_samples, 2, MOST_SAMPLES)
        check_flag("clamp", self.clamp)
        check_whole("seed", self.seed, 0)
        check_whole("num_classes", self.num_classes, 0, 2**17)
        _ = self.data

    @cached_property
    def labelled(self) -> Data:
        """The data with their labels, if they have any, whether these are used or not."""
        options = {name: getattr(self, name) for name in DATA_OPTIONS}
        data = load_data(self.data_name, self.data_dir, **options)
        if self.conditional and data.labels is None:
            raise ValueError(
                "conditional is True, but not all images lie in folders of their class: sort them, "
                "or use False"
            )
        return replace(data, classes=self.num_classes).to(device())

    @cached_property
    def data(self) -> Data:
        return self.labelled if self.conditional else self.labelled.unlabelled()

    @cached_property
    def levels(self) -> Level:
        return levels_of(self.noise_schedule, self.teacher_steps)

    @cached_property
    def noise(self) -> tuple[Tensor, Tensor | None]:
        """The noise, and labels, that every model is sampled from."""
        return fixed_noise(self.data, self.num_samples, self.seed)

    def _data_place(self) -> str:
        """data_dir as seen from any folder."""
        return str(place(self.data_dir).resolve()) if self.data_dir else ""

    def as_json(self) -> dict:
        """All of it, for another process, perhaps in another folder than a notebook's kernel."""
        places = {"folder": str(self.folder.resolve()), "data_dir": self._data_place()}
        return asdict(self) | places

    def card(self) -> dict:
        """What must stay the same for two runs to be comparable."""
        card = asdict(self)
        del card["folder"], card["data_dir"], card["compute"]
        for name in (*DATA_OPTIONS, "num_classes"):
            if not card[name]:  # cards from before there were such options stay valid
                del card[name]
        if self.num_classes:
            card["classes"] = self.data.classes_present
        return card | {"data_sha256": self.data.sha256}

    def begin(self) -> dict:
        """Claim the folder, and return the card; ValueError if another experiment has it."""
        about = self.card()  # hashes all data
        claim(self.folder / "experiment.json", about, note={"data_dir": self._data_place()})
        return about

    def train_teacher(
        self,
        network_name: str,
        settings: Training,
        saving: Checkpointing | None = None,
        processes: int = 1,
    ) -> Denoiser:
        """Train, resume or read the teacher; ValueError if the network does not fit the data.

        processes: how many train it together, see `team`.
        """
        return complete(self.training(network_name, settings, saving, processes))

    def training(
        self,
        network_name: str,
        settings: Training,
        saving: Checkpointing | None = None,
        processes: int = 1,
    ) -> Run:
        """The teacher's training, to iterate over."""
        team = self._team(settings, processes, network_name)
        state, records = self.teacher_run(network_name, settings)
        card = {"experiment": self.begin(), "network": state.ema.config, "method": TEACHER}
        folder, note = self.folder / TEACHER, self._how(processes)
        return Run(folder, state, records, settings, card, saving, team, note)

    def teacher_run(
        self, network_name: str, settings: Training
    ) -> tuple[TeacherState, Iterator[Record]]:
        """The training of a new teacher at its start: its state, and the loop over it."""
        network = named_network(network_name)
        if self.conditional:
            network["options"]["num_classes"] = self.data.num_classes
        check_fits(network, self.data)
        state = start_training(build_denoiser(network, settings.seed).to(device()), settings)
        return state, train_teacher(state, self.data, self.levels, settings, self.compute)

    def _how(self, processes: int) -> dict:
        """How a run is computed, which changes nothing but rounding."""
        return {"compute": str(self.compute), "processes": team_size(processes)}

    def _team(
        self, settings: Training, processes: int, network_name: str = ""
    ) -> Callable[[str], AbstractContextManager[None]]:
        """Who trains along in a run, from a checkpoint; ValueError if they cannot share a batch."""
        size = team_size(processes)
        check_share(settings.batch_size, size)

        def team(checkpoint: str) -> AbstractContextManager[None]:
            task = {
                "experiment": self.as_json(),
                "data_sha256": self.data.sha256 if size > 1 else "",
                "settings": asdict(settings),
                "network": network_name,
                "checkpoint": checkpoint,
                "threads": torch.get_num_threads(),
            }
            return together(task, size)

        return team

    def import_teacher(self, path_or_name: str) -> Denoiser:
        """Take a published teacher, as `load_teacher` finds it, for the teacher of this experiment.

        It is read once; then the run directory has all. ValueError if its levels or its network
        do not fit, or another teacher is here already.
        """
        folder, note = self.folder / TEACHER, {}
        finished = (folder / "model.safetensors").is_file()
        if not finished:
            teacher = load_teacher(path_or_name, device())
            self._check_levels(teacher)
            check_fits(teacher.denoiser.config, self.data)
            note = {"description": teacher.description, "sha256": fingerprint(teacher.denoiser)}
        card = {"experiment": self.begin(), "method": TEACHER, "source": path_or_name}
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
        fixed = teacher.noise_schedule in FIXED and teacher.teacher_steps != self.teacher_steps
        if teacher.noise_schedule != self.noise_schedule or fixed:
            raise ValueError(
                f"the teacher knows {teacher.noise_schedule} levels with {teacher.teacher_steps} "
                f"steps, the experiment has {self.noise_schedule} with {self.teacher_steps}: set "
                f"noise_schedule to {teacher.noise_schedule!r} and teacher_steps to "
                f"{teacher.teacher_steps}"
            )

    def distill(
        self, settings: Distillation, saving: Checkpointing | None = None, processes: int = 1
    ) -> Denoiser:
        """Distil the teacher, resume that, or read the finished student.

        processes: how many do it together, see `team`.
        """
        return complete(self.distillation(settings, saving, processes))

    def distillation(
        self, settings: Distillation, saving: Checkpointing | None = None, processes: int = 1
    ) -> Run:
        """The teacher's distillation, to iterate over."""
        team = self._team(settings, processes)
        state, records, teacher = self.student_run(settings)
        card = {
            "experiment": self.card(),
            "network": (state.new_student or state.ema).config,
            "method": settings.method,
            "teacher": teacher.get("settings") or teacher.get("source"),
            "teacher_sha256": fingerprint(state.teacher),
        }
        folder, note = self.folder / run_name(settings), self._how(processes)
        return Run(folder, state, records, settings, card, saving, team, note)

    def student_run(
        self, settings: Distillation
    ) -> tuple[DistillationState, Iterator[Record], dict]:
        """A distillation at its start: its state, the loop over it, and its teacher's card."""
        teacher, card = load_model(self.folder / TEACHER, device())
        state = start_distillation(teacher, settings, student_for(teacher, settings))
        records = distill(state, self.data, self.grid(settings), settings, self.compute)
        return state, records, card

    def grid(self, settings: Training) -> Level:
        """Levels that a run steps through: as many as its schedule starts with.

        ValueError where the teacher knows its own levels only, as those of DDPM's betas.
        """
        steps = getattr(settings, "grid_steps", self.teacher_steps)
        if self.noise_schedule in FIXED and steps != self.teacher_steps:
            raise ValueError(
                f"step_schedule starts with {steps}, and {self.noise_schedule} has other levels "
                f"for other numbers of steps: start with the teacher's {self.teacher_steps}"
            )
        return levels_of(self.noise_schedule, steps)


def open_experiment(folder: str | Path, compute: Compute = EAGER) -> Experiment:
    """The experiment that the teacher's notebook began; FileNotFoundError if there is none."""
    path = Path(folder) / "experiment.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: execute 01_teacher first, or what else trains its teacher, or correct "
            "run_dir"
        )
    card = read_card(path, whole=True)
    try:
        sha256 = card.pop("data_sha256")
        card.pop("classes", None)  # of the data
        data_dir = card.pop("provenance")["data_dir"]
        experiment = Experiment(Path(folder), data_dir=data_dir, compute=compute, **card)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; if the data of {path} moved, execute 01_teacher with their new data_dir"
        ) from error
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
