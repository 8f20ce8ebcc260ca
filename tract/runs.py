"""Run directories: what a training run leaves behind, how it is stopped and how it goes on.

card.json               settings, network, data, levels, and where and with what it ran
history.jsonl           one line per optimizer step
checkpoint.safetensors  the whole state, while the run is unfinished
model.safetensors       the inference average, once it is finished
"""

import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from tract.denoiser import Denoiser
from tract.state import load_model, load_state, save_model, save_state, write_atomically
from tract.train import Record, Training

CHECKPOINT_SECONDS = 60


def complete(
    folder: str | Path, state, records: Iterator[Record], settings: Training, card: dict
) -> Denoiser:
    """Carry a training run through to its end with a progress bar, and return its average.

    records: the generator over this state. A finished run in the folder is returned as it is, an
    unfinished one is resumed, and one with other settings is refused with their names. Ctrl-C,
    the notebook's stop button and SIGTERM end it after the current step, saved.
    """
    if not hasattr(state.ema, "config"):  # found out before the run, not after it
        raise ValueError("this denoiser cannot be saved: make it with presets.build_denoiser")
    folder = Path(folder)
    card = json.loads(json.dumps({"settings": asdict(settings), **card}))
    claim(folder / "card.json", card)
    if (folder / "model.safetensors").is_file():
        print(f"{folder.name}: finished before, read from {folder / 'model.safetensors'}")
        return load_model(folder, _device(state.ema))[0]
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.is_file():
        load_state(checkpoint, state)
        print(f"{folder.name}: resuming after step {state.step} from {checkpoint}")
    past = _trim_history(folder / "history.jsonl", state.step)
    seconds_before = past[-1]["seconds"] if past else 0.0
    start = saved = time.monotonic()
    steps = _progress(records, folder.name, state.step, settings.num_steps)
    with (
        (folder / "history.jsonl").open("a") as file,
        _interrupt_between_steps() as stop,
        closing(steps),
    ):
        for record in steps:
            now = time.monotonic()
            file.write(json.dumps(asdict(record) | {"seconds": seconds_before + now - start}))
            file.write("\n")
            if stop.requested or now - saved > CHECKPOINT_SECONDS:
                file.flush()
                save_state(checkpoint, state, card)
                saved = time.monotonic()
            if stop.requested:
                break
    if stop.requested:
        print(f"{folder.name}: saved at step {state.step}; run it again to go on")
        raise KeyboardInterrupt
    save_model(folder / "model.safetensors", state.ema, card)
    checkpoint.unlink(missing_ok=True)
    return load_model(folder, _device(state.ema))[0]


def history(folder: str | Path) -> pd.DataFrame:
    """Loss and time of every step of a run, finished or not."""
    return pd.read_json(Path(folder) / "history.jsonl", lines=True)


def append_results(path: str | Path, rows: Iterable[dict], key: Iterable[str]) -> pd.DataFrame:
    """Add rows to a CSV table, replacing those that agree in the key columns; returns the table."""
    path, key = Path(path), list(key)
    before = pd.read_csv(path, keep_default_na=False).to_dict("records") if path.is_file() else []
    # A dictionary keeps the place of the row that is replaced.
    merged = {tuple(str(row[name]) for name in key): row for row in [*before, *rows]}
    table = pd.DataFrame(list(merged.values()))
    write_atomically(path, table.to_csv(index=False).encode())
    return table


def claim(path: Path, card: dict) -> None:
    """Write the card of something new; refuse with their names values that an old one has not.

    ValueError leaves everything as it is.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(card | {"provenance": provenance()}, indent=1) + "\n"
        write_atomically(path, content.encode())
        return
    before = read_card(path)
    before.pop("provenance", None)
    changed = sorted(_differences(before, card))
    if changed:
        raise ValueError(
            f"{path.parent} was begun with other values of {', '.join(changed)}: give another "
            "run_dir or seed, restore these values, or remove that folder"
        )


def read_card(path: Path) -> dict:
    """A card as written by `claim`; ValueError if the file is damaged."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): restore or remove its folder") from error


def provenance() -> dict:
    """Versions, device, commit and time, for the record; nothing depends on them."""
    packages = ("torch", "numpy", "tract")
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
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


def _trim_history(path: Path, step: int) -> list[dict]:
    """Cut a history to the lines up to a step, so that no step appears twice, and return them."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
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
