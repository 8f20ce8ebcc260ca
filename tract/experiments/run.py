"""Run directories: train with history and checkpoints, resume, and keep the best average."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from tract.base.checks import check_whole, is_number
from tract.base.compute import peak_memory
from tract.base.files import TEMPORARY, only_writer
from tract.base.interrupts import Stop, interrupt_between_steps
from tract.base.parallel import any_rank, check_same
from tract.denoiser import Denoiser
from tract.distill import DistillationState
from tract.experiments.card import claim
from tract.experiments.history import History, append, trim
from tract.experiments.status import Reporter
from tract.networks.weights import fingerprint, load_model, load_state, save_model, save_state
from tract.optimize import check_finite
from tract.records import Record
from tract.settings import Training
from tract.train import TeacherState


@contextmanager
def named_failures(folder: Path, settings: Training) -> Iterator[None]:
    """Say what to do when memory, disk or numbers run out; checkpoints before are intact."""
    intact = f"run {folder.name} can go on from its last checkpoint"
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error}; {intact} with other settings: `tract branch` {folder} and a new name"
        ) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RuntimeError(
            f"out of memory with batch {settings.batch_size}: use a smaller batch; {intact}"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"{reason}; {intact} once there is space") from error


@dataclass(frozen=True)
class Checkpointing:
    """When a run saves its state, besides at the end of a phase and when it is stopped."""

    minutes: float = 1.0  # between checkpoints
    steps: int = 0  # between checkpoints as well; 0 for none
    keep: int = 2  # checkpoints
    metric: Callable[[Denoiser], float] | None = None  # of the average; the lowest is kept
    metric_every: int = 0  # between measurements; 0 for none

    def __post_init__(self):
        if not (is_number(self.minutes) and self.minutes > 0):
            raise ValueError(f"minutes is {self.minutes!r}: use a number above 0")
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
    """A training run in its folder: who iterates over it makes its steps.

    records: the generator over this state. A finished run has no more of them, an unfinished one is
    resumed, and one with other settings is refused with their names. Ctrl-C, the notebook's stop
    button, SIGTERM and stop.requested = True end it after a step, saved, with KeyboardInterrupt.
    team: the others that train along from the checkpoint of a name, or from the start if "". note:
    kept beside the card of an unfinished run, and not compared.
    RuntimeError if another process is writing the run or memory runs out, OSError if it cannot be
    saved.
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
        if not hasattr(last, "config"):  # found out before the run, not after it
            raise ValueError("this denoiser cannot be saved: make it with presets.build_denoiser")
        self.folder, self.saving = Path(self.folder), self.saving or Checkpointing()
        self.card = json.loads(json.dumps({"settings": asdict(self.settings), **self.card}))

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "model.safetensors").is_file()

    def __iter__(self) -> Iterator[Record]:
        """Records of the steps still to be made, each when it has been written."""
        folder, state = self.folder, self.state
        with only_writer(folder):
            for path in folder.glob(f".*{TEMPORARY}"):  # of a process killed while it wrote
                path.unlink()
            unfinished = bool(_checkpoints(folder))
            finished = self.finished
            note = None if finished else self.note  # which says how it was made
            claim(folder / "card.json", self.card, binding=finished or unfinished, note=note)
            if finished:
                print(f"{folder.name}: finished before, read from {folder / 'model.safetensors'}")
                return
            peak_memory(reset=True)
            checkpoint = _resume(folder, state, self.settings) if unfinished else ""
            at = self.settings.batch_size, state.step, self.settings.num_steps
            with Reporter(folder, *at) as reporter, self.team(checkpoint):
                yield from self._steps(reporter)
                save_model(folder / "model.safetensors", state.ema, self.card | peak_memory())

    def result(self) -> Denoiser:
        """The average of a finished run, which needs its checkpoints no more."""
        denoiser = load_model(self.folder, _device(self.state.ema))[0]
        _remove(_checkpoints(self.folder))
        return denoiser

    def _steps(self, reporter: Reporter) -> Iterator[Record]:
        """Pass the records on: each is written first, the state saved when it is time."""
        folder, state, settings, saving = self.folder, self.state, self.settings, self.saving
        measured = [line["metric"] for line in trim(folder / "metric.jsonl", state.step)]
        best = min((value for value in measured if value < math.inf), default=math.inf)  # no nan
        _check_same(state)
        ending = False
        saved = time.monotonic()
        with (
            interrupt_between_steps() as self.stop,
            named_failures(folder, settings),
            History(folder, state.step) as history,
        ):
            for record in self.records:
                history.record(record)
                reporter.take(record)
                if saving.metric_every and record.step % saving.metric_every == 0:
                    value = _measure(folder, state, self.card, saving.metric, best)
                    history.add(record.step, metric=value)
                    best = min(best, value)  # still the best if the value is nan
                ending = any_rank(self.stop.requested or reporter.stop_requested)
                phase_ends = record.step % settings.steps_per_phase == 0
                if (
                    ending
                    or phase_ends
                    or time.monotonic() - saved > 60 * saving.minutes
                    or (saving.steps and record.step % saving.steps == 0)
                ):
                    history.write()
                    # On a GPU the loss is read a step later; a state without it is not kept.
                    check_finite(record.losses, record.step, settings)
                    # What a phase led to comes first: killed in between, a run makes it again.
                    if phase_ends and record.step < settings.num_steps:
                        result = folder / f"phase-{state.phase + 1}.safetensors"
                        save_model(result, state.ema, {**self.card, "phase": record.phase})
                    _save(folder, state, self.card, saving.keep)
                    saved = time.monotonic()
                yield record
                if ending:
                    break
        if ending:
            print(f"{folder.name}: saved at step {state.step}; run it again to go on")
            raise KeyboardInterrupt


def complete(run: Run) -> Denoiser:
    """Carry a run through to its end, under a text bar that all can show; returns its average."""
    about = {"desc": run.folder.name, "total": run.settings.num_steps, "unit": "step"}
    bar = None
    try:
        for record in run:
            if bar is None:  # after the first step it is known where the run goes on
                bar = tqdm(initial=record.step, file=sys.stdout, mininterval=1, **about)
            elif bar.update():  # redrawn, as seldom as that: to read a loss may be to wait
                bar.set_postfix_str(f"{record.phase} loss {record.loss:.3g}", refresh=False)
    finally:
        if bar is not None:
            bar.close()
    return run.result()


def train_along(state, records: Iterator[Record]) -> None:
    """Consume the records of a run that another process carries through, and writes."""
    _check_same(state)
    with interrupt_between_steps() as stop, closing(records):
        for _ in records:
            if any_rank(stop.requested):
                break


def _check_same(state) -> None:
    """ValueError unless all processes that have joined begin with the same weights."""
    check_same("state", [state.step, fingerprint(state.student)])


def _save(folder: Path, state, card: dict, keep: int) -> None:
    """Write a checkpoint, then remove all but the last few up to it.

    Those beyond it were passed over when the run was resumed.
    """
    path = _checkpoint(folder, state.step)
    save_state(path, state, card)
    older = [other for other in _checkpoints(folder) if other.name < path.name]
    _remove(p for p in _checkpoints(folder) if p.name > path.name)
    _remove(older[keep - 1 :])


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)  # another process may have


def _resume(folder: Path, state, settings: Training) -> str:
    """Bring the state to the newest checkpoint that is whole; say which, and why not a newer.

    Returns its name.
    """
    fresh, reasons = dict(vars(state)), []
    for path in _checkpoints(folder):
        try:
            load_state(path, state)
            _check_place(path, state, settings)
        except ValueError as error:
            vars(state).update(fresh)  # a first teacher that a later phase had replaced
            print(f"{folder.name}: passed over {path.name}: {error}")
            reasons.append(str(error))
            continue
        print(f"{folder.name}: resuming after step {state.step} from {path.name}")
        return path.name
    raise ValueError(
        f"no checkpoint in {folder} can be resumed: restore one, or remove that folder to begin "
        f"again; of the newest, {reasons[0]}"
    )


def _check_place(path: Path, state, settings: Training) -> None:
    """ValueError unless a loaded state is where its file and these settings say it can be."""
    if path != _checkpoint(path.parent, state.step):
        raise ValueError(f"{path} holds step {state.step}, which is not its name: remove it")
    if state.step > settings.num_steps:
        raise ValueError(
            f"{path} is at step {state.step}, beyond the {settings.num_steps} of these "
            "settings: use more images, or begin in another run_dir"
        )
    phase, length = state.counters().get("phase", 0), settings.steps_per_phase
    if not 0 <= state.step - phase * length <= length:
        raise ValueError(
            f"{path} is at step {state.step} in phase {phase + 1}, but phases have {length} steps: "
            "keep images, batch and step_schedule"
        )


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:09}.safetensors"


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def _measure(
    folder: Path, state, card: dict, metric: Callable[[Denoiser], float], best: float
) -> float:
    """Measure the average, keep it if it is better than the best so far, and return its value."""
    value = float(metric(state.ema))
    found = {"step": state.step, "metric": value}
    append(folder / "metric.jsonl", found)
    if value < best:  # and no nan
        save_model(folder / "best.safetensors", state.ema, card | found)
    return value


def branch(folder: str | Path, new: str | Path) -> None:
    """Copy a run directory, or a folder of them, so that unfinished runs take other settings.

    What is finished stays so. FileNotFoundError without a source, FileExistsError with a target,
    OSError if it cannot be written; nothing is left of it then.
    """
    folder, new = Path(folder), Path(new)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run directory {folder}: correct the path")
    if new.exists():
        raise FileExistsError(f"{new} exists already: give a new name")
    if new.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{new} lies inside {folder}, which would be copied into itself: move it")
    copy = new.with_name(f".{new.name}.{os.getpid()}{TEMPORARY}")
    try:
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".lock", f".*{TEMPORARY}"))
        for card in copy.rglob("card.json"):
            if not (card.parent / "model.safetensors").is_file():
                card.rename(card.with_name("branched_from.json"))
        copy.rename(new)
    except OSError as error:
        raise OSError(
            f"cannot copy {folder} to {new} ({error}): free space, correct permissions or use "
            "another name"
        ) from error
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device
