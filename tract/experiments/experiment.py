"""An experiment: the data, levels, teacher and students of one run directory.

experiment.json    written by the first notebook, read by the others
NAME/              one directory for each training run, see `run`
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

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
from tract.experiments.names import TEACHER, run_name, settings_from
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
    """Data, levels and evaluation of all runs in one folder.

    Raises ValueError if they do not fit together. The data of an existing experiment are loaded,
    and compared with data_sha256, when first needed.
    """

    folder: Path
    data_name: str
    data_dir: str = ""
    conditional: bool = False  # use the labels
    noise_schedule: str = "cosine"  # a name in levels.NOISE_SCHEDULES
    teacher_steps: int = 1024  # T, the length of the teacher's grid
    reference_steps: int = 256  # of the teacher's samples that students are compared with
    num_samples: int = 384
    clamp: bool = True  # clamp predictions to [-1, 1] in sampling
    seed: int = 0  # of the noise for sampling
    image_size: int = 0  # this and the next two are DATA_OPTIONS, only for data "images"
    grey: bool = False
    flip: bool = False
    num_classes: int = 0  # of the networks, if they have more than the data
    compute: Compute = EAGER  # how, not what: not on the card
    data_sha256: str = field(default="", compare=False)  # of the data when it began

    def __post_init__(self):
        check_text("run_dir", str(self.folder) if isinstance(self.folder, Path) else self.folder)
        object.__setattr__(self, "folder", place(self.folder))
        step_indices(self.levels.num_steps, self.reference_steps)
        check_flag("conditional", self.conditional)
        check_whole("num_samples", self.num_samples, 2, MOST_SAMPLES)
        check_flag("clamp", self.clamp)
        check_whole("seed", self.seed, 0)
        check_whole("num_classes", self.num_classes, 0, 2**17)
        if not self.data_sha256:  # a new one, with any data
            _ = self.data

    @cached_property
    def labelled(self) -> Data:
        """The data with their labels, if any, whether labels are used or not."""
        options = {name: getattr(self, name) for name in DATA_OPTIONS}
        try:
            data = load_data(self.data_name, self.data_dir, **options)
        except FileNotFoundError as error:
            moved = "if the data moved, execute 01_teacher with their new data_dir"
            raise FileNotFoundError(
                f"{error}; {moved}" if self.data_sha256 else str(error)
            ) from error
        if self.conditional and data.labels is None:
            raise ValueError(
                "conditional is True, but not all images are in folders of their class: sort them, "
                "or use False"
            )
        return replace(data, classes=self.num_classes).to(device())

    @cached_property
    def data(self) -> Data:
        """The training data; raises ValueError if they have changed since the experiment began."""
        data = self.labelled if self.conditional else self.labelled.unlabelled()
        if self.data_sha256 and data.sha256 != self.data_sha256:
            raise ValueError(
                f"the data {self.data_name} have changed since {self.folder} was begun: "
                "restore them, or begin in another run_dir"
            )
        return data

    @cached_property
    def levels(self) -> Level:
        return levels_of(self.noise_schedule, self.teacher_steps)

    @cached_property
    def noise(self) -> tuple[Tensor, Tensor | None]:
        """The noise and labels from which every model is sampled."""
        return fixed_noise(self.data, self.num_samples, self.seed)

    def _identity(self) -> dict:
        """All fields as JSON, except those about where and how it is computed."""
        about = asdict(self) | {"data_sha256": self.data_sha256 or self.data.sha256}
        return {n: v for n, v in about.items() if n not in ("folder", "data_dir", "compute")}

    def _places(self) -> dict:
        """Folders, as absolute paths for other processes."""
        data_dir = str(place(self.data_dir).resolve()) if self.data_dir else ""
        return {"folder": str(self.folder.resolve()), "data_dir": data_dir}

    def card(self) -> dict:
        """The settings that must stay the same for runs to be comparable."""
        # Cards written before these options existed stay valid.
        later = (*DATA_OPTIONS, "num_classes")
        card = {n: v for n, v in self._identity().items() if v or n not in later}
        return card | ({"classes": self.data.classes_present} if self.num_classes else {})

    def begin(self) -> dict:
        """Claim the folder and return the card; raises ValueError if another experiment has it."""
        note = {"data_dir": self._places()["data_dir"]}
        card = self.card()
        claim(self.folder / "experiment.json", card, note=note)
        return card

    def task(self, settings: Training, network: str = "") -> dict:
        """Describe a run as JSON, for `from_task` in another process."""
        about = self._identity() | self._places() | {"compute": asdict(self.compute)}
        return {"experiment": about, "settings": asdict(settings), "network": network}

    def train_teacher(
        self,
        network: str,
        settings: Training,
        saving: Checkpointing | None = None,
        processes: int = 1,
    ) -> Denoiser:
        """Train, resume or load the teacher, a named network."""
        return complete(self.run(settings, network, saving, processes))

    def distill(
        self, settings: Distillation, saving: Checkpointing | None = None, processes: int = 1
    ) -> Denoiser:
        """Distil the teacher, resume its distillation, or load the finished student."""
        return complete(self.run(settings, "", saving, processes))

    def run(
        self,
        settings: Training,
        network: str = "",
        saving: Checkpointing | None = None,
        processes: int = 1,
    ) -> Run:
        """Return the training of the teacher, a named network, or its distillation.

        processes: how many train together, see `team`. Raises ValueError for invalid combinations
        before anything is written.
        """
        size, distils = team_size(processes), isinstance(settings, Distillation)
        check_share(settings.batch_size, size)
        state, records, about = self.start(settings, network)
        card = {"experiment": self.card() if distils else self.begin(), **about}
        team = partial(together, self.task(settings, network), size)
        note = {"compute": str(self.compute), "processes": size}
        folder = self.folder / run_name(settings)
        return Run(folder, state, records, settings, card, saving, team, note)

    def start(
        self, settings: Training, network: str = ""
    ) -> tuple[TeacherState | DistillationState, Iterator[Record], dict]:
        """Return a run at its start: its state, the loop over it, and the entries for its card."""
        if not isinstance(settings, Distillation):
            config = named_network(network)
            if self.conditional:
                config["options"]["num_classes"] = self.data.num_classes
            check_fits(config, self.data)
            state = start_training(build_denoiser(config, settings.seed).to(device()), settings)
            records = train_teacher(state, self.data, self.levels, settings, self.compute)
            return state, records, {"network": config, "method": TEACHER}
        teacher, card = load_model(self.folder / TEACHER, device())
        state = start_distillation(teacher, settings, student_for(teacher, settings))
        records = distill(state, self.data, self.grid(settings), settings, self.compute)
        about = {
            "network": (state.new_student or state.ema).config,
            "method": settings.method,
            "teacher": card.get("settings") or card.get("source"),
            "teacher_sha256": fingerprint(state.teacher),
        }
        return state, records, about

    def import_teacher(self, path_or_name: str) -> Denoiser:
        """Use a published teacher, as `load_teacher` finds it, as the teacher of this experiment.

        It is copied to the run directory and not needed afterwards. Raises ValueError if its levels
        or network do not fit, or if the experiment has another teacher already.
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
            print(f"{TEACHER}: already imported, read from {folder / 'model.safetensors'}")
        return load_model(folder, device())[0]

    def _check_levels(self, teacher: Teacher) -> None:
        """Raise ValueError unless a teacher was trained for the levels of this experiment.

        Networks can use any number of levels of their process, except those of DDPM's betas.
        """
        fixed = teacher.noise_schedule in FIXED and teacher.teacher_steps != self.teacher_steps
        if teacher.noise_schedule != self.noise_schedule or fixed:
            raise ValueError(
                f"the teacher knows {teacher.noise_schedule} levels with {teacher.teacher_steps} "
                f"steps, the experiment has {self.noise_schedule} with {self.teacher_steps}: set "
                f"noise_schedule to {teacher.noise_schedule!r} and teacher_steps to "
                f"{teacher.teacher_steps}"
            )

    def grid(self, settings: Training) -> Level:
        """Return the levels that a run steps through: as many as its schedule starts with.

        Raises ValueError if the teacher has only its own levels, as those of DDPM's betas.
        """
        steps = getattr(settings, "grid_steps", self.teacher_steps)
        if self.noise_schedule in FIXED and steps != self.teacher_steps:
            raise ValueError(
                f"step_schedule starts with {steps}, but {self.noise_schedule} levels differ for "
                f"other numbers of steps: start with the teacher's {self.teacher_steps}"
            )
        return levels_of(self.noise_schedule, steps)


def open_experiment(folder: str | Path, compute: Compute = EAGER) -> Experiment:
    """Return the experiment in a folder; raises FileNotFoundError if there is none."""
    path = Path(folder) / "experiment.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: execute 01_teacher first, or train its teacher otherwise, or correct "
            "run_dir"
        )
    card = read_card(path, whole=True)
    try:
        card.pop("classes", None)  # from the data
        data_dir, sha256 = card.pop("provenance")["data_dir"], card.pop("data_sha256")
        return Experiment(
            Path(folder), data_dir=data_dir, compute=compute, data_sha256=sha256, **card
        )
    except (KeyError, TypeError) as error:  # an entry is missing or unknown
        raise ValueError(
            f"{path} does not describe an experiment ({error}): restore it, or begin in another "
            "run_dir"
        ) from error


def from_task(task: dict) -> tuple[Experiment, Training]:
    """Return the experiment and settings of a run described by `Experiment.task`."""
    about, settings = task["experiment"], task["settings"]
    return Experiment(**about | {"compute": Compute(**about["compute"])}), settings_from(settings)
