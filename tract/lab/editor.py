"""The schedule editor: settings of a distillation as widgets, with picture, cost and state."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path

import ipywidgets as w

from tract.distill import check_solver
from tract.experiments.experiment import TEACHER, Experiment, run_name
from tract.experiments.job import Task
from tract.experiments.results import RESULTS, read_results
from tract.experiments.status import FAILED, FINISHED, STOPPED, read_status
from tract.jobs.parameters import line, parameters_of, presets_in, yaml_of
from tract.lab.fields import (
    NUMBERS,
    STUDENT,
    ScheduleFields,
    copyable,
    make_fields,
    number_of,
)
from tract.lab.live import poll, replace_earlier, somebody_clicks
from tract.lab.plan_view import PlanView
from tract.lab.show import show, show_picture, style_sheet, text
from tract.lab.view import told
from tract.methods import METHODS
from tract.networks.weights import load_model
from tract.phases import equal_steps, parse_schedule
from tract.settings import Distillation

FEW_STEPS = 50  # in a phase, of which the editor warns
DATA = ("digits", "fashion_mnist", "cifar10", "imagenet64")  # that presets are named after
WRAP = {"flex_flow": "row wrap", "width": "100%"}
STYLE = """<style>
.tract .tract-plan { max-width: 100%; font-size: 11px }
.tract .tract-plan :is(td, th) { padding: 0 4px; text-align: right; overflow-wrap: anywhere;
  white-space: normal; line-height: 1.4 }
.tract pre { margin: 2px; white-space: pre-wrap; border: 1px solid var(--jp-border-color1);
  padding: 4px; color: var(--jp-ui-font-color1); background: var(--jp-layout-color1) }
</style>"""


class Editor:
    """Widgets for all settings of a distillation of an experiment's teacher.

    recipes: what the editor can be set to, the first to begin with; so can the files of parameters
    in the folder presets. FileNotFoundError where the experiment has no teacher yet.
    """

    def __init__(
        self,
        experiment: Experiment,
        recipes: Sequence[Distillation],
        presets: str | Path = "presets",
    ):
        self.experiment = experiment
        self._network = load_model(experiment.folder / TEACHER)[0].config
        self._recipe = self._base = recipes[0]  # of settings that have no widget
        self._act: Callable[[], None] = lambda: self._say("run the next cell, then press Start")
        self._quiet = False  # while several widgets are set at once
        self._past: list[tuple] = []  # of all fields, to go back to
        self._presets = {f"this notebook, {r.schedule}": parameters_of(r) for r in recipes}
        self._presets |= presets_in(Path(presets))
        self.fields = make_fields()
        self.preset = w.Dropdown(options=list(self._presets), description="Load preset")
        self.boundaries = ScheduleFields(self._say)
        self.schedule = self.boundaries.text
        self.undo, self.start = (w.Button(description=name) for name in ("Undo", "Start"))
        self.start.button_style = "success"
        self.status, self.summary, self.yaml = w.HTML(), w.HTML(), w.HTML()
        view = experiment, self._network, self._recipe, self._presets, self._update
        self.view = PlanView(*view)
        self.box = self._laid_out()
        self._listen()
        self.load(self._presets[self.preset.value])

    @property
    def settings(self) -> Distillation:
        """What the widgets say; ValueError, with the reason, where that is impossible."""
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
        """Set the widgets to a notebook's parameters, with those of the first recipe for others."""
        schedule = parameters["step_schedules"][0]
        known = {field.name for field in fields(Distillation)} & parameters.keys()
        given = {name: parameters[name] for name in known}
        if isinstance(given.get("solver"), list):  # notebook 04 has several, in turn
            given["solver"] = given["solver"][0]
        self._base = replace(self._recipe, step_schedule=schedule, **given)
        with self._quietly():
            for name, widget in self.fields.items():
                if name in NUMBERS:
                    widget.value = str(getattr(self._base, name))
                elif name != "noise_schedule":
                    widget.value = getattr(self._base, name)
            levels = parameters.get("noise_schedule", self.experiment.noise_schedule)
            self.fields["noise_schedule"].value = levels
            self.schedule.value = line(schedule)
        self._update()

    def open(self, settings: Mapping[str, object]) -> None:
        """Set the widgets to the settings on a run's card."""
        self.load(parameters_of(Distillation(**settings)))

    def show(self) -> None:
        """Display the editor; where it cannot live, the picture of its schedule."""
        if somebody_clicks():
            replace_earlier(("editor", str(self.experiment.folder)), self.box)
            show(self.box, self.view.png)
            poll(self._tick, 1.0)
        else:
            show_picture(self.box, self.view.png, None)

    def task(self, task: Task) -> Task:
        """The task with the settings that the widgets say; ValueError for impossible ones."""
        settings = self.settings
        self._check(settings)
        return replace(task, settings=settings)

    def on_start(self, act: Callable[[], None]) -> None:
        """Call a function when Start is clicked, in place of an earlier one."""
        self._act = act

    def _check(self, settings: Distillation) -> None:
        """ValueError if these settings are not for this experiment's teacher."""
        noise_schedule = self.fields["noise_schedule"].value
        if noise_schedule != self.experiment.noise_schedule:
            raise ValueError(
                f"noise_schedule is {noise_schedule!r}, and the teacher in "
                f"{self.experiment.folder} knows {self.experiment.noise_schedule!r} levels: go "
                "back to these, or use another run_dir with a teacher of its own"
            )
        check_solver(settings.solver, self.experiment.grid(settings))
        self.experiment.data.check_batch(settings.batch_size)
        named = settings.student_network or settings.student_prediction
        if equal_steps(settings.phases) is not None and not named:
            raise ValueError(
                f"step_schedule is {list(settings.step_schedule)}: where steps stay equal another "
                "network takes over, choose student_network or student_prediction"
            )

    def _warnings(self, settings: Distillation) -> list[str]:
        """What can be started, and is perhaps not meant."""
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
        """Say what the widgets come to, or why that is impossible; then draw.

        What cannot be drawn stays as it was drawn last: nothing jumps.
        """
        if self._quiet:
            return
        self._remember()
        reason = self.reason
        self._offer_student()
        self.view.measure.disabled = bool(reason)
        if reason:
            self._say(f"Impossible: {reason}", "bad")
            self.view.clear()
            self.yaml.value = copyable(f"# impossible: {reason}")
        else:
            settings = self.settings
            warned = "".join(f". Warning: {warning}" for warning in self._warnings(settings))
            self._say(
                f"Possible: {settings.schedule}, {settings.num_steps:,} steps{warned}", "good"
            )
            self.view.count(settings)
            self.yaml.value = copyable(self.parameters)
        self._tell_run()
        with suppress(ValueError):
            schedule = self.boundaries.schedule
            self.boundaries.follow()
            levels, method = self.fields["noise_schedule"].value, self.fields["method"].value
            self.view.draw(schedule, levels, METHODS[method].self_taught)

    def _offer_student(self) -> None:
        """Show the fields of another network where one is needed, or chosen."""
        needed = any(self.fields[name].value for name in STUDENT)
        with suppress(ValueError):
            needed |= equal_steps(parse_schedule(self.boundaries.schedule)) is not None
        for name in STUDENT:
            self.fields[name].layout.display = "" if needed else "none"

    def _say(self, content: str, kind: str = "bad") -> None:
        self.status.value = text(content, kind)

    def _tick(self) -> bool:
        """Follow the run of these settings, from a timer, as long as the editor is shown."""
        self._tell_run()
        return self.box.comm is not None

    def _tell_run(self) -> None:
        """Say which run these settings are, and let Start do what is left of it."""
        if self.reason:
            self.start.disabled, self.start.description, self.summary.value = True, "Start", ""
            return
        settings = self.settings
        status = read_status(self.experiment.folder / run_name(settings))
        state, name = status.state, f"{settings.method} {settings.schedule}"
        self.start.disabled = status.active or state == FINISHED
        again = {STOPPED: "Resume", FAILED: "Resume", FINISHED: "Finished"}
        self.start.description = "Running" if status.active else again.get(state, "Start")
        said = f"{name}: {told(status)}" if state != "new" else f"{name}: a new run"
        if state == FINISHED:
            said += f"{self._distance(settings)}. Change a setting, such as seed, for another run"
        value = text(said)
        if self.summary.value != value:
            self.summary.value = value

    def _distance(self, settings: Distillation) -> str:
        try:
            table = read_results(self.experiment.folder / RESULTS)
        except ValueError:  # damaged: the browser says so
            return ""
        own = table[(table["run"] == run_name(settings)) & table["metric"].str.startswith("f")]
        own = own.sort_values("nfe")
        return f" with distance {own['value'].iloc[0]:.3g}" if len(own) else ""

    def _values(self) -> tuple:
        return self._base, self.schedule.value, *(x.value for x in self.fields.values())

    def _remember(self) -> None:
        """Keep what all fields say, for Undo, if it has changed."""
        if not self._past or self._past[-1] != self._values():
            self._past.append(self._values())

    def _undo(self, button=None) -> None:
        """Go back to what the fields said before the last change."""
        if len(self._past) > 1:
            self._past.pop()
            base, schedule, *values = self._past[-1]
            with self._quietly():
                self._base, self.schedule.value = base, schedule
                for widget, value in zip(self.fields.values(), values, strict=True):
                    widget.value = value
            self._update()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Set widgets without hearing of it."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _listen(self) -> None:
        for widget in (*self.fields.values(), self.schedule):
            widget.observe(self._update, "value")
        self.preset.observe(lambda change: self.load(self._presets[change.new]), "value")
        self.undo.on_click(self._undo)
        self.view.measure.on_click(lambda button: self.view.measure_time(self.settings))
        self.start.on_click(lambda button: self._act())

    def _laid_out(self) -> w.VBox:
        """All widgets, the message before the picture; nothing is wider than its place."""
        self.preset.layout.width, self.preset.layout.max_width = "460px", "98%"
        self.preset.style.description_width = "118px"
        style = w.HTML(STYLE, layout={"display": "none"})
        start = w.HBox([self.start, self.undo, self.summary], layout=WRAP)
        fields = w.HBox(list(self.fields.values()), layout=WRAP)
        parts = [style_sheet(), style, self.preset, self.boundaries, fields]
        parts += [self.status, start, self.view, self.yaml]
        box = w.VBox(parts, layout={"max_width": "1000px", "overflow": "hidden"})
        box.add_class("tract")
        return box
