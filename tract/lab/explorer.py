"""Interactive explorers: a schedule to drag in two dimensions, and all models on one noise."""

import html
from collections.abc import Sequence
from functools import lru_cache

import ipywidgets as w
from torch import Tensor

from tract.base.compute import device
from tract.denoiser import Denoise, clamped
from tract.experiments.catalogue import MODEL, find_runs, labels_of, samples_of, students_of
from tract.experiments.experiment import TEACHER, Experiment
from tract.experiments.status import FINISHED
from tract.lab.live import WRAP
from tract.lab.perfect_student import PerfectStudent, shared_rounds
from tract.lab.plots import captioned_rows, paths, png
from tract.lab.schedule import schedule_picture
from tract.lab.show import image, show, style_sheet, text
from tract.levels import Level, broadcast
from tract.methods import METHODS
from tract.metrics.distances import rmse
from tract.networks.weights import load_model
from tract.phases import Phase, in_steps, parse_schedule
from tract.samplers import heun_x0, trajectory

NOISES = 8  # to choose from
PLACES = 8  # on the teacher's walk


def explore_schedule(teacher: Denoise, levels: Level, eps: Tensor, data: Tensor) -> None:
    """Show a schedule to drag, and the map of the student that learns perfectly along it.

    teacher: of 2-D points, and cheap. eps (B, 2): noise to start from. data (N, 2): drawn behind.
    """
    explorer = ScheduleExplorer(teacher, levels, eps, data)
    show(explorer, explorer.map)


class ScheduleExplorer(w.VBox):
    """Phases, their groups, and a perfect student's walk beside its teacher's and the exact one."""

    def __init__(self, teacher: Denoise, levels: Level, eps: Tensor, data: Tensor):
        self.teacher, self.levels, self.eps, self.data = teacher, levels, eps, data
        self.exact = _walk(teacher, eps, levels, levels.num_steps, solver=heun_x0)
        divisors = [n for n in range(1, levels.num_steps) if levels.num_steps % n == 0]
        middle = min(divisors, key=lambda n: abs(n * n - levels.num_steps))
        self.method = w.ToggleButtons(options=list(METHODS), value="TRACT")
        self.between = _slider("Between", ["none", *divisors[:0:-1]], middle)
        self.end = _slider("Steps", divisors[:4], 1)
        self.rounds = _slider("Rounds", [0, *divisors, levels.num_steps], 2 * middle)
        self.said, self.pictures = w.HTML(layout={"min_height": "32px"}), w.HTML()
        self._map, self._groups = lru_cache(self._draw_map), lru_cache(self._draw_groups)
        for widget in (self.method, self.between, self.end, self.rounds):
            widget.observe(lambda _: self.draw(), "value")
        sliders = w.HBox([self.between, self.end, self.rounds], layout=WRAP)
        super().__init__([style_sheet(), self.method, sliders, self.said, self.pictures])
        self.add_class("tract")
        self.draw()

    @property
    def step_schedule(self) -> list[int]:
        """The schedule of the sliders; ValueError if halving does not lead there."""
        first, end = self.levels.num_steps, self.end.value
        between = [] if self.between.value == "none" else [self.between.value]
        return METHODS[self.method.value].schedule([first, *between, end])

    def draw(self) -> None:
        """Draw the schedule and its student, or say why there is none."""
        try:
            phases = parse_schedule(self.step_schedule)
        except ValueError as error:
            self.said.value = text(str(error), "bad")
            return
        rounds = shared_rounds(self.rounds.value, len(phases))
        self.said.value = _told(phases, rounds)
        self.map = self._map(tuple(phases), tuple(rounds))
        groups = self._groups(tuple(phases[-3:]), METHODS[self.method.value].self_taught)
        walks = image(self.map, "Walks of teacher, student and the exact flow")
        self.pictures.value = walks + image(groups, f"Groups of {self.step_schedule}")

    def _draw_map(self, phases: tuple[Phase, ...], rounds: tuple[int, ...]) -> bytes:
        walk = PerfectStudent(self.teacher, self.levels, phases, rounds).walk(self.eps)
        steps = phases[-1].student_steps
        untaught = _walk(self.teacher, self.eps, self.levels, steps)
        shown = in_steps(steps)
        panels = {
            f"the teacher, {shown}: {self._error(untaught)}": untaught,
            f"the student, {shown}: {self._error(walk)}": walk,
            "the exact flow": [*self.exact[: -1 : len(self.exact) // 128 or 1], self.exact[-1]],
        }
        return png(paths(panels, self.data))

    def _draw_groups(self, phases: tuple[Phase, ...], self_taught: bool) -> bytes:
        return png(schedule_picture(phases, self.levels, self_taught))

    def _error(self, walk: list[Tensor]) -> str:
        return f"{rmse(walk[-1], self.exact[-1]):.3f} off"


def explore_noise(experiment: Experiment, most_steps: int = 4) -> None:
    """Show the teacher's walk from a chosen noise, and where students of few steps land from it.

    The students are those of all finished runs of the experiment, after each of their phases.
    FileNotFoundError without a finished teacher.
    """
    explorer = NoiseExplorer(experiment, most_steps)
    show(explorer, explorer.png)


class NoiseExplorer(w.VBox):
    """One noise: the teacher's walk from it to data, and samples of it in few steps."""

    def __init__(self, experiment: Experiment, most_steps: int = 4):
        self.problems: list[str] = []
        self.noisy, self.guessed = _teachers_walk(experiment)
        self.landed = self._landings(experiment, most_steps)
        self.noise = w.IntSlider(0, 0, NOISES - 1, description="Noise")
        self.picture = w.HTML()
        said = w.HTML("<br>".join(map(html.escape, self.problems)))
        super().__init__([style_sheet(), self.noise, self.picture, said])
        self.add_class("tract")
        self.noise.observe(lambda _: self.draw(), "value")
        self.draw()

    def draw(self) -> None:
        """Draw the noise chosen by the slider."""
        rows = {"teacher's walk": self.noisy, "its x0 there": self.guessed, **self.landed}
        index = self.noise.value
        chosen = {row: {name: x[index] for name, x in found.items()} for row, found in rows.items()}
        self.png = png(captioned_rows(chosen))
        alt = f"Noise {index}: the teacher's walk, and samples in {', '.join(self.landed)}"
        self.picture.value = image(self.png, alt, "samples")

    def _landings(self, experiment: Experiment, most_steps: int) -> dict[str, dict[str, Tensor]]:
        """Samples by number of steps, by model; files that cannot be read become problems."""
        runs = [run for run in find_runs(experiment.folder) if run.state == FINISHED]
        teacher = [(run, run.folder / MODEL) for run in runs if run.method == TEACHER]
        students = [s for run in runs if run.method != TEACHER for s in students_of(run)]
        walked = {f"teacher\n{experiment.reference_steps} steps": list(self.noisy.values())[-1]}
        rows = {}
        for steps in (n for n in range(1, most_steps + 1) if experiment.teacher_steps % n == 0):
            fitting = [s for s in students if s[0].settings["step_schedule"][-1] == steps]
            labels = labels_of([run for run, _ in teacher + fitting])
            images = {}
            for run, weights in teacher + fitting:
                try:
                    x = samples_of(weights, steps, NOISES, experiment.seed)
                    images[labels[run.name].replace(", ", "\n").replace(" ", "\n", 1)] = x
                except (OSError, ValueError, RuntimeError) as error:
                    self.problems.append(f"{run.name}, {steps} steps: {error}")
            rows[in_steps(steps)] = walked | images
        return rows


def _teachers_walk(experiment: Experiment) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Places on the teacher's walk, at the scale of data, and its x0 there, by their time."""
    teacher = load_model(experiment.folder / TEACHER, device())[0]
    denoise = clamped(teacher) if experiment.clamp else teacher
    eps, labels = (None if x is None else x[:NOISES] for x in experiment.noise)
    levels, steps = experiment.levels.to(eps.device), experiment.reference_steps
    noisy, guessed = {}, {}
    for place, (i, x) in enumerate(trajectory(denoise, eps, levels, steps, labels=labels)):
        if place % -(-steps // PLACES) == 0 or place == steps:
            scale = (levels[i].alpha ** 2 + levels[i].sigma ** 2).sqrt()
            noisy[f"t = {i}"] = (x / broadcast(scale, x)).cpu()
            guessed[f"t = {i}"] = denoise(x, levels[i], labels).cpu()
    return noisy, guessed


def _walk(denoise: Denoise, eps: Tensor, levels: Level, steps: int, **options) -> list[Tensor]:
    return [x for _, x in trajectory(denoise, eps, levels, steps, **options)]


def _slider(name: str, options: Sequence[int | str], value: int) -> w.SelectionSlider:
    return w.SelectionSlider(
        options=options, value=value, description=name, layout={"width": "300px"}
    )


def _told(phases: list[Phase], rounds: list[int]) -> str:
    """How far the rounds lead in every phase, in words."""
    parts = []
    for phase, count in zip(phases, rounds, strict=True):
        learned = count if count < phase.segment - 1 else phase.segment  # the leap is the last one
        parts.append(f"<b>{html.escape(str(phase))}</b> {learned} of {phase.segment}")
    if len(parts) > 4:
        parts[2:-2] = ["..."]
    return f"Teacher steps that one student step has learned: {', '.join(parts)}"
