"""Fields of the schedule editor: parsed text, with a remedy for text that does not parse."""

import html
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

import ipywidgets as w

from tract.base.yaml_files import read_yaml
from tract.denoiser import SCALINGS
from tract.jobs.parameters import line
from tract.jobs.plan import split
from tract.lab.live import WRAP, close
from tract.levels import NOISE_SCHEDULES
from tract.losses import WEIGHTS
from tract.methods import METHODS
from tract.networks.named import NETWORKS
from tract.phases import first_grid, halving_schedule, parse_schedule
from tract.samplers import SOLVERS

# Names are those of papermill's parameters.
CHOICES = {
    "method": (METHODS, "who makes the second hop"),
    "noise_schedule": (NOISE_SCHEDULES, "noise levels: cosine (VP) or karras (EDM's VE)"),
    "solver": (SOLVERS, "how the teacher steps: ddim, addim, or heun with two evaluations"),
    "loss_weight": (WEIGHTS, "weight of the loss at a noise level"),
    "student_network": (("", *NETWORKS), "network that takes over where steps stay equal"),
    "student_prediction": (("", *SCALINGS), "prediction that takes over where steps stay equal"),
}
NUMBERS = {
    "train_images": "images to train on, over all phases",
    "batch_size": "images per optimizer step",
    "learning_rate": "learning rate of Adam",
    "self_ema": "mu_S, decay of the self-teacher",
    "ema_residual": "share of a phase's initial weights left in its result, an average",
    "seed": "seed of batches and noise",
}
WHOLE = ("train_images", "batch_size", "seed")
STUDENT = ("student_network", "student_prediction")  # shown where steps stay equal


def make_fields() -> dict[str, w.Widget]:
    """A widget for each setting, by name."""
    made = {n: w.Dropdown(options=list(o), tooltip=h) for n, (o, h) in CHOICES.items()}
    made |= {n: w.Text(continuous_update=False, tooltip=h) for n, h in NUMBERS.items()}
    return {name: labelled(widget, name, "240px") for name, widget in made.items()}


def labelled(widget: w.Widget, name: str, width: str) -> w.Widget:
    """A widget with its name before it."""
    widget.description, widget.style.description_width = name, "118px"
    widget.layout.width = width
    return widget


def number_of(name: str, text: str) -> int | float:
    """A number as typed, such as 2e4; ValueError for other text."""
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}: use a number, such as 0.001 or 2e4") from error
    return int(value) if name in WHOLE and value.is_integer() else value


def schedule_of(text: str) -> list:
    """Parse a schedule: 1024>32>1, 1024,32,1 or a list; 4<8<16>1 with growing grids."""
    grown = re.sub(r"\d+(\s*<\s*\d+)+", lambda found: f"[{found[0].replace('<', ',')}]", text)
    listed = grown.replace(">", ",")
    schedule = read_yaml(
        listed if text.lstrip().startswith("[") else f"[{listed}]", "step_schedule"
    )
    entries = schedule if isinstance(schedule, list) else []
    if not entries or not all(isinstance(entry, int | list) for entry in entries):
        raise ValueError(f"step_schedule is {text!r}: use steps such as 1024>32>1 or [1024, 32, 1]")
    return entries


def copyable(text: str) -> str:
    """Text that cannot be changed, as HTML, with a button that copies it."""
    copy = "navigator.clipboard.writeText(this.parentElement.querySelector('pre').innerText)"
    button = f'<button class="jupyter-button" onclick="{copy}">Copy</button>'
    return f'<div>{button}<pre tabindex="0">{html.escape(text)}</pre></div>'


class ScheduleFields(w.VBox):
    """A schedule as text, and as boundaries of phases that are dragged, added and removed.

    say: told why something cannot be done.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say, self._quiet = say, False
        self.text = labelled(w.Text(continuous_update=False), "step_schedule", "460px")
        names = ("Add phase", "Halving")
        self.add, self.halve = (w.Button(description=n, layout={"width": "90px"}) for n in names)
        self.add.on_click(self._add_phase)
        self.halve.on_click(self._halve)
        self.entries = w.VBox()
        super().__init__([w.HBox([self.text, self.add, self.halve], layout=WRAP), self.entries])

    @property
    def schedule(self) -> list:
        """The schedule in the text; ValueError if it is not one."""
        return schedule_of(self.text.value)

    def follow(self) -> None:
        """Show the boundaries of the schedule; existing sliders stay, and keep the focus."""
        schedule = self.schedule
        phases = parse_schedule(schedule) if len(schedule) > 1 else []
        self.add.disabled = bool(phases) and split(phases) is None
        rows, count = list(self.entries.children), len(schedule) - 1
        for row in rows[count:]:
            close(row)
        rows = rows[:count] + [self._entry(index + 1) for index in range(len(rows), count)]
        self._quiet = True
        for index, row in enumerate(rows, 1):
            row.children[0].options = _fitting(schedule, index)
            row.children[0].value = schedule[index]
        self._quiet = False
        self.entries.children = rows

    def _entry(self, index: int) -> w.HBox:
        slider = w.SelectionSlider(options=[1], continuous_update=False)
        slider.observe(lambda change: self._move(index, [change.new]), "value")
        remove = w.Button(description="Remove", tooltip=f"Remove phase {index}")
        remove.layout.width = "80px"
        remove.on_click(lambda button: self._move(index, []))
        return w.HBox([labelled(slider, f"Phase {index} ends at", "420px"), remove], layout=WRAP)

    def _move(self, index: int, entry: list[int]) -> None:
        """Replace an entry of the schedule by others."""
        if not self._quiet:
            schedule = self.schedule
            self.text.value = line([*schedule[:index], *entry, *schedule[index + 1 :]])

    def _add_phase(self, button) -> None:
        """Split the phase with the longest groups in two; a lone grid gets one phase to 1 step."""
        with suppress(ValueError):
            schedule = self.schedule
            index, steps = split(parse_schedule(schedule)) if len(schedule) > 1 else (0, 1)
            self.text.value = line([*schedule[: index + 1], steps, *schedule[index + 1 :]])

    def _halve(self, button) -> None:
        """Take BTD's schedule from the teacher's grid to the last entry."""
        try:
            schedule = self.schedule
            self.text.value = line(halving_schedule(first_grid(schedule), schedule[-1]))
        except (ValueError, TypeError, IndexError) as error:
            self._say(str(error))


def _fitting(schedule: Sequence, index: int) -> list[int]:
    """Values of the entry at an index with which its groups still line up."""
    before = first_grid(schedule[index - 1 :])
    after = schedule[index + 1] if index + 1 < len(schedule) else 1
    last = index + 1 == len(schedule)
    fitting = [n for n in range(after + (not last), before) if before % n == 0 == n % after]
    return sorted({*fitting, schedule[index]}, reverse=True)
