"""Settings of training and distillation, validated on construction."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from tract.base.checks import LARGEST_BATCH, check_choice, check_positive, check_whole, is_number
from tract.losses import LOSSES, REDUCTIONS, WEIGHTS
from tract.methods import METHODS
from tract.phases import Entry, Phase, equal_steps, first_grid, format_schedule, parse_schedule
from tract.samplers import SOLVERS


def check_residual(name: str, value: object) -> None:
    """Raise ValueError unless the value is a share between 0 and 1."""
    if not (is_number(value) and 0 < value < 1):
        raise ValueError(f"{name} is {value!r}: use a share between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a training run. Raises ValueError that names an invalid setting."""

    train_images: int  # samples drawn in total
    batch_size: int = 128
    learning_rate: float = 1e-3  # of Adam
    warmup: int = 0  # images at the start, over which the rate rises linearly from 0
    cooldown: float = 0.0  # share at the end of each phase, where the rate falls linearly to 0
    loss: str = "squared"  # a name in LOSSES
    loss_reduction: str = "mean"  # over pixels; or "sum", as in the authors' code
    loss_weight: str = "truncated_snr"  # a name in WEIGHTS
    ema_residual: float = 1e-3  # share of its start left in the inference average
    clip_norm: float = 1.0  # largest norm of the gradient
    seed: int = 0
    num_phases: ClassVar[int] = 1

    def __post_init__(self):
        check_whole("batch_size", self.batch_size, 1, LARGEST_BATCH)
        check_whole("train_images", self.train_images, 1)
        if self.train_images < self.batch_size:
            raise ValueError(
                f"train_images is {self.train_images}, less than one batch of {self.batch_size}: "
                "use more images or a smaller batch"
            )
        check_choice("loss", self.loss, LOSSES)
        check_choice("loss_reduction", self.loss_reduction, REDUCTIONS)
        check_choice("loss_weight", self.loss_weight, WEIGHTS)
        check_positive("learning_rate", self.learning_rate)
        check_positive("clip_norm", self.clip_norm)
        check_whole("warmup", self.warmup, 0)
        check_residual("ema_residual", self.ema_residual)
        if not (is_number(self.cooldown) and 0 <= self.cooldown <= 1):
            raise ValueError(f"cooldown is {self.cooldown!r}: use a share from 0 to 1")
        check_whole("seed", self.seed, 0)

    def check_step(self, what: object, step: int, phase: int = 0) -> None:
        """Raise ValueError about what, unless a run with these settings can be at this step."""
        length = self.steps_per_phase
        if not (0 <= phase < self.num_phases and 0 <= step - phase * length <= length):
            raise ValueError(
                f"{what} is at step {step} in phase {phase + 1}, but these settings have "
                f"{self.num_phases} phases of {length} steps: keep train_images, batch_size and "
                "step_schedule"
            )

    @property
    def steps_per_phase(self) -> int:
        """Optimizer steps."""
        return self.train_images // (self.batch_size * self.num_phases)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_phase * self.num_phases


PHASE_CHANGES = ("restart", "carry_on")
CLAMPS = ("none", "self_teacher", "all")


@dataclass(frozen=True, kw_only=True)
class Distillation(Training):
    """Settings of a distillation; images are divided equally among the phases.

    student_network, student_prediction: "" to keep the teacher's, else the student's from the phase
    of equal steps on, see `networks.build.student_for`.
    """

    step_schedule: tuple[Entry, ...]  # such as (1024, 32, 1), from the teacher's grid
    method: str = "TRACT"  # a name in METHODS
    solver: str = "ddim"  # of the first teacher: a name in SOLVERS
    self_ema: float = 0.5  # mu_S, the decay of the self-teacher
    more_residuals: tuple[float, ...] = ()  # of further averages, which are measured too
    phase_change: str = "restart"  # or "carry_on", as the authors: renew the teacher only
    clamp: str = "none"  # predictions clamped to [-1, 1] in targets: a name in CLAMPS
    student_network: str = ""  # a name in networks.named.NETWORKS
    student_prediction: str = ""  # a name in denoiser.SCALINGS

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.step_schedule, list | tuple):
            raise ValueError(
                f"step_schedule is {self.step_schedule!r}: use a list of steps, such as [1024, 1]"
            )
        entries = (tuple(e) if isinstance(e, list) else e for e in self.step_schedule)
        object.__setattr__(self, "step_schedule", tuple(entries))
        check_choice("method", self.method, METHODS)
        check_choice("solver", self.solver, SOLVERS)
        if not (is_number(self.self_ema) and 0 <= self.self_ema < 1):
            raise ValueError(f"self_ema is {self.self_ema!r}: use 0 or more and less than 1")
        object.__setattr__(self, "more_residuals", tuple(self.more_residuals))
        for residual in self.more_residuals:
            check_residual("more_residuals", residual)
        check_choice("phase_change", self.phase_change, PHASE_CHANGES)
        check_choice("clamp", self.clamp, CLAMPS)
        METHODS[self.method].check(self.phases)
        self._check_student()
        parts = len(self.phases[0].parts)
        if self.steps_per_phase < parts:
            what = f"{parts} grids" if parts > 1 else f"{self.num_phases} phases"
            raise ValueError(
                f"train_images is {self.train_images}, less than one batch of {self.batch_size} "
                f"for each of {what}: use {self.batch_size * self.num_phases * parts} or more"
            )

    def _check_student(self) -> None:
        """Raise ValueError if a student that differs from its teacher has no phase to start in."""
        for name in ("student_network", "student_prediction"):
            value = getattr(self, name)
            if value and equal_steps(self.phases) is None:
                *before, last = self.step_schedule
                raise ValueError(
                    f"{name} is {value!r}, but a changed network has to learn its teacher's own "
                    "steps first: repeat an entry of step_schedule, such as "
                    f"{[*before, before[-1], last]}"
                )

    @cached_property
    def phases(self) -> list[Phase]:
        """The parsed schedule."""
        return parse_schedule(self.step_schedule)

    @property
    def schedule(self) -> str:
        """The schedule in the paper's notation: 1024>32>1."""
        return format_schedule(self.step_schedule)

    @property
    def grid_steps(self) -> int:
        """T, the steps of the teacher's grid that the schedule starts from."""
        return first_grid(self.step_schedule)

    @property
    def num_phases(self) -> int:
        return len(self.phases)
