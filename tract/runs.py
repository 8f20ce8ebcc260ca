"""Run directories: what a training run leaves behind, how it is stopped and how it goes on.

card.json                       settings, network, data, levels; where and with what it ran
history.jsonl                   one line per optimizer step
checkpoint-STEP.safetensors     the whole state, the last two, while the run is unfinished
best.safetensors, metric.jsonl  the best average so far by a metric, if one was asked for
model.safetensors               the inference average, once the run is finished
"""

import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from tract.denoiser import Denoiser
from tract.state import load_model, load_state, save_model, save_state, write_atomically
from tract.train import Record, Training


@dataclass(frozen=True)
class Saving:
    """When a run saves its state, besides at the end of a phase and when it is stopped."""

    minutes: float = 1.0  # between checkpoints
    steps: int = 0  # between checkpoints as well; 0 for none
    keep: int = 2  # checkpoints
    metric: Callable[[Denoiser], float] | None = None  # of the average; the lowest is kept
    metric_steps: int = 0  # between measurements; 0 for none

    def __post_init__(self):
        if not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}: use a number above 0")
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}: use 1 or more")
        if min(self.steps, self.metric_steps) < 0:
            raise ValueError(
                f"steps is {self.steps}, metric_steps {self.metric_steps}: use 0 or more"
            )


def complete(
    folder: str | Path,
    state,
    records: Iterator[Record],
    settings: Training,
    card: dict,
    saving: Saving | None = None,
) -> Denoiser:
    """Carry a training run through to its end with a progress bar, and return its average.

    records: the generator over this state. A finished run in the folder is returned as it is, an
    unfinished one is resumed, and one with other settings is refused with their names. Ctrl-C,
    the notebook's stop button and SIGTERM end it after the current step, saved. RuntimeError if
    another process is writing the run or memory runs out, OSError if it cannot be saved.
    """
    if not hasattr(state.ema, "config"):  # found out before the run, not after it
        raise ValueError("this denoiser cannot be saved: make it with presets.build_denoiser")
    folder, saving = Path(folder), saving or Saving()
    card = json.loads(json.dumps({"settings": asdict(settings), **card}))
    with _only_writer(folder):
        unfinished = bool(_checkpoints(folder))
        finished = (folder / "model.safetensors").is_file()
        claim(folder / "card.json", card, binding=finished or unfinished)
        if finished:
            print(f"{folder.name}: finished before, read from {folder / 'model.safetensors'}")
            return load_model(folder, _device(state.ema))[0]
        if unfinished:
            _resume(folder, state, settings)
        _train(folder, state, records, settings, card, saving)
        save_model(folder / "model.safetensors", state.ema, card)
        for path in _checkpoints(folder):
            path.unlink()
        return load_model(folder, _device(state.ema))[0]


def _train(
    folder: Path,
    state,
    records: Iterator[Record],
    settings: Training,
    card: dict,
    saving: Saving,
) -> None:
    """Consume the records: write each one, save when it is time, stop when asked to."""
    past = _trim(folder / "history.jsonl", state.step)
    best = min((r["metric"] for r in _trim(folder / "metric.jsonl", state.step)), default=None)
    seconds_before = past[-1]["seconds"] if past else 0.0
    start = saved = time.monotonic()
    steps = _progress(records, folder.name, state.step, settings.num_steps)
    with _interrupt_between_steps() as stop, _named_failures(folder, settings), closing(steps):
        for record in steps:
            now = time.monotonic()
            line = asdict(record) | {"seconds": seconds_before + now - start}
            _append(folder / "history.jsonl", line)
            if saving.metric_steps and record.step % saving.metric_steps == 0:
                best = _measure(folder, state, record.step, card, saving.metric, best)
            if (
                stop.requested
                or now - saved > 60 * saving.minutes
                or (saving.steps and record.step % saving.steps == 0)
                or record.step % settings.steps_per_phase == 0
            ):
                _save(folder, state, card, saving.keep)
                saved = time.monotonic()
            if stop.requested:
                break
    if stop.requested:
        print(f"{folder.name}: saved at step {state.step}; run it again to go on")
        raise KeyboardInterrupt


def _save(folder: Path, state, card: dict, keep: int) -> None:
    """Write a checkpoint, then remove all but the last few."""
    save_state(folder / f"checkpoint-{state.step:09}.safetensors", state, card)
    for path in _checkpoints(folder)[keep:]:
        path.unlink()


def _resume(folder: Path, state, settings: Training) -> None:
    """Bring the state to the newest checkpoint that is whole; say which, and why not a newer."""
    for path in _checkpoints(folder):
        try:
            load_state(path, state)
        except ValueError as error:
            print(f"{folder.name}: passed over {path.name}: {error}")
            continue
        if state.step > settings.num_steps:
            raise ValueError(
                f"{path} is at step {state.step}, beyond the {settings.num_steps} of these "
                "settings: use more images, or begin in another run_dir"
            )
        print(f"{folder.name}: resuming after step {state.step} from {path.name}")
        return
    raise ValueError(
        f"no checkpoint in {folder} is whole: remove that folder to begin again, or restore one"
    )


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def _measure(
    folder: Path, state, step: int, card: dict, metric: Callable[[Denoiser], float], best
) -> float:
    """Measure the average, keep it if it is the best so far, and return the best value."""
    value = metric(state.ema)
    _append(folder / "metric.jsonl", {"step": step, "metric": value})
    if best is not None and value >= best:
        return best
    save_model(folder / "best.safetensors", state.ema, {**card, "step": step, "metric": value})
    return value


def history(folder: str | Path) -> pd.DataFrame:
    """Loss and time of every step of a run, finished or not."""
    return pd.read_json(Path(folder) / "history.jsonl", lines=True)


def append_results(path: str | Path, rows: Iterable[dict], key: Iterable[str]) -> pd.DataFrame:
    """Add rows to a CSV table, replacing those that agree in the key columns; returns the table."""
    path, key = Path(path), list(key)
    with FileLock(path.with_name(f".{path.name}.lock")):
        before = (
            pd.read_csv(path, keep_default_na=False).to_dict("records") if path.is_file() else []
        )
        # A dictionary keeps the place of the row that is replaced.
        merged = {tuple(str(row[name]) for name in key): row for row in [*before, *rows]}
        table = pd.DataFrame(list(merged.values()))
        write_atomically(path, table.to_csv(index=False).encode())
    return table


def branch(folder: str | Path, new: str | Path) -> None:
    """Copy a run directory, or a folder of them, so that unfinished runs take other settings.

    What is finished stays so. FileNotFoundError without a source, FileExistsError with a target.
    """
    folder, new = Path(folder), Path(new)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run directory {folder}: correct the path")
    if new.exists():
        raise FileExistsError(f"{new} exists already: give a new name")
    shutil.copytree(folder, new)
    for card in new.rglob("card.json"):
        if not (card.parent / "model.safetensors").is_file():
            card.rename(card.with_name("branched_from.json"))


def claim(path: Path, card: dict, *, binding: bool = True, note: dict | None = None) -> None:
    """Write the card of something new; refuse with their names values that an old one has not.

    An old card that is not binding is replaced. note: kept beside the card, and not compared.
    ValueError leaves everything as it is.
    """
    before = read_card(path) if binding and path.is_file() else None
    if before is not None:
        provenance_before = before.pop("provenance", {})
        changed = sorted(_differences(before, card))
        if changed:
            raise ValueError(
                f"{path.parent} was begun with other values of {', '.join(changed)}: give another "
                "run_dir or seed, restore these values, remove that folder, or `tract branch` "
                "run_dir to go on from it under a new name"
            )
        if all(provenance_before.get(name) == value for name, value in (note or {}).items()):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(card | {"provenance": provenance() | (note or {})}, indent=1) + "\n"
    write_atomically(path, content.encode())


def read_card(path: Path) -> dict:
    """A card as written by `claim`; ValueError if the file is damaged."""
    try:
        card = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore or remove its folder") from error
    if not isinstance(card, dict):
        raise ValueError(f"{path} is damaged (no object): restore or remove its folder")
    return card


def provenance() -> dict:
    """Versions, device, commit and time, for the record; nothing depends on them."""
    packages = {p: version(p) for p in ("numpy", "tract")}
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__} | packages,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    """Commit of the source tree tract runs from, with a + if it was changed; None outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    command += ["--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _differences(before, now, name: str = "") -> Iterator[str]:
    """Names, with both values, of all that differs between two JSON-able cards."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield f"{name} ({before} there, {now} here)"


def _append(path: Path, line: dict) -> None:
    """Add one line to a file of JSON lines, at once."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _trim(path: Path, step: int) -> list[dict]:
    """Cut JSON lines to those up to a step, so that no step appears twice, and return them."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break  # the last line of a killed run
        if record["step"] <= step:
            kept.append(record)
    write_atomically(path, "".join(json.dumps(r) + "\n" for r in kept).encode())
    return kept


def _progress(records: Iterator[Record], name: str, step: int, num_steps: int) -> Iterator[Record]:
    """Pass records on under a text bar that terminals, papermill's log and notebooks all show."""
    with tqdm(
        desc=name, total=num_steps, initial=step, unit="step", file=sys.stdout, mininterval=1
    ) as bar:
        for record in records:
            yield record
            bar.set_postfix_str(f"{record.phase} loss {record.loss:.3g}", refresh=False)
            bar.update()


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the run's lock, which the system frees even when its holder is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"another process is writing {folder}: wait for it, stop it, or use another run_dir"
        ) from error
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to {folder} ({error.strerror}): use another run_dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _named_failures(folder: Path, settings: Training) -> Iterator[None]:
    """Say what to do when memory or disk runs out; checkpoints before that are intact."""
    intact = f"run {folder.name} can go on from its last checkpoint"
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RuntimeError(
            f"out of memory with batch {settings.batch}: use a smaller batch; {intact}"
        ) from error
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; {intact}") from error


class _Stop:
    requested = False


@contextmanager
def _interrupt_between_steps() -> Iterator[_Stop]:
    """Turn SIGINT and SIGTERM into a request that the loop honours once a step is complete.

    An interrupt inside a step would leave the optimizer ahead of the averages.
    """
    stop = _Stop()

    def request(signum, frame):
        stop.requested = True

    try:
        before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller has its own way to stop
        before = {}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
