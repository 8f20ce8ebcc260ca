"""The schedule editor: widgets for a distillation's settings, with picture, cost and state."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import ipywidgets as w

from tract.distill import check_solver
from tract.experiments.experiment import Experiment
from tract.experiments.job import Task
from tract.experiments.names import TEACHER, label_of, run_name
from tract.experiments.results import RESULTS, read_results
from tract.experiments.status import FAILED, FINISHED, NEW, STOPPED, read_status
from tract.jobs.parameters import line, parameters_of, presets_in, yaml_of
from tract.lab.fields import (
    NUMBERS,
    STUDENT,
    ScheduleFields,
    copyable,
    labelled,
    make_fields,
    number_of,
)
from tract.lab.live import WRAP, LiveBox
from tract.lab.plan_view import PlanView, settings_of
from tract.lab.show import text
from tract.lab.view import told
from tract.methods import METHODS
from tract.networks.weights import load_model
from tract.phases import equal_steps, parse_schedule
from tract.settings import Distillation

FEW_STEPS = 50  # in a phase: with fewer the editor warns
DATA = ("digits", "fashion_mnist", "cifar10", "imagenet64")  # that presets are named after


class Editor(LiveBox):
    """Widgets for all settings of a distillation of an experiment's teacher.

    recipes: settings to load, beside the parameter files in the folder presets; the first is loaded
    at the start. FileNotFoundError if the experiment has no teacher yet.
    """

    def __init__(
        self,
        experiment: Experiment,
        recipes: Sequence[Distillation],
        presets: str | Path = "presets",
    ):
        self.experiment = experiment
        network = load_model(experiment.folder / TEACHER)[0].config
        self._recipe = self._base = recipes[0]  # for settings without a widget
        self._act: Callable[[], None] = lambda: self.say("run the next cell, then press Start")
        self._quiet = False  # while several widgets are set at once
        self._past: list[tuple[Distillation, dict]] = []  # earlier values, for Undo
        self._presets = {f"this notebook, {r.schedule}": parameters_of(r) for r in recipes}
        self._presets |= presets_in(Path(presets))
        self.fields, self.boundaries = make_fields(), ScheduleFields(self.say)
        self.schedule = self.boundaries.text
        self._widgets = {**self.fields, "step_schedule": self.schedule}
        self.preset = labelled(w.Dropdown(options=list(self._presets)), "Load preset", "460px")
        self.undo, self.start = w.Button(description="Undo"), w.Button(button_style="success")
        self.status, self.summary, self.yaml = w.HTML(), w.HTML(), w.HTML()
        self.view = PlanView(experiment, network, self._recipe, self._presets, self._update)
        made, start = list(self.fields.values()), [self.start, self.undo, self.summary]
        rows = [self.preset, self.boundaries, w.HBox(made, layout=WRAP), self.status]
        rows += [w.HBox(start, layout=WRAP), self.view, self.yaml]
        super().__init__(experiment.folder, rows)
        self.layout.max_width = "1000px"
        for widget in self._widgets.values():
            widget.observe(self._update, "value")
        self.preset.observe(lambda change: self.load(self._presets[change.new]), "value")
        self.undo.on_click(self._undo)
        self.view.measure.on_click(lambda button: self.view.measure_time(self.settings))
        self.start.on_click(lambda button: self._act())
        self.load(self._presets[self.preset.value])

    @property
    def settings(self) -> Distillation:
        """The settings in the widgets; ValueError, with the reason, for impossible ones."""
        values = {name: x.value for name, x in self.fields.items() if name != "noise_schedule"}
        values |= {name: number_of(name, values[name]) for name in NUMBERS}
        return replace(self._base, step_schedule=self.boundaries.schedule, **values)

    @property
    def reason(self) -> str:
        """Why these settings cannot be started; empty if they can."""
        try:
            self._check(self.settings)
        except ValueError as error:
            return str(error)
        return ""

    @property
    def parameters(self) -> str:
        """The settings as a file of parameters; ValueError for impossible ones."""
        levels = self.fields["noise_schedule"].value
        own = {} if levels == self.experiment.noise_schedule else {"noise_schedule": levels}
        return yaml_of(parameters_of(self.settings) | own)

    def load(self, parameters: Mapping[str, object]) -> None:
        """Set the widgets to a notebook's parameters; the first recipe has the missing ones."""
        base = settings_of(parameters, self._recipe)
        values = {name: getattr(base, name, None) for name in self.fields}
        values |= {name: str(values[name]) for name in NUMBERS}
        levels = parameters.get("noise_schedule", self.experiment.noise_schedule)
        values |= {"noise_schedule": levels, "step_schedule": line(base.step_schedule)}
        self._fill(base, values)

    def edit(self, settings: Mapping[str, object]) -> None:
        """Set the widgets to the settings on a run's card."""
        self.load(parameters_of(Distillation(**settings)))

    def picture(self) -> bytes:
        """The picture of the schedule."""
        return self.view.png

    def task(self, task: Task) -> Task:
        """The task with the settings in the widgets; ValueError for impossible ones."""
        settings = self.settings
        self._check(settings)
        return replace(task, settings=settings)

    def on_start(self, act: Callable[[], None]) -> None:
        """Call a function when Start is clicked, instead of the previous one."""
        self._act = act

    def _check(self, settings: Distillation) -> None:
        """ValueError if these settings are not for this experiment's teacher."""
        noise_schedule = self.fields["noise_schedule"].value
        if noise_schedule != self.experiment.noise_schedule:
            raise ValueError(
                f"noise_schedule is {noise_schedule!r}, and the teacher in "
                f"{self.experiment.folder} was trained on {self.experiment.noise_schedule!r}: "
                "choose that, or use another run_dir with a teacher of its own"
            )
        check_solver(settings.solver, self.experiment.grid(settings))
        self.experiment.data.check_batch(settings.batch_size)
        named = settings.student_network or settings.student_prediction
        if equal_steps(settings.phases) is not None and not named:
            raise ValueError(
                f"step_schedule is {list(settings.step_schedule)}: a phase of equal steps needs "
                "another network, choose student_network or student_prediction"
            )

    def _warnings(self, settings: Distillation) -> list[str]:
        """Settings that can be started but are perhaps a mistake."""
        found, rate = [], settings.learning_rate / self._recipe.learning_rate
        if not 0.01 < rate < 100:
            found.append(f"learning_rate is {rate:.3g} times the recipe's")
        if settings.steps_per_phase < FEW_STEPS:
            found.append(f"only {settings.steps_per_phase} steps in each phase")
        data = next((name for name in DATA if self.preset.value.startswith(name)), "")
        if data and not self.experiment.data_name.startswith(data):
            found.append(f"the preset is for {data}, these data are {self.experiment.data_name}")
        days = self.view.days(settings)
        if days:
            found.append(f"about {days} of compute")
        return found

    def _update(self, change=None) -> None:
        """Say what the settings amount to, or why they are impossible; then draw them.

        An impossible schedule leaves the last picture in place, so that nothing jumps.
        """
        if self._quiet:
            return
        now = self._base, {name: widget.value for name, widget in self._widgets.items()}
        if self._past[-1:] != [now]:
            self._past.append(now)
        reason = self.reason
        self._offer_student()
        self.view.measure.disabled = bool(reason)
        if reason:
            self.say(f"Impossible: {reason}", "bad")
            self.view.clear()
            self.yaml.value = copyable(f"# impossible: {reason}")
        else:
            settings = self.settings
            warned = "".join(f". Warning: {warning}" for warning in self._warnings(settings))
            self.say(f"Possible: {settings.schedule}, {settings.num_steps:,} steps{warned}", "good")
            self.view.count(settings)
            self.yaml.value = copyable(self.parameters)
        self.tick()
        with suppress(ValueError):
            schedule = self.boundaries.schedule
            self.boundaries.follow()
            levels, method = self.fields["noise_schedule"].value, self.fields["method"].value
            self.view.draw(schedule, levels, METHODS[method].self_taught)

    def _offer_student(self) -> None:
        """Show the fields of another network if one is needed, or chosen."""
        needed = any(self.fields[name].value for name in STUDENT)
        with suppress(ValueError):
            needed |= equal_steps(parse_schedule(self.boundaries.schedule)) is not None
        for name in STUDENT:
            self.fields[name].layout.display = "" if needed else "none"

    def say(self, content: str, kind: str = "bad") -> None:
        self.status.value = text(content, kind)

    def tick(self) -> None:
        """Say which run these settings belong to, and name on Start what can be done with it."""
        if self.reason:
            self.start.disabled, self.start.description, self.summary.value = True, "Start", ""
            return
        settings = self.settings
        status = read_status(self.experiment.folder / run_name(settings))
        state = status.state
        self.start.disabled = status.active or state == FINISHED
        again = {STOPPED: "Resume", FAILED: "Resume", FINISHED: "Finished"}
        self.start.description = "Running" if status.active else again.get(state, "Start")
        said = "a new run" if state == NEW else told(status)
        if state == FINISHED:
            said += f"{self._distance(settings)}. Change a setting, such as seed, for another run"
        self.summary.value = text(f"{label_of(settings)}: {said}")

    def _distance(self, settings: Distillation) -> str:
        try:
            table = read_results(self.experiment.folder / RESULTS)
        except ValueError:  # damaged: the browser says so
            return ""
        own = table[(table["run"] == run_name(settings)) & table["metric"].str.startswith("f")]
        own = own.sort_values("nfe")
        return f" with distance {own['value'].iloc[0]:.3g}" if len(own) else ""

    def _fill(self, base: Distillation, values: Mapping[str, object]) -> None:
        """Set all widgets at once."""
        self._quiet, self._base = True, base
        try:
            for name, widget in self._widgets.items():
                widget.value = values[name]
        finally:
            self._quiet = False
        self._update()

    def _undo(self, button) -> None:
        """Restore the values before the last change."""
        if len(self._past) > 1:
            self._past.pop()
            self._fill(*self._past[-1])
