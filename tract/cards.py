"""Cards: what a run is, kept as JSON beside it, and refused if it should become another."""

import json
import platform
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from tract.files import write_atomically
from tract.state import parse_object


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
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): restore or remove it") from error
    return parse_object(text, path)


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
    """Commit of the source tree, with a + if this package was changed since; None outside git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True)
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout else "")


def _differences(before, now, name: str = "") -> Iterator[str]:
    """Names, with both values, of all that differs between two JSON-able cards."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield f"{name} ({before} there, {now} here)"
