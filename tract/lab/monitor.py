"""Train runs as jobs of their own, and watch them: curves, samples, Start, Stop and Resume.

The cell returns at once, and the panel is a view of run directories that another cell, notebook or
kernel can have as well. Where nobody can click, the same call trains in place under a text bar.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import ipywidgets as w

from tract.base.compute import device
from tract.denoiser import Denoiser
from tract.experiments.job import JOB, Task, launch
from tract.experiments.status import FINISHED, NEW, RUNNING, read_status, request_stop
from tract.lab.live import poll, replace_earlier, somebody_clicks
from tract.lab.plots import stacked
from tract.lab.show import show, show_picture, style_sheet, text
from tract.lab.view import RunView
from tract.networks.weights import load_model
from tract.settings import Training

POLL_SECONDS = 0.5


class NotFinished(RuntimeError):
    """A student was asked for that is still to be trained; shown as one line in a notebook."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Trainings:
    """The runs that `train` was given: their settings, and the trained denoisers once finished.

    editor: its Start is this panel's, and its settings take the first task's place.
    """

    def __init__(self, tasks: Sequence[Task], editor=None):
        self._given, self._editor = list(tasks), editor

    @property
    def tasks(self) -> list[Task]:
        """The tasks, the first as the editor says; ValueError where that is impossible."""
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

    def folders(self) -> list[Path]:
        return [task.folder for task in self.tasks]

    def start(self) -> None:
        """Launch what is not finished, as one job that trains in turn."""
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
        return [load_model(folder, device())[0] for folder in self.folders()]


def train(tasks: Sequence[Task], editor=None) -> Trainings:
    """Show a panel with the buttons Start, Stop and Resume, and return at once.

    Where nobody can click all is trained here, one after the other, and a picture shown in the
    end. editor: where the first task's settings are chosen. ValueError, with the remedy, for what
    cannot be trained.
    """
    trainings = Trainings(tasks, editor)
    live = somebody_clicks()
    for task in trainings.tasks:
        task.check() if live else task.train()
    panel = Panel(trainings.folders, trainings.start)
    if editor is not None:
        editor.on_start(panel.start_clicked)
    panel.show(live)
    return trainings


def watch(folder: str | Path) -> None:
    """Show the panel of any run directory, with Stop and Resume; whoever trains it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run directory {folder}: correct the path")
    Panel(lambda: [folder], lambda: launch([folder])).show(somebody_clicks())


class Panel(w.VBox):
    """Views of some run directories, of which one is shown, with buttons for all.

    folders: they may change as long as nothing is trained. start: launches what is not finished.
    """

    def __init__(self, folders: Callable[[], Sequence[Path]], start: Callable[[], None]):
        self._folders, self._start = folders, start
        self._handle = self._timer = None
        self._followed = True  # the run under way is shown, until another one is chosen
        self.start = w.Button(description="Start", button_style="success")
        self.stop = w.Button(description="Stop", tooltip="Save after this step, and end")
        self.start.on_click(self.start_clicked)
        self.stop.on_click(self._stop_clicked)
        self.choice = w.Dropdown(description="Run", layout={"max_width": "98%"})
        self.choice.observe(self._choose, "value")
        self.said, self.problem = w.HTML(), w.HTML()
        self.view: RunView | None = None
        buttons = w.HBox(
            [self.start, self.stop, self.said, self.problem], layout={"flex_flow": "row wrap"}
        )
        super().__init__([style_sheet(), buttons, self.choice])
        self.layout.max_width, self.layout.overflow = "100%", "hidden"
        self.add_class("tract")
        self._take(list(folders()))
        self.refresh()

    def show(self, live: bool) -> None:
        """Display the panel while there is something to watch or to start, else its picture."""
        if not live or self.finished:
            show_picture(self, self.picture(), None)
            return
        replace_earlier(("panel", *map(str, self._shown)), self)
        self._handle = show(self, self.picture())
        self._timer = poll(self._tick, POLL_SECONDS)

    @property
    def finished(self) -> bool:
        return all(read_status(folder).state == FINISHED for folder in self._shown)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.set()
        super().close()

    def picture(self) -> bytes:
        """All runs' pictures below each other."""
        return stacked([view.picture() for view in self._views()])

    def refresh(self) -> None:
        """Show what is new in the run that is shown, and what can be clicked."""
        statuses = [read_status(folder) for folder in self._shown]
        active = [i for i, status in enumerate(statuses) if status.active]
        begun = any(status.state != NEW for status in statuses)
        if active and self._followed:
            self._point(min(active, key=lambda i: statuses[i].state != RUNNING))
        self.view.refresh()
        done = sum(status.state == FINISHED for status in statuses)
        resumable = all((f / JOB).is_file() for f in self._shown) or not begun
        self.stop.disabled = not active or self.stop.description == "Stopping"
        if not active:
            self.stop.description = "Stop"
        self.start.disabled = bool(active) or done == len(statuses) or not resumable
        ready = "Finished" if done == len(statuses) else "Resume" if begun else "Start"
        self.start.description = "Running" if active else ready
        if len(statuses) > 1:
            self.said.value = f"{done} of {len(statuses)} runs finished"

    def _tick(self) -> bool:
        """Refresh, from the timer; the last time when all is finished, in a picture that stays."""
        try:
            self._follow_editor()
            self.refresh()
            if self.finished:
                show_picture(self, self.picture(), self._handle)
        except (OSError, ValueError, KeyError) as error:  # of a file that somebody damaged
            self.problem.value = text(f"cannot be read: {error}", "bad")
        return not self.finished

    def _follow_editor(self) -> None:
        with suppress(ValueError):  # of an editor with something impossible
            folders = list(self._folders())
            if folders != self._shown and not any(read_status(f).active for f in self._shown):
                self._take(folders)

    def _take(self, folders: list[Path]) -> None:
        """Show other folders from here on."""
        self._shown, self._kept = folders, {}
        self.choice.layout.display = "" if len(folders) > 1 else "none"
        self.choice.options = [(folder.name, index) for index, folder in enumerate(folders)]
        self._point(0)

    def _views(self) -> list[RunView]:
        return [self._view(folder) for folder in self._shown]

    def _view(self, folder: Path) -> RunView:
        if folder not in self._kept:
            self._kept[folder] = RunView(folder)
        return self._kept[folder]

    def _point(self, index: int) -> None:
        """Show one of the runs."""
        self.view = self._view(self._shown[index])
        if self.view not in self.children:
            self.children = [*self.children[:3], self.view]
        self.choice.unobserve(self._choose, "value")
        self.choice.value = index
        self.choice.observe(self._choose, "value")

    def _choose(self, change) -> None:
        self._followed = False
        self._point(change.new)

    def start_clicked(self, button=None) -> None:
        """Launch the job; say why that is not possible."""
        self._followed, self.start.disabled, self.problem.value = True, True, ""
        try:
            self._take(list(self._folders()))
            self._start()
        except (ValueError, OSError, RuntimeError) as error:
            self.problem.value = text(str(error), "bad")
        self.refresh()

    def _stop_clicked(self, button=None) -> None:
        self.stop.description, self.stop.disabled = "Stopping", True
        active = [folder for folder in self._shown if read_status(folder).active]
        if active:
            request_stop(min(active, key=lambda folder: read_status(folder).state != RUNNING))
