"""Samples of several runs from the same noise, made in a thread, with progress and Cancel."""

import threading
import time
from collections.abc import Callable, Sequence

import ipywidgets as w
from torch import Tensor

from tract.experiments.catalogue import FoundRun, labels_of, samples_at
from tract.lab.plots import image_rows, png
from tract.lab.show import image
from tract.phases import in_steps

COUNT = 12  # samples of a run
TELL_SECONDS = 0.2  # between two changes of the progress bar


class Cancelled(Exception):
    """The sampling was cancelled."""


class Sampler(w.VBox):
    """A slider for the number of steps, and a row of samples for each run.

    say: told in the end what could not be sampled, a line each.
    """

    def __init__(self, say: Callable[..., None]):
        self._say, self._runs = say, []
        self._cancelled = threading.Event()
        self.thread: threading.Thread | None = None
        self.nfe = w.SelectionSlider(options=[1], description="Steps", continuous_update=False)
        self.progress = w.FloatProgress(max=1.0, description="Sampling")
        self.cancel = w.Button(description="Cancel", disabled=True)
        self.images = w.HTML()
        self._observe = lambda change: self.begin()
        self.nfe.observe(self._observe, "value")
        self.cancel.on_click(lambda _: self._cancelled.set())
        bar = w.HBox([self.nfe, self.progress, self.cancel], layout={"flex_flow": "row wrap"})
        super().__init__([bar, self.images])

    def show(self, runs: Sequence[FoundRun]) -> None:
        """Offer the steps that divide all runs' grids, and sample at those chosen."""
        self._runs = list(runs)
        grids = [run.grid_steps for run in runs] or [1]
        steps = [n for n in range(1, min(grids) + 1) if not any(grid % n for grid in grids)]
        if tuple(steps) != self.nfe.options:
            nfe = self.nfe.value
            self.nfe.unobserve(self._observe, "value")
            self.nfe.options = steps
            self.nfe.value = nfe if nfe in steps else 1
            self.nfe.observe(self._observe, "value")
        self.begin()

    def begin(self) -> None:
        """Sample in a thread; one that still samples ends after its step."""
        self._cancelled.set()
        self._cancelled, self.cancel.disabled = threading.Event(), False
        given = self._runs, self.nfe.value, self._cancelled
        self.thread = threading.Thread(target=self._sample, args=given, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Cancel what is under way."""
        self._cancelled.set()

    def _sample(self, runs: list[FoundRun], nfe: int, cancelled: threading.Event) -> None:
        told = 0.0

        def progress(share: float) -> None:
            nonlocal told
            if cancelled.is_set():
                raise Cancelled
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                self.progress.value = (done + share) / len(runs)

        rows: dict[str, Tensor] = {}
        labels, problems = labels_of(runs), []
        for done, run in enumerate(runs):
            try:
                progress(0.0)
                x = samples_at(run, nfe, COUNT, progress)
                rows[f"{labels[run.name]}\n{in_steps(nfe)}"] = x
            except Cancelled:
                problems.append("Sampling was cancelled.")
                break
            except (OSError, ValueError, RuntimeError) as error:
                problems.append(f"{run.name}: {error}")
        if self._cancelled is not cancelled:  # others were chosen meanwhile
            return
        alt = f"Samples in {in_steps(nfe)}: {'; '.join(rows)}"
        self.images.value = image(png(image_rows(rows), dpi=110), alt) if rows else ""
        self.progress.value, self.cancel.disabled = float(not cancelled.is_set()), True
        self._say(*problems)
