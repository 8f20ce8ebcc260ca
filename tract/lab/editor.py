"""The schedule editor: settings of a distillation as widgets, with picture and cost."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path

import ipywidgets as w

from tract.base.yaml_files import read_yaml
from tract.distill import check_solver
from tract.experiments.experiment import TEACHER, Experiment
from tract.experiments.job import Task
from tract.jobs.cost import estimate
from tract.jobs.parameters import line, parameters_of, presets_in, yaml_of
from tract.jobs.plan import phase_plan, split
from tract.lab.plots import png
from tract.lab.schedule import schedule_picture
from tract.lab.show import show
from tract.levels import NOISE_SCHEDULES, levels_of
from tract.losses import WEIGHTS
from tract.methods import METHODS
from tract.networks.weights import load_model
from tract.phases import first_grid, halving_schedule, parse_schedule
from tract.samplers import SOLVERS
from tract.settings import Distillation

PANELS = 4  # that are drawn at most: of more phases the first two and the last two
RED, GREEN = "#b00020", "#00694c"


class Editor:
    """Widgets for all settings of a distillation of an experiment's teacher.

    recipes: what the editor can be set to, the first to begin with; so can the files of parameters
    in the folder presets. Buttons: Add phase, Remove (a phase), Halving, Measure time, Start.
    FileNotFoundError where the experiment has no teacher yet.
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
        self._flop_rates: dict[int, float] = {}  # by batch, as far as they were measured
        self._act: Callable[[], None] = lambda: self._say("run the next cell first", bad=True)
        self._quiet = False  # while several widgets are set at once
        self._presets = {f"this notebook, {r.schedule}": parameters_of(r) for r in recipes}
        self._presets |= presets_in(Path(presets))
        self.fields = _fields()
        self.preset = w.Dropdown(options=list(self._presets), description="Load preset")
        self.schedule = w.Text(description="step_schedule", continuous_update=False)
        self.add, self.halve = w.Button(description="Add phase"), w.Button(description="Halving")
        self.measure = w.Button(description="Measure time")
        self.start = w.Button(description="Start", button_style="success")
        self.entries = w.HBox()
        self.status, self.numbers, self.picture = w.HTML(), w.HTML(), w.Image(format="png")
        self.yaml = w.Textarea(disabled=False)
        self.box = self._laid_out()
        self._listen()
        self.load(self._presets[self.preset.value])

    @property
    def settings(self) -> Distillation:
        """What the widgets say; ValueError, with the reason, where that is impossible."""
        values = {name: x.value for name, x in self.fields.items() if name != "noise_schedule"}
        return replace(self._base, step_schedule=self._schedule(), **values)

    @property
    def reason(self) -> str:
        """Why these settings cannot be started; empty if they can."""
        try:
            self._check(self.settings)
        except ValueError as error:
            return str(error)
        return ""

    def load(self, parameters: Mapping[str, object]) -> None:
        """Set the widgets to a notebook's parameters, with those of the first recipe for others."""
        schedule = parameters["step_schedules"][0]
        known = {field.name for field in fields(Distillation)} & parameters.keys()
        given = {name: parameters[name] for name in known}
        self._base = replace(self._recipe, step_schedule=schedule, **given)
        with self._quietly():
            for name, widget in self.fields.items():
                if name != "noise_schedule":
                    widget.value = getattr(self._base, name)
            self.fields["noise_schedule"].value = parameters.get(
                "noise_schedule", self.experiment.noise_schedule
            )
            self.schedule.value = line(schedule)
        self._update()

    def show(self) -> None:
        """Display the editor; where it cannot live, the picture of its schedule."""
        show(self.box, bytes(self.picture.value))

    def task(self, task: Task) -> Task:
        """The task with the settings that the widgets say; ValueError for impossible ones."""
        settings = self.settings
        self._check(settings)
        return replace(task, settings=settings)

    def on_start(self, act: Callable[[], None]) -> None:
        """Call a function when Start is clicked, in place of an earlier one."""
        self._act = act

    def _schedule(self) -> list:
        schedule = read_yaml(self.schedule.value, "step_schedule")
        if not isinstance(schedule, list):
            raise ValueError(
                f"step_schedule is {self.schedule.value!r}: use a list of steps, such as [1024, 1]"
            )
        return schedule

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

    def _update(self, change=None) -> None:
        """Draw and count what the widgets say, and say why where it is impossible.

        What cannot be drawn stays as it was drawn last: nothing jumps.
        """
        if self._quiet:
            return
        reason = self.reason
        with suppress(ValueError):
            self._show_entries()
            self._draw()
        self.numbers.value, self.yaml.value = "", f"# impossible: {reason}"
        with suppress(ValueError):
            settings = self.settings
            self.numbers.value = self._counted(settings)
            noise_schedule = {"noise_schedule": self.fields["noise_schedule"].value}
            noise_schedule = (
                {}
                if noise_schedule["noise_schedule"] == self.experiment.noise_schedule
                else noise_schedule
            )
            self.yaml.value = yaml_of(parameters_of(settings) | noise_schedule)
        self.start.disabled = self.measure.disabled = bool(reason)
        self._say(reason or f"{settings.schedule}: {settings.num_steps:,} steps", bad=bool(reason))

    def _say(self, text: str, bad: bool = False) -> None:
        colour, word = (RED, "Impossible: ") if bad else (GREEN, "Possible: ")
        self.status.value = f'<b style="color: {colour}">{word}{html.escape(text)}</b>'
        self.schedule.layout.border = f"2px solid {colour}"

    def _draw(self) -> None:
        schedule = self._schedule()
        phases = parse_schedule(schedule)
        self.add.disabled = split(phases) is None
        parts = [part for phase in phases for part in phase.parts]
        if len(parts) > PANELS:
            parts = parts[: PANELS // 2] + parts[-PANELS // 2 :]
        levels = levels_of(self.fields["noise_schedule"].value, first_grid(schedule))
        self_taught = METHODS[self.fields["method"].value].self_taught
        self.picture.value = png(schedule_picture(parts, levels, self_taught))

    def _counted(self, settings: Distillation) -> str:
        """The table of what the settings come to, as HTML."""
        table = phase_plan(self._network, settings, self._flop_rates.get(settings.batch_size))
        whole = dict.fromkeys(("images", "steps", "evaluations", "GFLOP"), "{:,.0f}".format)
        formats = whole | {"mu_I": "{:.4f}".format}
        shown = table.to_html(index=False, border=0, na_rep="", formatters=formats, classes="plan")
        return "<style>.plan td, .plan th {padding: 0 8px; text-align: right}</style>" + shown

    def _show_entries(self) -> None:
        """One field for each entry of the schedule; those that are there stay, and keep focus."""
        schedule = self._schedule()
        rows = list(self.entries.children[: len(schedule)])
        while len(rows) < len(schedule):
            rows.append(self._entry(first=not rows))
        with self._quietly():
            for row, entry in zip(rows, schedule, strict=True):
                row.children[1].value = line(entry)
        self.entries.children = rows

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Set widgets without hearing of it."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _entry(self, first: bool) -> w.HBox:
        """Field and button of one entry; the first is the teacher's grid, and has no button."""
        text = w.Text(continuous_update=False, layout={"width": "110px"})
        text.observe(self._take_entries, "value")
        remove = w.Button(description="Remove", tooltip="Remove this phase")
        remove.layout.width = "76px"
        remove.on_click(lambda button: setattr(text, "value", ""))
        return w.HBox([w.Label("teacher's grid"), text] if first else [w.Label(">"), text, remove])

    def _take_entries(self, change=None) -> None:
        """Make the schedule of its entries' fields; an empty one goes."""
        if not self._quiet:
            texts = [row.children[1].value for row in self.entries.children]
            self.schedule.value = f"[{', '.join(filter(None, texts))}]"

    def _add_phase(self, button=None) -> None:
        """Split the phase with the longest groups in two."""
        schedule = self._schedule()
        index, steps = split(parse_schedule(schedule))
        self.schedule.value = line([*schedule[: index + 1], steps, *schedule[index + 1 :]])

    def _halve(self, button=None) -> None:
        """Take BTD's schedule from the teacher's grid to the last entry."""
        try:
            schedule = self._schedule()
            self.schedule.value = line(halving_schedule(first_grid(schedule), schedule[-1]))
        except (ValueError, TypeError, IndexError) as error:
            self._say(str(error), bad=True)

    def _measure_time(self, button=None) -> None:
        """Time a few steps; from then on the table tells times, at this batch."""
        settings = self.settings
        self.measure.description, self.measure.disabled = "Measuring ...", True
        try:
            how = self.experiment.noise_schedule, self.experiment.compute
            found = estimate(self._network, settings, *how)
            self._flop_rates[settings.batch_size] = found.flop / found.seconds
        finally:
            self.measure.description, self.measure.disabled = "Measure time", False
        self._update()

    def _listen(self) -> None:
        for widget in (*self.fields.values(), self.schedule):
            widget.observe(self._update, "value")
        self.preset.observe(lambda change: self.load(self._presets[change.new]), "value")
        self.add.on_click(self._add_phase)
        self.halve.on_click(self._halve)
        self.measure.on_click(self._measure_time)
        self.start.on_click(lambda button: self._act())

    def _laid_out(self) -> w.VBox:
        """All widgets; what changes while one edits has a fixed height, and nothing jumps."""
        self.preset.layout.width = self.schedule.layout.width = "460px"
        self.preset.style.description_width = self.schedule.style.description_width = "110px"
        self.status.layout = w.Layout(height="44px", width="100%")
        self.numbers.layout = w.Layout(height="230px", width="60%", overflow="auto")
        self.yaml.layout = w.Layout(height="230px", width="40%")
        self.picture.layout = w.Layout(width="100%", max_width="900px", object_fit="contain")
        scrolled = w.Box([self.picture], layout={"height": "480px", "overflow": "auto"})
        wrapped = {"flex_flow": "row wrap", "width": "100%"}
        self.entries.layout = w.Layout(min_height="36px", **wrapped)
        return w.VBox(
            [
                self.preset,
                w.HBox([self.schedule, self.add, self.halve], layout=wrapped),
                self.entries,
                w.HBox(list(self.fields.values()), layout=wrapped),
                w.HBox([self.start, self.measure]),
                self.status,
                scrolled,
                w.HBox([self.numbers, self.yaml]),
            ],
            layout={"max_width": "1000px"},
        )


def _fields() -> dict[str, w.Widget]:
    """A widget for each setting, by name; labels are the names of papermill's parameters."""
    choices = {
        "method": (METHODS, "who makes the second hop"),
        "noise_schedule": (NOISE_SCHEDULES, "noise levels: cosine is VP, karras EDM's VE"),
        "solver": (SOLVERS, "the teacher's hop: ddim, or heun with two evaluations"),
        "loss_weight": (WEIGHTS, "of the loss, by noise level"),
    }
    numbers = {
        "train_images": (w.IntText, "to train on, over all phases"),
        "batch_size": (w.IntText, "images per optimizer step"),
        "learning_rate": (w.FloatText, "of Adam"),
        "self_ema": (w.FloatText, "mu_S, the decay of the self-teacher"),
        "ema_residual": (w.FloatText, "share of a phase's start left in its result, the average"),
        "seed": (w.IntText, "of batches and noise"),
    }
    made = {n: w.Dropdown(options=list(o), tooltip=h) for n, (o, h) in choices.items()}
    made |= {n: kind(tooltip=h) for n, (kind, h) in numbers.items()}
    for name, widget in made.items():
        widget.description, widget.layout.width = name, "240px"
        widget.style.description_width = "100px"
    return made
