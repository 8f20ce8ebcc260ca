"""Run directories: train with history and checkpoints, resume, and keep the best average."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from tract.base.checks import check_positive, check_whole
from tract.base.compute import peak_memory, use_threads
from tract.base.files import TEMPORARY, check_new, new_folder, only_writer
from tract.base.interrupts import Stop, interrupt_between_steps
from tract.base.parallel import any_rank, check_same
from tract.base.progress import progress
from tract.denoiser import Denoiser
from tract.distill import DistillationState
from tract.experiments.card import claim, recorded_threads
from tract.experiments.checkpoints import card_in, checkpoints, remove, resume, write_checkpoint
from tract.experiments.history import METRIC, History, append, trim
from tract.experiments.status import Reporter
from tract.networks.weights import fingerprint, load_model, save_model
from tract.optimize import StudentOutOfMemory, check_finite
from tract.records import Record
from tract.settings import Training
from tract.train import TeacherState


@contextmanager
def named_failures(folder: Path, settings: Training) -> Iterator[None]:
    """Add the remedy to errors of memory, disk or numerics; earlier checkpoints are intact."""
    intact = f"run {folder.name} can resume from its last checkpoint"
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error}; {intact} with other settings: `tract branch` {folder} and a new name"
        ) from error
    except StudentOutOfMemory as error:
        raise RuntimeError(f"{error}; {intact}") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RuntimeError(
            f"out of memory with batch {settings.batch_size}: use a smaller batch; {intact}"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        if not folder.is_dir():
            raise FileNotFoundError(
                f"the folder {folder} of the run vanished: restore it, and run it again from its "
                "last checkpoint"
            ) from error
        raise OSError(error.errno, f"{reason}; {intact} once there is space") from error


def average_file(residual: float) -> str:
    """Return the name of the file of a finished run's further inference average."""
    return f"average-{residual:g}.safetensors"


@dataclass(frozen=True)
class Checkpointing:
    """When a run saves its state, besides the end of a phase and when it is stopped."""

    minutes: float = 1.0  # between checkpoints
    steps: int = 0  # between further checkpoints; 0 for none
    keep: int = 2  # newest checkpoints
    metric: Callable[[Denoiser], float] | None = None  # of the average; the lowest is kept
    metric_every: int = 0  # between measurements; 0 for none

    def __post_init__(self):
        check_positive("minutes", self.minutes)
        check_whole("keep", self.keep, 1)
        check_whole("steps", self.steps, 0)
        check_whole("metric_every", self.metric_every, 0)
        if callable(self.metric) != (self.metric_every > 0):
            raise ValueError(
                f"metric is {self.metric!r} and metric_every {self.metric_every}: give both, a "
                "function of a denoiser and the steps between calls, or neither"
            )


@dataclass
class Run:
    """A training run in its folder; iterating over it makes its steps.

    records: the generator over this state. A finished run yields none, an unfinished one is
    resumed, and different settings are refused by name. Ctrl-C, the notebook's stop button,
    SIGTERM and stop.requested = True end it after a step: it is saved, and KeyboardInterrupt
    raised. team: makes other processes train along from the named checkpoint, or from the start if
    "". note: kept beside the card of an unfinished run, and not compared. Raises RuntimeError if
    another process writes the run or memory runs out, OSError if it cannot be saved.
    """

    folder: Path
    state: TeacherState | DistillationState
    records: Iterator[Record]
    settings: Training
    card: dict
    saving: Checkpointing | None = None
    team: Callable[[str], AbstractContextManager[None]] = nullcontext
    note: dict | None = None
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self):
        last = getattr(self.state, "new_student", None) or self.state.ema
        if not hasattr(last, "config"):  # before the run, not after it
            raise ValueError("this denoiser cannot be saved: make it with build_denoiser")
        self.folder, self.saving = Path(self.folder), self.saving or Checkpointing()
        self.card = json.loads(json.dumps({"settings": asdict(self.settings), **self.card}))

    @property
    def finished(self) -> bool:
        """Whether its result exists."""
        return (self.folder / "model.safetensors").is_file()

    def __iter__(self) -> Iterator[Record]:
        """Yield the records of the remaining steps, each after it has been written."""
        folder, state = self.folder, self.state
        if self.finished:  # possibly on a read-only disk
            claim(folder / "card.json", self.card, found=card_in(folder))
            print(f"{folder.name}: already finished, read from {folder / 'model.safetensors'}")
            return
        with only_writer(folder):
            for path in folder.glob(f".*{TEMPORARY}"):  # left by a process killed while writing
                path.unlink()
            begun = bool(checkpoints(folder))
            found = card_in(folder) if begun else None
            if begun:  # another number of threads would round sums differently
                use_threads(recorded_threads(folder / "card.json"))
            claim(folder / "card.json", self.card, binding=begun, note=self.note, found=found)
            peak_memory(reset=True)
            name, mark = resume(folder, state, self.settings) if begun else ("", None)
            at = self.settings.batch_size, state.step, self.settings.num_steps
            with Reporter(folder, *at) as reporter, self.team(name):
                yield from self._steps(mark, reporter)
                averages = getattr(state, "averages", [])
                residuals = getattr(self.settings, "more_residuals", ())
                for residual, average in zip(residuals, averages, strict=True):
                    save_model(folder / average_file(residual), average, self.card)
                save_model(folder / "model.safetensors", state.ema, self.card | peak_memory())

    def result(self) -> Denoiser:
        """Return the average of a finished run, and remove its checkpoints."""
        device = next(self.state.ema.parameters()).device
        denoiser = load_model(self.folder, device)[0]
        remove(checkpoints(self.folder))
        return denoiser

    def _steps(self, mark: dict | None, reporter: Reporter) -> Iterator[Record]:
        """Yield the records after each is written, saving the state when due."""
        folder, state, settings, saving = self.folder, self.state, self.settings, self.saving
        measured = [line["metric"] for line in trim(folder / METRIC, state.step)]
        best = min((value for value in measured if value < math.inf), default=math.inf)  # no nan
        _check_same(state)
        ending = False
        saved = time.monotonic()
        with (
            interrupt_between_steps() as self.stop,
            named_failures(folder, settings),
            History(folder, state.step, mark) as history,
        ):
            for record in self.records:
                history.record(record)
                reporter.take(record)
                if saving.metric_every and record.step % saving.metric_every == 0:
                    record.losses.read()  # raises if a GPU hangs, instead of waiting forever
                    value = _measure(folder, state, self.card, saving.metric, best)
                    history.add(record.step, metric=value)
                    best = min(best, value)  # unchanged if the value is nan
                ending = any_rank(self.stop.requested or reporter.stop_requested)
                phase_ends = record.step % settings.steps_per_phase == 0
                if (
                    ending
                    or phase_ends
                    or time.monotonic() - saved > 60 * saving.minutes
                    or (saving.steps and record.step % saving.steps == 0)
                ):
                    mark = history.mark()
                    # On a GPU the loss is read a step later; no state is saved before that.
                    check_finite(record.losses, record.step, settings)
                    # The phase's result is saved first: a run killed in between repeats it.
                    if phase_ends and record.step < settings.num_steps:
                        result = folder / f"phase-{state.phase + 1}.safetensors"
                        save_model(result, state.ema, {**self.card, "phase": record.phase})
                    write_checkpoint(folder, state, self.card | {"history": mark}, saving.keep)
                    saved = time.monotonic()
                yield record
                if ending:
                    break
        if ending:
            print(f"{folder.name}: saved at step {state.step}; run it again to resume")
            raise KeyboardInterrupt


def complete(run: Run) -> Denoiser:
    """Run to the end, with a text progress bar; returns the average."""
    bar = None
    try:
        for record in run:
            if bar is None:  # after the first step, which shows where the run resumed
                total = run.settings.num_steps
                bar = progress(run.folder.name, total, initial=record.step)
            elif bar.update():  # redrawn, which is rare: reading a loss may wait
                bar.set_postfix_str(f"{record.phase} loss {record.loss:.3g}", refresh=False)
    finally:
        if bar is not None:
            bar.close()
    return run.result()


def train_along(state, records: Iterator[Record]) -> None:
    """Consume the records of a run that another process leads and writes."""
    _check_same(state)
    with interrupt_between_steps() as stop, closing(records):
        for _ in records:
            if any_rank(stop.requested):
                break


def _check_same(state) -> None:
    """Raise ValueError unless all processes start with the same weights."""
    check_same("state", [state.step, fingerprint(state.student)])


def _measure(
    folder: Path, state, card: dict, metric: Callable[[Denoiser], float], best: float
) -> float:
    """Measure the average, keep it if it is the best so far, and return its value."""
    value = float(metric(state.ema))
    found = {"step": state.step, "metric": value}
    append(folder / METRIC, found)
    if value < best:  # False for nan
        save_model(folder / "best.safetensors", state.ema, card | found)
    return value


def branch(folder: str | Path, new: str | Path) -> None:
    """Copy a run directory, or a folder of them, so that unfinished runs accept other settings.

    Finished runs stay finished. Raises FileNotFoundError without a source, FileExistsError if the
    target exists, OSError if it cannot be written; nothing is left then.
    """
    folder, new = Path(folder), Path(new)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run directory {folder}: correct the path")
    if not any(
        path for name in ("card.json", "*/card.json", "*/*/card.json") for path in folder.glob(name)
    ):
        raise ValueError(f"{folder} holds no run: give a run's folder, or a folder of runs")
    check_new(new)
    if new.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{new} is inside {folder}, which would be copied into itself: move it")
    with new_folder(new) as copy:
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".lock", f".*{TEMPORARY}"))
        for card in copy.rglob("card.json"):
            if not (card.parent / "model.safetensors").is_file():
                card.rename(card.with_name("branched_from.json"))
