"""Train runs in a process of their own, and watch them: curves, samples, Start, Stop, Resume.

The cell returns at once, and the panel is a view of run directories; other cells, notebooks and
kernels can show the same ones. Without a front end the same call trains in place under a text bar.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import ipywidgets as w

from tract.base.compute import device
from tract.denoiser import Denoiser
from tract.experiments.job import JOB, Task, launch, stand_by
from tract.experiments.status import FINISHED, NEW, RUNNING, read_status, request_stop
from tract.lab.live import WRAP, LiveBox, close, somebody_clicks
from tract.lab.plots import stacked
from tract.lab.show import text
from tract.lab.view import RunView
from tract.networks.weights import load_model
from tract.settings import Training


class NotFinished(RuntimeError):
    """A student was requested before its training finished; notebooks show it as one line."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Trainings:
    """The runs passed to `train`: their settings, and the trained denoisers once finished.

    editor: its settings replace those of the first task.
    """

    def __init__(self, tasks: Sequence[Task], editor=None):
        self._given, self._editor = list(tasks), editor

    @property
    def tasks(self) -> list[Task]:
        """The tasks, the first with the editor's settings; ValueError if these are impossible."""
        if self._editor is None:
            return self._given
        return [self._editor.task(self._given[0]), *self._given[1:]]

    @property
    def settings(self) -> list[Training]:
        return [task.settings for task in self.tasks]

    @property
    def unchanged(self) -> bool:
        """Whether the editor left the settings as they were given."""
        return self.settings == [task.settings for task in self._given]

    def runs(self) -> dict[Path, str]:
        """Labels of the runs by their directories."""
        return {task.folder: task.label for task in self.tasks}

    def start(self) -> None:
        """Launch one job that trains the unfinished runs in turn."""
        tasks = [task for task in self.tasks if read_status(task.folder).state != FINISHED]
        for task in tasks:
            task.check()
            task.write()
        launch([task.folder for task in tasks])

    def results(self) -> list[Denoiser]:
        """The averages of all runs; NotFinished, with what to do, unless all are finished."""
        for task in self.tasks:
            if read_status(task.folder).state != FINISHED:
                raise NotFinished(
                    f"{task.label} is not finished: press Start above, or wait; then run this "
                    "cell again"
                )
        return [load_model(folder, device())[0] for folder in self.runs()]


def train(tasks: Sequence[Task], editor=None) -> Trainings:
    """Show a panel with the buttons Start, Stop and Resume, and return at once.

    Without a front end all runs are trained here, one after the other, and a picture is shown at
    the end. editor: where the first task's settings are chosen. ValueError, with the remedy, for
    impossible settings.
    """
    trainings = Trainings(tasks, editor)
    live = somebody_clicks()
    for task in trainings.tasks:
        task.check() if live else task.train()
    panel = Panel(trainings.runs, trainings.start)
    if editor is not None:
        editor.on_start(panel.start_clicked)
    panel.show()
    return trainings


def watch(folder: str | Path) -> None:
    """Show the panel of any run directory, with Stop and Resume, whichever process trains it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run directory {folder}: correct the path")
    panel_of(folder).show()


def panel_of(folder: Path) -> "Panel":
    """The panel of a run directory, from which it can be resumed."""
    return Panel(lambda: {folder: folder.name}, lambda: launch([folder]))


class Panel(LiveBox):
    """Views of some run directories, one in front, with buttons for all.

    runs: labels by directory; they may change while none of them trains. start: launches the
    unfinished ones.
    """

    SECONDS = 0.5

    def __init__(self, runs: Callable[[], Mapping[Path, str]], start: Callable[[], None]):
        self._runs, self._start = runs, start
        self._front: int | None = None  # the run that trained at the last refresh
        self.start = w.Button(description="Start", button_style="success")
        self.stop = w.Button(description="Stop", tooltip="Save after this step, and end")
        self.start.on_click(self.start_clicked)
        self.stop.on_click(self._stop_clicked)
        self.message, self.views = w.HTML(), w.Tab()
        buttons = w.HBox([self.start, self.stop, self.message], layout=WRAP)
        super().__init__(tuple(runs()), [buttons, self.views])
        self.refresh()

    @property
    def ended(self) -> bool:
        return all(view.status.state == FINISHED for view in self.views.children)

    def picture(self) -> bytes:
        """The pictures of all runs below each other."""
        return stacked([view.picture() for view in self.views.children])

    def say(self, message: str, kind: str = "bad") -> None:
        self.message.value = text(message, kind)

    def tick(self) -> None:
        """Refresh, and keep a process ready while there is something to start."""
        self.refresh()
        if not self.start.disabled:
            stand_by()

    def refresh(self) -> None:
        """Show what is new in all runs, and which buttons apply."""
        with self.lock:
            with suppress(ValueError):  # the editor's settings are impossible
                self._take(self._runs())
            views = self.views.children
            for view in views:
                view.refresh()
            states = [view.status.state for view in views]
            front = states.index(RUNNING) if RUNNING in states else None
            if front not in (None, self._front):  # once, so that other tabs can be looked at
                self.views.selected_index = front
            self._front = front
            active = any(view.status.active for view in views)
            begun = any(state != NEW for state in states)
            resumable = all((view.folder / JOB).is_file() for view in views) or not begun
            if not active:
                self.stop.description = "Stop"
            self.stop.disabled = not active or self.stop.description == "Stopping"
            self.start.disabled = active or self.ended or not resumable
            ready = "Finished" if self.ended else "Resume" if begun else "Start"
            self.start.description = "Running" if active else ready

    def _take(self, runs: Mapping[Path, str]) -> None:
        """Switch to other runs, unless one of those shown is being trained."""
        views = self.views.children
        changed = [*runs] != [view.folder for view in views]
        if changed and not any(view.status.active for view in views):
            self.views.children = [RunView(folder) for folder in runs]
            self.views.titles = [*runs.values()]
            self.views.selected_index = 0
            for view in views:
                close(view)

    def start_clicked(self, button=None) -> None:
        """Launch the job, or say why that is impossible."""
        with self.lock:
            self.start.disabled, self.start.description, self.message.value = True, "Starting", ""
            try:
                self._start()
            except (ValueError, OSError, RuntimeError) as error:
                self.say(str(error))
            self.refresh()

    def _stop_clicked(self, button=None) -> None:
        """Ask the process to stop; it ends without starting the runs that wait."""
        self.stop.description, self.stop.disabled = "Stopping", True
        active = [view for view in self.views.children if view.status.active]
        active.sort(key=lambda view: view.status.state != RUNNING)
        for view in active[:1]:
            request_stop(view.folder)
