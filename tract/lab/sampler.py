"""Sample several runs from the same noise in a thread, with progress and Cancel."""

import threading
import time
from collections.abc import Callable, Sequence

import ipywidgets as w
from torch import Tensor

from tract.experiments.catalogue import FoundRun, labels_of, samples_at
from tract.lab.live import WRAP
from tract.lab.show import sample_rows
from tract.phases import in_steps

COUNT = 12  # samples of a run
TELL_SECONDS = 0.2  # between two changes of the progress bar


class Cancelled(Exception):
    """The sampling was cancelled."""


class Sampler(w.VBox):
    """A slider for the number of steps, and a row of samples for each run.

    say: called at the end with a line for each run that could not be sampled.
    """

    def __init__(self, say: Callable[..., None]):
        self._say, self._runs = say, []
        self._cancelled = threading.Event()
        self.thread: threading.Thread | None = None
        self.nfe = w.SelectionSlider(options=[1], description="Steps", continuous_update=False)
        self.progress = w.FloatProgress(max=1.0, description="Sampling", layout={"width": "220px"})
        self.cancel = w.Button(description="Cancel", disabled=True)
        self.images = w.HTML()
        self.nfe.observe(self._begin, "value")
        self.cancel.on_click(lambda _: self.end())
        bar = w.HBox([self.nfe, self.progress, self.cancel], layout=WRAP)
        super().__init__([bar, self.images])

    def show(self, runs: Sequence[FoundRun]) -> None:
        """Offer numbers of steps that divide all runs' grids, and sample with the chosen one."""
        self._runs = list(runs)
        grids = [run.grid_steps for run in runs] or [1]
        steps = [n for n in range(1, min(grids) + 1) if not any(grid % n for grid in grids)]
        nfe = self.nfe.value if self.nfe.value in steps else 1
        self.nfe.unobserve(self._begin, "value")
        self.nfe.options, self.nfe.value = steps, nfe
        self.nfe.observe(self._begin, "value")
        self._begin()

    def end(self) -> None:
        """Cancel the sampling, which ends after its current step."""
        self._cancelled.set()

    def _begin(self, change=None) -> None:
        """Sample in a thread."""
        self.end()
        self._cancelled, self.cancel.disabled = threading.Event(), False
        given = self._runs, self.nfe.value, self._cancelled
        self.thread = threading.Thread(target=self._sample, args=given, daemon=True)
        self.thread.start()

    def _sample(self, runs: list[FoundRun], nfe: int, cancelled: threading.Event) -> None:
        told = 0.0

        def progress(share: float) -> None:
            nonlocal told
            if cancelled.is_set():
                raise Cancelled("sampling was cancelled")
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                self.progress.value = (len(rows) + share) / len(runs)

        rows: dict[str, Tensor] = {}
        labels, problems = labels_of(runs), []
        for run in runs:
            try:
                progress(0.0)
                x = samples_at(run, nfe, COUNT, progress)
                rows[f"{labels[run.name]}, {in_steps(nfe)}"] = x
            except (OSError, ValueError, RuntimeError, Cancelled) as error:
                problems.append(f"{run.name}: {error}")
        if self._cancelled is not cancelled:  # superseded by a newer request
            return
        self.images.value = sample_rows(rows, "From the same noise") if rows else ""
        self.progress.value, self.cancel.disabled = float(not cancelled.is_set()), True
        self._say(*problems)
