"""Picture and cost of a schedule, beside those of another one, and the cost of a sweep."""

import html
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import ipywidgets as w

from tract.base.compute import device
from tract.experiments.experiment import Experiment
from tract.jobs.cost import estimate
from tract.jobs.plan import duration, phase_plan
from tract.lab.fields import labelled
from tract.lab.live import WRAP
from tract.lab.plots import png
from tract.lab.schedule import schedule_picture
from tract.lab.show import image, text
from tract.levels import levels_of
from tract.phases import first_grid, format_schedule, parse_schedule
from tract.settings import Distillation

PANELS = 4  # drawn at most: of more phases the first two and the last two
CPU_FLOP_RATE = 1e11  # assumed until it is measured, to warn of days


def settings_of(parameters: Mapping[str, object], recipe: Distillation) -> Distillation:
    """Settings from a notebook's parameters; a recipe has the missing ones."""
    known = {field.name for field in fields(Distillation)} & parameters.keys()
    given = {name: parameters[name] for name in known}
    if isinstance(given.get("solver"), list):  # notebook 04 trains with each in turn
        given["solver"] = given["solver"][0]
    return replace(recipe, step_schedule=parameters["step_schedules"][0], **given)


class PlanView(w.VBox):
    """Picture and plan of settings. presets: parameters by name to compare them with."""

    def __init__(
        self,
        experiment: Experiment,
        network: dict,
        recipe: Distillation,
        presets: Mapping[str, dict],
        changed: Callable[[], None],
    ):
        self.experiment, self._network = experiment, network
        self._recipe, self._presets = recipe, presets
        self._flop_rates: dict[int, float] = {}  # measured ones by batch size
        self.png = b""
        self.picture, self.numbers, self.sweep = w.HTML(), w.HTML(), w.HTML()
        self.other = labelled(w.Dropdown(options=["nothing", *presets]), "Compare with", "360px")
        self.seeds = labelled(w.Text(placeholder="0, 1, 2"), "Sweep seeds", "360px")
        self.measure = w.Button(description="Measure time")
        for widget in (self.other, self.seeds):
            widget.observe(lambda _: changed(), "value")
        self._changed = changed
        bar = w.HBox([self.measure, self.other, self.seeds], layout=WRAP)
        super().__init__([bar, self.numbers, self.sweep, self.picture])

    def measure_time(self, settings: Distillation) -> None:
        """Time a few steps; from then on the table shows times at this batch size."""
        self.measure.description, self.measure.disabled = "Measuring ...", True
        try:
            how = self.experiment.noise_schedule, self.experiment.compute
            found = estimate(self._network, settings, *how)
            self._flop_rates[settings.batch_size] = found["flop"] / found["seconds"]
        finally:
            self.measure.description, self.measure.disabled = "Measure time", False
        self._changed()

    def days(self, settings: Distillation) -> str:
        """How long the settings take if that is more than a day, else empty."""
        rate = self._flop_rates.get(settings.batch_size)
        if rate is None and device() == "cpu":
            rate = CPU_FLOP_RATE
        seconds = 1e9 * phase_plan(self._network, settings).GFLOP.iloc[-1] / rate if rate else 0
        return duration(seconds) if seconds > 86400 else ""

    def clear(self) -> None:
        """Remove the numbers, for impossible settings."""
        self.numbers.value = self.sweep.value = ""

    def draw(self, schedule: list, noise_schedule: str, self_taught: bool) -> None:
        """Draw a schedule; ValueError for an impossible one, and the last picture stays."""
        phases = parse_schedule(schedule)
        parts = [part for phase in phases for part in phase.parts]
        omitted = len(parts) - PANELS
        if omitted > 0:
            parts = parts[: PANELS // 2] + parts[-PANELS // 2 :]
        levels = levels_of(noise_schedule, first_grid(schedule))
        self.png = png(schedule_picture(parts, levels, self_taught))
        total = omitted + PANELS
        left_out = f"<div>{omitted} of {total} phases, in the middle, are omitted.</div>"
        alt = f"Groups and hops of the phases {format_schedule(schedule)}"
        self.picture.value = (left_out if omitted > 0 else "") + image(self.png, alt)

    def count(self, settings: Distillation) -> None:
        """Show the plan of the settings, and of those that they are compared with."""
        both = [settings]
        if self.other.value != "nothing":
            both.append(settings_of(self._presets[self.other.value], self._recipe))
        tables = [phase_plan(self._network, s, self._flop_rates.get(s.batch_size)) for s in both]
        self._count_sweep(tables, self._flop_rates.get(settings.batch_size))
        whole = dict.fromkeys(("images", "steps", "evaluations", "GFLOP"), "{:,.0f}".format)
        how = {"index": False, "border": 0, "na_rep": "", "formatters": whole}
        how["formatters"] |= {"mu_I": "{:.4f}".format}
        shown = [
            f"<div><b>{html.escape(s.schedule)}</b>{t.to_html(classes='tract-plan', **how)}</div>"
            for s, t in zip(both, tables, strict=True)
        ]
        self.numbers.value = f'<div class="tract-row">{"".join(shown)}</div>'

    def _count_sweep(self, tables: list, rate: float | None) -> None:
        """Say what a sweep of the shown schedules over the seeds would cost."""
        given = self.seeds.value
        if not re.fullmatch(r"[\d\s,]*", given):
            self.sweep.value = text(
                f"seeds are {given!r}: use whole numbers, such as 0, 1, 2", "bad"
            )
            return
        seeds = re.findall(r"\d+", given)
        gflop = len(seeds) * sum(table.GFLOP.iloc[-1] for table in tables)
        time = f", {duration(1e9 * gflop / rate)}" if rate else ", time unknown: press Measure time"
        runs = f"{len(seeds)} seeds of {len(tables)} schedules, {gflop:,.0f} GFLOP{time}"
        self.sweep.value = text(runs) if seeds else ""
