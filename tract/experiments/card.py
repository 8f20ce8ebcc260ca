"""The card of a run: its settings as JSON, compared when the run is resumed."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from tract.base.files import write_atomically
from tract.base.provenance import provenance
from tract.networks.weights import parse_object


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


def recorded_threads(path: Path) -> int:
    """CPU threads of what an old card describes, or those of now where it does not say."""
    about = read_card(path).get("provenance", {}) if path.is_file() else {}
    return about.get("threads") or torch.get_num_threads()


def _differences(before, now, name: str = "") -> Iterator[str]:
    """Names, with both values, of all that differs between two JSON-able cards."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield f"{name} ({before} there, {now} here)"
